"""How are tensors written as safetensors, without a second copy of them?

The header needs shapes and types only, so it is written first and the values
follow piece by piece, each made when its turn comes. Format:
https://huggingface.co/docs/safetensors (section "Format").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import json
import math
import os
from typing import Any

import ml_dtypes
import numpy as np

from me_jax import errors
from me_jax.checkpoints import safetensors

DTYPES = {
  np.dtype(np.float32): 'F32',
  np.dtype(np.float16): 'F16',
  np.dtype(ml_dtypes.bfloat16): 'BF16',
}
# The data begin at a multiple of this, as the reference implementation has it.
_ALIGNMENT = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """A tensor that is made when it is written.

  Attributes:
    name: in the file.
    shape: outermost axis first.
    dtype: one of `DTYPES`.
    pieces: returns arrays of this type whose values, one after the other, are
      the tensor's.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  pieces: Callable[[], Iterator[np.ndarray]] = dataclasses.field(repr=False)

  @property
  def nbytes(self) -> int:
    """Length in the file."""
    return math.prod(self.shape) * self.dtype.itemsize


def write_folder(
  folder: str,
  tensors: Sequence[Tensor],
  max_shard_bytes: int,
  progress: Callable[[int, int], None] | None = None,
) -> None:
  """Writes `model.safetensors`, or shards of it and their index.

  Args:
    folder: that exists.
    tensors: what to write, in this order.
    max_shard_bytes: of values in a file; a tensor that is larger has a file of
      its own.
    progress: called with bytes done and in total.
  """
  total = sum(tensor.nbytes for tensor in tensors)
  shards = _split(tensors, max_shard_bytes)
  names = [safetensors.SINGLE]
  if len(shards) > 1:
    stem = safetensors.SINGLE.removesuffix('.safetensors')
    names = [
      f'{stem}-{number:05}-of-{len(shards):05}.safetensors'
      for number in range(1, len(shards) + 1)
    ]
  done = 0
  for name, shard in zip(names, shards):
    for count in _write(os.path.join(folder, name), shard):
      done += count
      if progress is not None:
        progress(done, total)
  if len(shards) > 1:
    index = {
      'metadata': {'total_size': total},
      'weight_map': {
        tensor.name: name
        for name, shard in zip(names, shards)
        for tensor in shard
      },
    }
    path = os.path.join(folder, safetensors.INDEX)
    with open(path, 'w', encoding='utf-8') as file:
      json.dump(index, file, indent=2)
      file.write('\n')


def _split(
  tensors: Sequence[Tensor], max_shard_bytes: int
) -> list[list[Tensor]]:
  """Cuts a list into runs that fit into a file each."""
  shards: list[list[Tensor]] = [[]]
  size = 0
  for tensor in tensors:
    if shards[-1] and size + tensor.nbytes > max_shard_bytes:
      shards.append([])
      size = 0
    shards[-1].append(tensor)
    size += tensor.nbytes
  return shards


def _write(path: str, tensors: Sequence[Tensor]) -> Iterator[int]:
  """Writes one file; yields the bytes of each tensor when it is written."""
  # What transformers asks for: which layout of kernels this is.
  header: dict[str, object] = {'__metadata__': {'format': 'pt'}}
  end = 0
  for tensor in tensors:
    start, end = end, end + tensor.nbytes
    header[tensor.name] = {
      'dtype': DTYPES[tensor.dtype],
      'shape': list(tensor.shape),
      'data_offsets': [start, end],
    }
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % _ALIGNMENT)
  with open(path, 'wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for tensor in tensors:
      count = 0
      for piece in tensor.pieces():
        # An array is a buffer, which stubs say from Python 3.12 on only.
        data: Any = piece.reshape(-1).view(np.uint8)
        count += file.write(data)
      if count != tensor.nbytes:
        raise errors.MeJaxError(
          f'{tensor.name} has {count} bytes instead of {tensor.nbytes}'
        )
      yield count
