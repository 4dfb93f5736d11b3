"""Which metadata and tensors does a GGUF file hold?

A strict reader over a memory map: every count, length and offset is checked
against the file before it is believed. The `gguf` package's own reader takes
2.8 s on the default model's vocabulary (this one: 0.05 s) and trusts counts;
only its dequantisation is used here, of types that are not common. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
import struct
from typing import Any

import numpy as np

from me_jax import errors
from me_jax.checkpoints import dequantise
from me_jax.checkpoints import tensors as tensors_lib

# Type number: (name, values per block, bytes per block), as ggml defines them.
TENSOR_TYPES = {
  0: ('F32', 1, 4),
  1: ('F16', 1, 2),
  2: ('Q4_0', 32, 18),
  3: ('Q4_1', 32, 20),
  6: ('Q5_0', 32, 22),
  7: ('Q5_1', 32, 24),
  8: ('Q8_0', 32, 34),
  10: ('Q2_K', 256, 84),
  11: ('Q3_K', 256, 110),
  12: ('Q4_K', 256, 144),
  13: ('Q5_K', 256, 176),
  14: ('Q6_K', 256, 210),
  16: ('IQ2_XXS', 256, 66),
  17: ('IQ2_XS', 256, 74),
  18: ('IQ3_XXS', 256, 98),
  19: ('IQ1_S', 256, 50),
  20: ('IQ4_NL', 32, 18),
  21: ('IQ3_S', 256, 110),
  22: ('IQ2_S', 256, 82),
  23: ('IQ4_XS', 256, 136),
  28: ('F64', 1, 8),
  29: ('IQ1_M', 256, 56),
  30: ('BF16', 1, 2),
  34: ('TQ1_0', 256, 54),
  35: ('TQ2_0', 256, 66),
  39: ('MXFP4', 32, 17),
}
_OTHER_TYPES = {
  9: 'Q8_1',
  15: 'Q8_K',
  24: 'I8',
  25: 'I16',
  26: 'I32',
  27: 'I64',
  40: 'NVFP4',
  41: 'Q1_0',
}
# Metadata type number: numpy type. 8 is a string, 9 an array.
_SCALARS = {
  0: 'u1',
  1: 'i1',
  2: '<u2',
  3: '<i2',
  4: '<u4',
  5: '<i4',
  6: '<f4',
  7: '?',
  10: '<u8',
  11: '<i8',
  12: '<f8',
}
_STRING, _ARRAY = 8, 9
_MAX_NESTING = 4
_MAX_DIMS = 4
_LENGTH = struct.Struct('<Q')


@dataclasses.dataclass(frozen=True, eq=False)
class GgufFile:
  """What a GGUF file holds.

  Attributes:
    path: where it lies.
    metadata: numbers, strings, bools; arrays are lists or numpy arrays.
      float32 numbers come as the shortest decimal that rounds to them: 1e-5.
    tensors: by name, unread.
  """

  path: str
  metadata: dict[str, Any] = dataclasses.field(repr=False)
  tensors: dict[str, tensors_lib.StoredTensor] = dataclasses.field(repr=False)


def open_file(path: str) -> GgufFile:
  """Reads the header of a GGUF file.

  Args:
    path: of a file of version 2 or 3, little-endian.

  Raises:
    MeJaxError: the file is truncated, lies about itself or holds a tensor type
      that cannot be read.
  """
  cursor = _Cursor(tensors_lib.MappedFile(path))
  if cursor.take(4, 'magic') != b'GGUF':
    raise errors.MeJaxError(
      f'{path} is not a GGUF file, and nothing else that can be loaded: a'
      ' checkpoint is a .gguf file or a folder with safetensors'
    )
  version = cursor.number('<u4')
  if version not in (2, 3):
    hint = ' (big-endian?)' if version >= 1 << 16 else ''
    raise errors.MeJaxError(
      f'{path} has GGUF version {version}{hint}; versions 2 and 3 work:'
      ' convert it again with a current llama.cpp'
    )
  # The shortest possible entries take 24 and 13 bytes.
  tensor_count = cursor.count(24, 'tensors')
  metadata_count = cursor.count(13, 'metadata entries')
  metadata = {}
  for _ in range(metadata_count):
    key = cursor.string()
    if key in metadata:
      raise errors.MeJaxError(f'{path}: metadata key {key!r} appears twice')
    metadata[key] = cursor.value(cursor.number('<u4'), 0)
  entries = [_read_entry(cursor) for _ in range(tensor_count)]
  return GgufFile(path, metadata, _place(cursor, metadata, entries))


def _read_entry(cursor: _Cursor) -> tuple[str, list[int], int, int]:
  """Reads one tensor's name, dimensions (innermost first), type, offset."""
  name = cursor.string()
  rank = cursor.number('<u4')
  if not 1 <= rank <= _MAX_DIMS:
    raise cursor.error(f'tensor {name[:80]!r} has {rank} dimensions')
  dims = [cursor.number('<u8') for _ in range(rank)]
  return name, dims, cursor.number('<u4'), cursor.number('<u8')


