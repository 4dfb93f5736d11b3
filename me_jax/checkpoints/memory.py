"""Where do the bytes of parameters come from?

Straight from the system, in huge or in small pages, whichever comes quicker
here. Huge ones take a fifth of the time where the machine has them at hand; a
virtual machine often has to get them from its host first, which takes five
times as long as small ones do (0.05, 0.2 and 1 s for 0.5 GB).
"""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import time

import numpy as np

# Linux 5.14 and later: brings pages in without a fault for each.
_POPULATE_WRITE = 23
# Bytes of a huge page, and how many of them are tried.
_HUGE, _TRIED = 1 << 21, 3


def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Returns an array of zeros, aligned so that JAX takes it over as it is.

  Args:
    shape: of the array.
    dtype: of the array.
  """
  nbytes = math.prod(shape) * np.dtype(dtype).itemsize
  # A whole page at least: an empty map is an error.
  pages = _map(max(nbytes, 1), huge=nbytes > _HUGE and _huge_pages_are_quick())
  return np.frombuffer(pages, np.uint8, nbytes).view(dtype).reshape(shape)


def populate(array: np.ndarray) -> None:
  """Brings in the small pages of a part of an allocated array.

  Args:
    array: contiguous, a part of what `allocate` returned. Where the system
      cannot do that, pages come as they are written.
  """
  pages = array
  while isinstance(pages, np.ndarray):
    pages = pages.base
  if isinstance(pages, memoryview):
    pages = pages.obj
  if not isinstance(pages, mmap.mmap) or _huge_pages_are_quick():
    return
  start = array.ctypes.data - np.frombuffer(pages, np.uint8).ctypes.data
  stop = start + array.nbytes
  start -= start % mmap.PAGESIZE
  with contextlib.suppress(OSError):
    pages.madvise(_POPULATE_WRITE, start, stop - start)


@functools.cache
def _huge_pages_are_quick() -> bool:
  """Takes a few megabytes of either kind and compares the times."""
  if not hasattr(mmap, 'MADV_HUGEPAGE'):
    return False
  seconds = []
  for huge in (False, True):
    # One more, because the map may begin within a huge page.
    with _map(_HUGE * (_TRIED + 1), huge) as pages:
      begin = time.perf_counter()
      pages[:: mmap.PAGESIZE] = bytes(len(pages) // mmap.PAGESIZE)
      seconds.append(time.perf_counter() - begin)
  return seconds[1] < seconds[0]


def _map(nbytes: int, huge: bool) -> mmap.mmap:
  pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
  if huge:
    with contextlib.suppress(OSError):
      pages.madvise(mmap.MADV_HUGEPAGE)
  return pages
