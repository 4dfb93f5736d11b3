"""How much does a call do, however quick the machine is?"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import sys
from typing import Any


@contextlib.contextmanager
def at_most(calls: int) -> Iterator[None]:
  """Ends its block with an AssertionError once this thread has called too often.

  Work that grows with what a file claims is stopped by it before it has filled
  the memory.

  Args:
    calls: of functions, in Python and C; imports count, too.
  """
  made = 0

  def too_many() -> AssertionError:
    return AssertionError(f'more than {calls:,} calls')

  def count(frame: Any, event: str, argument: Any) -> None:
    nonlocal made
    made += event in ('call', 'c_call')
    if made > calls:
      sys.setprofile(None)
      raise too_many()

  before = sys.getprofile()
  sys.setprofile(count)
  try:
    yield
  finally:
    sys.setprofile(before)
  # The block may have caught it.
  if made > calls:
    raise too_many()
