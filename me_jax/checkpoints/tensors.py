"""What is a tensor that still lies in a file?

Readers describe a checkpoint as `StoredTensor`s: a name, a shape and a place
in a memory-mapped file. Nothing is read until rows are asked for, and pages
can be handed back at once, so a load needs little more memory than the
parameters themselves.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import mmap
import os

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
  """A file mapped for reading; its pages can be dropped again.

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
    except (OSError, ValueError) as error:
      raise errors.MeJaxError(f'cannot read {path}: {error}') from error
    self.bytes = np.frombuffer(self.buffer, np.uint8)

  def release(self, start: int, stop: int) -> None:
    """Drops this process's copy of bytes `[start, stop)`; they stay readable.

    Mapped pages count as resident memory until they are dropped, so without
    this a load would peak at parameters plus file.
    """
    if not hasattr(mmap, 'MADV_DONTNEED'):
      return
    start -= start % mmap.PAGESIZE
    if stop > start:
      self.buffer.madvise(mmap.MADV_DONTNEED, start, stop - start)


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

  def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Returns rows `[start, stop)` of the first axis.

    Args:
      start: first row.
      stop: row after the last; None for all that follow.

    Returns:
      `[stop - start, *shape[1:]]` floats: a read-only view of the file for
      plain types, float32 for quantised ones. Copy before `release`.
    """
    stop = self.shape[0] if stop is None else stop
    first, last = self._span(start, stop)
    values = self.decode(self.file.bytes[first:last])
    return values.reshape(stop - start, *self.shape[1:])

  def release(self, start: int = 0, stop: int | None = None) -> None:
    """Drops the memory that reading these rows took."""
    self.file.release(*self._span(start, stop))

  def _span(self, start: int, stop: int | None) -> tuple[int, int]:
    row = self.nbytes // self.shape[0]
    stop = self.shape[0] if stop is None else stop
    return self.offset + start * row, self.offset + stop * row


def plain_decoder(dtype: str) -> Callable[[np.ndarray], np.ndarray] | None:
  """Returns how to read a stored type that needs no decoding.

  Args:
    dtype: as safetensors and GGUF spell it.

  Returns:
    A function from flat bytes to a flat view; None for any other type.
  """
  numpy_dtype = PLAIN_DTYPES.get(dtype)
  return None if numpy_dtype is None else lambda raw: raw.view(numpy_dtype)