def _place(
  cursor: _Cursor,
  metadata: dict[str, Any],
  entries: list[tuple[str, list[int], int, int]],
) -> dict[str, tensors_lib.StoredTensor]:
  """Checks that tensors lie in the file, apart from each other."""
  file = cursor.file
  alignment = metadata.get('general.alignment', 32)
  # A multiple of 8 by the format's description, a power of 2 by its readers.
  if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
    raise cursor.error(f'general.alignment is {alignment!r}')
  begin = -(-cursor.position // alignment) * alignment
  tensors = {}
  for name, dims, type_number, offset in entries:
    if name in tensors:
      raise cursor.error(f'tensor {name[:80]!r} appears twice')
    if type_number not in TENSOR_TYPES:
      known = ', '.join(type_name for type_name, _, _ in TENSOR_TYPES.values())
      raise cursor.error(
        f'tensor {name[:80]!r} is stored as'
        f' {_OTHER_TYPES.get(type_number, f"type {type_number}")}, which'
        f' cannot be read; these can: {known}'
      )
    type_name, block, block_bytes = TENSOR_TYPES[type_number]
    if not all(dims) or dims[0] % block or offset % alignment:
      raise cursor.error(
        f'tensor {name[:80]!r} of shape {dims[::-1]} at offset {offset} does'
        f' not fit {type_name} blocks of {block}'
      )
    # Rows of the first axis are whole blocks; a vector's would be parts.
    decodable = len(dims) > 1 or block == 1
    nbytes = math.prod(dims) // block * block_bytes
    if begin + offset + nbytes > file.size:
      raise cursor.error(
        f'tensor {name[:80]!r} ends at byte {begin + offset + nbytes}, the'
        f' file at {file.size}: the download is incomplete'
      )
    tensors[name] = tensors_lib.StoredTensor(
      name=name,
      shape=tuple(dims[::-1]),
      dtype=type_name,
      file=file,
      offset=begin + offset,
      nbytes=nbytes,
      decode=(
        tensors_lib.plain_decoder(type_name)
        or dequantise.FAST.get(type_name)
        or _dequantise(type_number)
        if decodable
        else None
      ),
    )
  end = begin
  for tensor in sorted(tensors.values(), key=lambda t: t.offset):
    if tensor.offset < end:
      raise cursor.error(f'tensor {tensor.name[:80]!r} overlaps another')
    end = tensor.offset + tensor.nbytes
  return tensors


def _dequantise(type_number: int) -> Callable[[np.ndarray], np.ndarray]:
  """Returns the function from blocks (flat uint8) to flat float32."""

  def decode(raw: np.ndarray) -> np.ndarray:
    import gguf

    # As one row: the package works on 16 rows at a time, which for short rows
    # means many small steps under the interpreter lock.
    kind = gguf.GGMLQuantizationType(type_number)
    with np.errstate(all='ignore'):
      return gguf.quants.dequantize(raw.reshape(1, -1), kind).reshape(-1)

  return decode


class _Cursor:
  """Reads the header from front to back and never past the end."""

  def __init__(self, file: tensors_lib.MappedFile):
    self.file = file
    self.position = 0

  def error(self, what: str) -> errors.MeJaxError:
    return errors.MeJaxError(f'{self.file.path}: {what}')

  def take(self, length: int, what: str) -> bytes:
    """Returns the next `length` bytes."""
    start, stop = self.position, self.position + length
    if stop > self.file.size:
      raise self.error(
        f'{what} at byte {start} needs {length} bytes, the file has'
        f' {self.file.size}: it is truncated or corrupt'
      )
    self.position = stop
    return self.file.buffer[start:stop]

  def number(self, dtype: str) -> Any:
    """Returns the next number as a plain Python value."""
    raw = self.take(np.dtype(dtype).itemsize, 'a number')
    value = np.frombuffer(raw, dtype)[0]
    # 1e-5 is stored as float32(1e-5); str() gives the decimal that was meant.
    return float(str(value)) if dtype == '<f4' else value.item()

  def count(self, smallest: int, what: str) -> int:
    """Returns a count of items that take at least `smallest` bytes each."""
    count = self.number('<u8')
    if count * smallest > self.file.size - self.position:
      raise self.error(
        f'claims {count} {what}, more than its {self.file.size} bytes can'
        ' hold: it is truncated or corrupt'
      )
    return count

  def string(self) -> str:
    return self.strings(1)[0]

  def strings(self, count: int) -> list[str]:
    """Returns the next strings; a tight loop, vocabularies are long."""
    buffer, size, position = self.file.buffer, self.file.size, self.position
    result = []
    try:
      for _ in range(count):
        start = position + 8
        position = start + _LENGTH.unpack_from(buffer, position)[0]
        if position > size:
          raise self.error('a string is longer than the file: it is corrupt')
        result.append(str(buffer[start:position], 'utf-8'))
    except struct.error as error:
      raise self.error('ends within a string: it is truncated') from error
    except UnicodeDecodeError as error:
      raise self.error(f'a string is not UTF-8 ({error.reason})') from error
    self.position = position
    return result

  def value(self, kind: int, depth: int) -> Any:
    """Returns the next metadata value of type number `kind`."""
    if kind in _SCALARS:
      return self.number(_SCALARS[kind])
    if kind == _STRING:
      return self.string()
    if kind != _ARRAY or depth >= _MAX_NESTING:
      raise self.error(f'metadata type {kind} at depth {depth} is not known')
    kind = self.number('<u4')
    if kind in _SCALARS:
      dtype = np.dtype(_SCALARS[kind])
      count = self.count(dtype.itemsize, 'numbers')
      return np.frombuffer(self.take(count * dtype.itemsize, 'array'), dtype)
    count = self.count(8, 'array items')
    if kind == _STRING:
      return self.strings(count)
    return [self.value(kind, depth + 1) for _ in range(count)]
