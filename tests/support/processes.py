"""What tests that start processes of their own need."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

# Seconds after which a program is given up.
_HANGS = 300


def xla_flags(devices: int) -> str:
  """Returns this process's flags of XLA, with as many CPU devices."""
  count = '--xla_force_host_platform_device_count'
  flags = os.environ.get('XLA_FLAGS', '').split()
  kept = [flag for flag in flags if not flag.startswith(count)]
  return ' '.join([*kept, f'{count}={devices}'])


def environment(devices: int = 2, **variables: str) -> dict[str, str]:
  """Returns the environment of a process with CPU devices, in no cluster."""
  kept = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('SLURM_', 'OMPI_', 'KUBERNETES_', 'JAX_'))
  }
  return kept | {
    'JAX_PLATFORMS': 'cpu',
    # As this one, or the last bit would be another.
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
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
  program: str, *arguments: object, devices: int = 2, **variables: str
) -> subprocess.Popen[str]:
  """Starts a Python program, indented or not, with pipes."""
  return subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(program), *map(str, arguments)],
    env=environment(devices, **variables),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(
  program: str, *arguments: object, devices: int = 8
) -> subprocess.CompletedProcess[str]:
  """Runs a Python program, indented or not; returns what came of it."""
  process = start(program, *arguments, devices=devices)
  try:
    out, err = process.communicate(timeout=_HANGS)
  finally:
    process.kill()
  return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def pair(program: str, *arguments: object, timeout: int = 90) -> list[str]:
  """Runs a program twice at once; returns the last line that each prints.

  Args:
    program: gets an index, 0 or 1, and the address of process 0.
    *arguments: that follow these.
    timeout: seconds for both.
  """
  address = free_address()
  runs = [start(program, index, address, *arguments) for index in range(2)]
  try:
    ends = [run.communicate(timeout=timeout) for run in runs]
  finally:
    for run in runs:
      run.kill()
  assert [run.returncode for run in runs] == [0, 0], '\n'.join(
    err[-2000:] for _, err in ends
  )
  # Gloo prints there, too.
  return [out.splitlines()[-1] for out, _ in ends]
