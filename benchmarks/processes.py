"""Runs the two sides, each in a process of its own.

They never share one: threads that spin while they wait would slow the other
side down, and a process's peak memory is only its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

# Of what a process that fails wrote to stderr.
_SHOWN_LINES = 8


class Failed(Exception):
  """A process failed, or the two sides cannot be compared."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
  """What became of a process.

  Attributes:
    wall: seconds.
    peak: MB of memory.
    output: what it printed.
  """

  wall: float
  peak: float
  output: str

  @property
  def value(self) -> Any:
    """The JSON value in its last line."""
    try:
      return json.loads(self.output.splitlines()[-1])
    except (IndexError, ValueError):
      raise Failed(f'no JSON at the end of {self.output!r}') from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
  """What a section is measured with.

  Attributes:
    folder: of the model that both sides load.
    scratch: a folder that is thrown away.
    rounds: in which the two sides take turns.
    quick: whether one small size stands for all.
  """

  folder: str
  scratch: pathlib.Path
  rounds: int
  quick: bool

  def run(self, *arguments: str, cache: str = 'warm', **env: str) -> Done:
    """Runs `python -m ARGUMENTS`; `cache` names where programs are kept."""
    return run(arguments, ME_JAX_CACHE=str(self.scratch / cache), **env)

  def worker(self, *arguments: str, **env: str) -> Done:
    """Runs a worker, of `benchmarks.workers`."""
    return self.run('benchmarks.workers', *arguments, **env)

  def work(self, *arguments: str, **env: str) -> Any:
    """Runs a worker and returns what it measured."""
    return self.worker(*arguments, **env).value


def run(arguments: tuple[str, ...], **env: str) -> Done:
  """Runs `python -m ARGUMENTS` with more in its environment.

  Raises:
    Failed: it did not exit with 0; with the last lines of its stderr.
  """
  # A file and not a pipe, which would fill up unread.
  with tempfile.TemporaryFile('w+', errors='replace') as complaints:
    start = time.perf_counter()
    process = subprocess.Popen(
      [sys.executable, '-m', *arguments],
      stdout=subprocess.PIPE,
      stderr=complaints,
      env=os.environ | {'HF_HUB_OFFLINE': '1'} | env,
      text=True,
    )
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode:
      complaints.seek(0)
      last = ''.join(complaints.readlines()[-_SHOWN_LINES:])
      raise Failed(
        f'{" ".join(arguments)} exited {process.returncode}:\n{last}'
      )
  return Done(wall=wall, peak=usage.ru_maxrss / 1024, output=output)
