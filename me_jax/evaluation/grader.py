"""Grades maths in a process of its own, which may hang or die.

What a model writes may be an expression that takes for ever, or all memory, to
work out. math-verify's own limit is a signal: it works in the main thread alone,
takes the alarm away from whoever has set one, and waits for code in C to return.
Here an answer gets some seconds of processor time, which do not depend on how
busy the machine is, and some memory; one that needs more ends its process, counts
as wrong, and the next answer gets a new process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import select
import subprocess
import sys
import threading
from typing import Any

from me_jax import errors
from me_jax.evaluation import grading

_SECONDS = 5.0  # of the processor; an ordinary answer takes a hundredth of one
_PATIENCE = 60.0  # seconds for what waits and does not compute
_MEMORY = 4 * 2**30
_ROOT = pathlib.Path(__file__).parents[2]


class Grader:
  """Says whether answers are right; from any thread, one at a time."""

  def __init__(self, seconds: float = _SECONDS):
    """Starts nothing yet.

    Args:
      seconds: of processor time that an answer may take.
    """
    self._seconds = seconds
    self._lock = threading.Lock()
    self._process: subprocess.Popen[bytes] | None = None

  def start(self) -> None:
    """Starts the process, if there is none.

    Raises:
      MeJaxError: math-verify is not installed, or does not start.
    """
    with self._lock:
      self._started()

  def is_right(self, answer: str, gold: str) -> bool:
    """Grades as `grading.is_right`; what cannot be graded is wrong.

    Args:
      answer: all that the model said.
      gold: the right answer: a number or LaTeX.

    Raises:
      MeJaxError: as `start`.
    """
    request = json.dumps([answer, gold, self._seconds]).encode() + b'\n'
    with self._lock:
      # It may have been killed since: that says nothing about this answer.
      for _ in range(2):
        process = self._started()
        try:
          process.stdin.write(request)
          process.stdin.flush()
        except OSError:
          self._end()
          continue
        verdict = _line(process)
        if verdict is None:
          self._end()
        return verdict == b'true\n'
    return False

  def close(self) -> None:
    """Ends the process."""
    with self._lock:
      self._end()

  # `Any`, because pipes are there, as asked for below.
  def _started(self) -> Any:
    if self._process is not None:
      return self._process
    if importlib.util.find_spec('math_verify') is None:
      raise errors.MeJaxError(
        "math_verify is not installed: pip install -e '.[eval]' in a checkout."
      )
    path = os.pathsep.join(
      filter(None, (str(_ROOT), os.environ.get('PYTHONPATH')))
    )
    # Not a fork, which the threads of XLA may leave locked; and in a session of
    # its own, so that Ctrl-C reaches the run and not the grader.
    self._process = subprocess.Popen(
      [sys.executable, '-m', __name__],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env={**os.environ, 'PYTHONPATH': path},
      start_new_session=True,
    )
    if _line(self._process) is None:
      self._end()
      raise errors.MeJaxError(
        f'math-verify does not start: python -m {__name__} says why.'
      )
    return self._process

  def _end(self) -> None:
    process: Any = self._process
    self._process = None
    if process is None:
      return
    process.kill()
    process.wait()
    process.stdout.close()
    # What the dead have not read.
    with contextlib.suppress(OSError):
      process.stdin.close()


@functools.cache
def shared() -> Grader:
  """Returns the grader that all of a program may use."""
  found = Grader()
  atexit.register(found.close)
  return found


def _line(process: Any) -> bytes | None:
  """Returns what the process says, None if it dies or waits too long."""
  ready, _, _ = select.select([process.stdout], [], [], _PATIENCE)
  # A verdict is a few bytes, which a pipe hands on as one.
  return (process.stdout.readline() or None) if ready else None


def _serve() -> None:
  """Grades what comes in, line by line, until there is no more."""
  import resource
  import signal

  # Where a limit cannot be set, the others still hold.
  with contextlib.suppress(OSError, ValueError):
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
  # A copy: what libraries print must not be taken for a verdict.
  out = os.fdopen(os.dup(1), 'wb', buffering=0)
  os.dup2(2, 1)
  grading.is_right('1', '1')
  out.write(b'ready\n')
  for line in sys.stdin.buffer:
    answer, gold, seconds = json.loads(line)
    # Nobody handles this signal: the kernel ends the process, whatever runs.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
      right = grading.is_right(answer, gold)
    # math-verify's own is no Exception.
    except BaseException:
      right = False
    signal.setitimer(signal.ITIMER_PROF, 0)
    out.write(json.dumps(right).encode() + b'\n')


if __name__ == '__main__':
  _serve()
