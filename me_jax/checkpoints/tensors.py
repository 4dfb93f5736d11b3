"""What is a tensor that still lies in a file?

Readers describe a checkpoint as `StoredTensor`s: a name, a shape and a place
in a memory-mapped file. Nothing is read until rows are asked for. Whole models
are read piece by piece into a small buffer and not through the map: its pages
would count as memory, and a file that shrinks meanwhile would be a crash.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import mmap
import os
from typing import Any, cast
import weakref

import ml_dtypes
import numpy as np

from me_jax import errors

# Stored types that need no decoding, as safetensors and GGUF both spell them.
PLAIN_DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}


class MappedFile:
  """A file mapped for reading.

  Attributes:
    path: where the file lies.
    size: its length in bytes, at least 1.
    buffer: the map, for `struct` and slices.
    bytes: the same as a read-only `[size]` uint8 array.
  """

  def __init__(self, path: str):
    """Maps `path`; raises MeJaxError when it is empty or unreadable."""
    self.path = path
    # Opening a pipe would wait for ever.
    if os.path.exists(path) and not os.path.isfile(path):
      raise errors.MeJaxError(f'{path} is not a file')
    try:
      with open(path, 'rb') as file:
        self.size = os.fstat(file.fileno()).st_size
        if not self.size:
          raise errors.MeJaxError(f'{path} is empty: download it again')
        self.buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
    except (OSError, ValueError) as error:
      raise errors.MeJaxError(f'cannot read {path}: {error}') from error
    self.bytes = np.frombuffer(self.buffer, np.uint8)

  def copy(self, start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
    """Copies bytes `[start, stop)` to the front of `buffer`; returns that."""
    target = buffer[: stop - start]
    if not hasattr(os, 'preadv'):
      target[:] = self.bytes[start:stop]
      return target
    while start < stop:
      try:
        # An array is a buffer, which stubs say from Python 3.12 on only.
        left = cast(Any, target[start - stop :])
        count = os.preadv(self._descriptor, [left], start)
      except OSError as error:
        raise errors.MeJaxError(
          f'cannot read {self.path}: {error.strerror}'
        ) from error
      if not count:
        raise errors.MeJaxError(
          f'{self.path} became shorter while it was read: load it again'
        )
      start += count
    return target


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
  """A tensor in a file.

  Attributes:
    name: as the checkpoint spells it.
    shape: of the decoded tensor, outermost axis first.
    dtype: stored type as the format spells it, such as `BF16` or `Q4_1`.
    file: where it lies.
    offset: its first byte in the file.
    nbytes: its stored length; a whole number of bytes a row.
    decode: turns a flat uint8 array of whole rows into a flat float array; None
      when the type is not one that can be loaded.
  """

  name: str
  shape: tuple[int, ...]
  dtype: str
  file: MappedFile = dataclasses.field(repr=False)
  offset: int
  nbytes: int
  decode: Callable[[np.ndarray], np.ndarray] | None = dataclasses.field(
    repr=False
  )

  @property
  def row_nbytes(self) -> int:
    """Stored length of a row of the first axis."""
    return self.nbytes // self.shape[0]

  def read(
    self,
    start: int = 0,
    stop: int | None = None,
    buffer: np.ndarray | None = None,
  ) -> np.ndarray:
    """Returns rows `[start, stop)` of the first axis.

    Args:
      start: first row.
      stop: row after the last; None for all that follow.
      buffer: uint8, as long as the stored rows at least.

    Returns:
      `[stop - start, *shape[1:]]` floats: float32 for quantised types; for
      plain ones a view of `buffer`, or of the file when there is none.
    """
    stop = self.shape[0] if stop is None else min(stop, self.shape[0])
    first = self.offset + start * self.row_nbytes
    last = self.offset + stop * self.row_nbytes
    if buffer is None:
      raw = self.file.bytes[first:last]
    else:
      raw = self.file.copy(first, last, buffer)
    assert self.decode is not None  # Kinds without it are refused before.
    return self.decode(raw).reshape(stop - start, *self.shape[1:])


def plain_decoder(dtype: str) -> Callable[[np.ndarray], np.ndarray] | None:
  """Returns how to read a stored type that needs no decoding.

  Args:
    dtype: as safetensors and GGUF spell it.

  Returns:
    A function from flat bytes to a flat view; None for any other type.
  """
  numpy_dtype = PLAIN_DTYPES.get(dtype)
  return None if numpy_dtype is None else lambda raw: raw.view(numpy_dtype)
