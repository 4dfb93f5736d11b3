"""What tests that start processes of their own need."""

from __future__ import annotations

from collections.abc import Sequence
import os
import signal
import socket
import subprocess
import sys
import textwrap

# What tells a process that it belongs to others.
_CLUSTER = (
  'SLURM_', 'OMPI_', 'KUBERNETES_', 'JAX_COORDINATOR_', 'JAX_NUM_PROCESSES',
  'JAX_PROCESS_ID', 'JAX_LOCAL_DEVICE_IDS',
)  # fmt: skip
# Of a process that computes with others: two devices, and programs that are compiled
# without the flags of `conftest.py`, as users' are.
JOINED = {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}


def xla_flags(devices: int) -> str:
  """Returns this process's flags of XLA, with as many CPU devices."""
  count = '--xla_force_host_platform_device_count'
  flags = os.environ.get('XLA_FLAGS', '').split()
  kept = [flag for flag in flags if not flag.startswith(count)]
  return ' '.join([*kept, f'{count}={devices}'])


def environment(devices: int = 1, **variables: str) -> dict[str, str]:
  """Returns the environment of a process in no cluster.

  Args:
    devices: CPU devices that it has.
    **variables: others, or other values.
  """
  kept = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(_CLUSTER)
  }
  return kept | {
    'JAX_PLATFORMS': 'cpu',
    # So that one that hangs can say where (`_aborted`).
    'PYTHONFAULTHANDLER': '1',
    'XLA_FLAGS': xla_flags(devices),
    'PYTHONPATH': os.pathsep.join(sys.path),
    **variables,
  }


def free_address() -> str:
  """Returns an address at which nobody listens."""
  with socket.socket() as one:
    one.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{one.getsockname()[1]}'


def start(
  program: str, *arguments: object, devices: int = 1, **variables: str
) -> subprocess.Popen[str]:
  """Starts a Python program, indented or not, with pipes.

  Args:
    program: its code.
    *arguments: of its command line.
    devices: CPU devices that it has.
    **variables: of its environment.
  """
  return subprocess.Popen(
    _command(program, arguments),
    env=environment(devices, **variables),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(
  program: str,
  *arguments: object,
  devices: int = 1,
  timeout: int = 300,
  **variables: str,
) -> subprocess.CompletedProcess[str]:
  """Runs a Python program to its end, for so many seconds; as `start`."""
  return subprocess.run(
    _command(program, arguments),
    env=environment(devices, **variables),
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )


def pair(program: str, *arguments: object, timeout: int = 90) -> list[str]:
  """Runs a program twice at once; returns the last line that each prints.

  Each process has two devices.

  Args:
    program: gets an index, 0 or 1, and the address of process 0.
    *arguments: that follow these.
    timeout: seconds for both.
  """
  address = free_address()
  return together(
    [
      start(program, index, address, *arguments, **JOINED) for index in range(2)
    ],
    timeout,
  )


def together(runs: Sequence[subprocess.Popen[str]], timeout: int) -> list[str]:
  """Waits for processes that need each other, as `pair`."""
  try:
    ends = [run.communicate(timeout=timeout) for run in runs]
  except subprocess.TimeoutExpired as error:
    said = [_aborted(run)[-6000:] for run in runs]
    raise AssertionError(f'over {timeout} s\n' + '\n'.join(said)) from error
  finally:
    for run in runs:
      run.kill()
  assert [run.returncode for run in runs] == [0] * len(runs), '\n'.join(
    err[-2000:] for _, err in ends
  )
  # Gloo prints there, too.
  return [out.splitlines()[-1] for out, _ in ends]


def _aborted(run: subprocess.Popen[str]) -> str:
  """Ends a process; returns what it said, and where each of its threads was."""
  run.send_signal(signal.SIGABRT)
  try:
    return run.communicate(timeout=30)[1]
  except subprocess.TimeoutExpired:
    run.kill()
    return run.communicate()[1]


def _command(program: str, arguments: Sequence[object]) -> list[str]:
  code = textwrap.dedent(program)
  return [sys.executable, '-c', code, *map(str, arguments)]
