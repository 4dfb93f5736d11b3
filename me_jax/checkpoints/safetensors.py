"""Which tensors does a safetensors file, or a folder of shards, hold?

The header is eight bytes of length and JSON: small enough to check here word
by word, so that a lying file is refused before anything is allocated, and
plain enough that tensors are views of the memory map. Format:
https://huggingface.co/docs/safetensors (section "Format").
"""

from __future__ import annotations

import math
import os
from typing import Any

from me_jax import errors
from me_jax import strict_json
from me_jax.checkpoints import tensors as tensors_lib

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
# The reference implementation's own bound on the header.
_MAX_HEADER = 100_000_000
_MAX_DIMS = 16
_BITS = {
  'F64': 64,
  'F32': 32,
  'F16': 16,
  'BF16': 16,
  'I64': 64,
  'I32': 32,
  'I16': 16,
  'I8': 8,
  'U64': 64,
  'U32': 32,
  'U16': 16,
  'U8': 8,
  'BOOL': 8,
  'C64': 64,
  'F8_E4M3': 8,
  'F8_E5M2': 8,
  'F8_E8M0': 8,
  'F8_E4M3FNUZ': 8,
  'F8_E5M2FNUZ': 8,
  'F6_E2M3': 6,
  'F6_E3M2': 6,
  'F4': 4,
}


def open_folder(folder: str) -> dict[str, tensors_lib.StoredTensor]:
  """Returns the tensors of a Hugging Face folder, by name, unread.

  Args:
    folder: holds `model.safetensors.index.json` with its shards, or one
      `*.safetensors` file.

  Raises:
    MeJaxError: no weights, or the index or a shard is broken.
  """
  index = os.path.join(folder, INDEX)
  if os.path.exists(index):
    return _open_shards(folder, index)
  single = os.path.join(folder, SINGLE)
  if os.path.exists(single):
    return open_file(single)
  files = sorted(f for f in os.listdir(folder) if f.endswith('.safetensors'))
  if len(files) != 1:
    raise errors.MeJaxError(
      f'{folder} holds {len(files)} *.safetensors files but neither'
      f' {SINGLE} nor {INDEX}: which belong to the model is not said'
    )
  return open_file(os.path.join(folder, files[0]))


def open_file(path: str) -> dict[str, tensors_lib.StoredTensor]:
  """Returns the tensors of one file, by name, unread.

  Args:
    path: a safetensors file.

  Raises:
    MeJaxError: the header is not valid, or does not match the file's length.
  """
  file = tensors_lib.MappedFile(path)
  length = int.from_bytes(file.buffer[:8], 'little')
  if file.size < 8 or length > min(file.size - 8, _MAX_HEADER):
    raise errors.MeJaxError(
      f'{path} is truncated or not a safetensors file: its header claims'
      f' {length} bytes, the file has {file.size}'
    )
  header = strict_json.parse(file.buffer[8 : 8 + length], f'header of {path}')
  notes = header.pop('__metadata__', {})
  if not isinstance(notes, dict) or not all(
    isinstance(note, str) for note in notes.values()
  ):
    raise errors.MeJaxError(f'{path}: __metadata__ does not hold strings')
  begin = 8 + length
  tensors = {
    name: _tensor(file, begin, name, entry) for name, entry in header.items()
  }
  # Tensors must cover the data exactly: no overlap, no hole, no remainder.
  end = begin
  for tensor in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
    if tensor.offset != end:
      raise errors.MeJaxError(
        f'{path}: tensor {tensor.name!r} starts at byte {tensor.offset}, but'
        f' the one before ends at {end}: the file is corrupt'
      )
    end += tensor.nbytes
  if end != file.size:
    raise errors.MeJaxError(
      f'{path} has {file.size} bytes but its header describes {end}:'
      ' the download is incomplete or corrupt'
    )
  return tensors


def _tensor(
  file: tensors_lib.MappedFile, begin: int, name: str, entry: Any
) -> tensors_lib.StoredTensor:
  """Checks one header entry; offsets in it count from byte `begin`."""
  where = f'{file.path}: tensor {name[:80]!r}'
  try:
    dtype, shape, (start, stop) = (
      entry['dtype'],
      entry['shape'],
      entry['data_offsets'],
    )
    sizes = [start, stop, *shape]
  except (TypeError, KeyError, ValueError) as error:
    raise errors.MeJaxError(f'{where} has a malformed entry') from error
  # type() and not isinstance(), because True is an int.
  if any(type(n) is not int or n < 0 for n in sizes) or len(shape) > _MAX_DIMS:
    raise errors.MeJaxError(f'{where} has a malformed shape or offset')
  if not isinstance(dtype, str) or dtype not in _BITS:
    raise errors.MeJaxError(f'{where} has the unknown type {str(dtype)[:20]!r}')
  if begin + stop > file.size:
    raise errors.MeJaxError(
      f'{where} ends at byte {begin + stop}, the file at {file.size}: the'
      ' download is incomplete'
    )
  if (stop - start) * 8 != math.prod(shape) * _BITS[dtype]:
    raise errors.MeJaxError(
      f'{where} has {stop - start} bytes, which do not fit {dtype} {shape}'
    )
  return tensors_lib.StoredTensor(
    name=name,
    shape=tuple(shape),
    dtype=dtype,
    file=file,
    offset=begin + start,
    nbytes=stop - start,
    decode=tensors_lib.plain_decoder(dtype),
  )


def _open_shards(
  folder: str, index: str
) -> dict[str, tensors_lib.StoredTensor]:
  """Opens every shard that the index names and checks one against the other."""
  places = strict_json.read(index).get('weight_map')
  if not isinstance(places, dict) or not places:
    raise errors.MeJaxError(f'{index} has no weight_map')
  shards = {}
  for shard in dict.fromkeys(map(str, places.values())):
    # A plain file name cannot lead out of the folder.
    plain = shard == os.path.basename(shard) and not set(shard) & set('/\\:\0')
    if not plain or not shard.endswith('.safetensors'):
      raise errors.MeJaxError(
        f'{index} names the shard {shard[:80]!r}, which is not the name of a'
        ' *.safetensors file in the same folder'
      )
    if not os.path.exists(os.path.join(folder, shard)):
      raise errors.MeJaxError(
        f'{index} names the shard {shard}, which is missing: download it'
      )
    shards[shard] = open_file(os.path.join(folder, shard))
  for shard, found in shards.items():
    for name in found:
      if places.get(name) != shard:
        raise errors.MeJaxError(
          f'{shard} holds {name!r}, which {INDEX} places in'
          f' {str(places.get(name))[:80]!r}'
        )
  for name, shard in places.items():
    if name not in shards[str(shard)]:
      raise errors.MeJaxError(
        f'{INDEX} places {name[:80]!r} in {shard}, which does not hold it'
      )
  return {name: shards[shard][name] for name, shard in places.items()}
