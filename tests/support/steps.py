"""How much does a call do, however quick the machine is?"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import sys
import tracemalloc
from typing import Any

_MOST = 64 << 20  # bytes; one call may ask for what a file claims


@contextlib.contextmanager
def at_most(calls: int) -> Iterator[None]:
  """Ends its block with an AssertionError once this thread has called too often.

  Work that grows with what a file claims is stopped by it before it has filled
  the memory. Nor may the block ever hold more than 64 MiB more.

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
  tracemalloc.start()
  sys.setprofile(count)
  try:
    yield
  finally:
    sys.setprofile(before)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
  # The block may have caught it.
  if made > calls:
    raise too_many()
  assert peak <= _MOST, f'{peak:,} bytes at once'
