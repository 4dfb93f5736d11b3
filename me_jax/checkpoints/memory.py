"""Where do the bytes of parameters come from?

Straight from the system, in small pages. numpy asks for huge ones, which a
virtual machine often has to get from its host first: 0.6 to 1.4 s for 0.5 GB,
against 0.2 s for small pages that are asked for many at a time.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import numpy as np

# Linux 5.14 and later: brings pages in without a fault for each.
_POPULATE_WRITE = 23


def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Returns an array of zeros, aligned so that JAX takes it over as it is.

  Args:
    shape: of the array.
    dtype: of the array.
  """
  nbytes = math.prod(shape) * np.dtype(dtype).itemsize
  if nbytes < mmap.PAGESIZE:
    return _aligned(nbytes).view(dtype).reshape(shape)
  pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
  return np.frombuffer(pages, np.uint8, nbytes).view(dtype).reshape(shape)


def populate(array: np.ndarray) -> None:
  """Brings in the pages of a part of an allocated array.

  Args:
    array: contiguous, a part of what `allocate` returned. Where the system
      cannot do that, pages come as they are written.
  """
  pages = array
  while isinstance(pages, np.ndarray):
    pages = pages.base
  if isinstance(pages, memoryview):
    pages = pages.obj
  if not isinstance(pages, mmap.mmap):
    return
  start = array.ctypes.data - np.frombuffer(pages, np.uint8).ctypes.data
  stop = start + array.nbytes
  start -= start % mmap.PAGESIZE
  with contextlib.suppress(OSError):
    pages.madvise(_POPULATE_WRITE, start, stop - start)


def _aligned(nbytes: int) -> np.ndarray:
  """Returns a small buffer at a multiple of a cache line."""
  line = 64
  raw = np.zeros(nbytes + line, np.uint8)
  start = -raw.ctypes.data % line
  return raw[start : start + nbytes]
