"""What tests that start processes of their own need."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap


def environment(**variables: str) -> dict[str, str]:
  """Returns the environment of a process with two CPU devices, in no cluster."""
  kept = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('SLURM_', 'OMPI_', 'KUBERNETES_', 'JAX_'))
  }
  return kept | {
    'JAX_PLATFORMS': 'cpu',
    # As this one, or the last bit would be another.
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    'PYTHONPATH': os.pathsep.join(sys.path),
    **variables,
  }


def free_address() -> str:
  """Returns an address at which nobody listens."""
  with socket.socket() as one:
    one.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{one.getsockname()[1]}'


def start(program: str, *arguments: object, **variables: str):
  """Starts a Python program, indented or not, with pipes."""
  return subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(program), *map(str, arguments)],
    env=environment(**variables),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


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
