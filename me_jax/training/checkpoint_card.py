"""What must be known of a checkpoint before it is read?

A checkpoint is a folder named by its step. Beside what Orbax writes it holds a
card, `me_jax.json`: the step, the metric, the run's own JSON, the leaves, and
length and CRC of every file. Orbax itself does not notice a flipped bit in an
array, so the files are compared with the card before anything is read. The card
is the last file to be written, and carries a checksum of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import os
from typing import Any
import zlib

from me_jax import errors
from me_jax import strict_json

FILE = 'me_jax.json'
_FORMAT = 1
# Orbax changes these when it renames the folder; nothing is read from them.
_OF_ORBAX = ('_CHECKPOINT_METADATA', 'commit_success.txt')
_PIECE = 1 << 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
  """What a checkpoint says of itself.

  Attributes:
    step: how many steps were done.
    metric: what says how good it is, lower is better; None if not measured.
    extra: what the run keeps beside its arrays.
    leaves: type and shape of each array, such as `float32[2, 3]`, by path.
    files: length and CRC-32 of each file, by path in the folder.
  """

  step: int
  metric: float | None
  extra: dict[str, Any]
  leaves: dict[str, str]
  files: dict[str, list[int]]


def write(
  folder: str,
  step: int,
  metric: float | None,
  extra: Mapping[str, Any],
  leaves: Mapping[str, str],
) -> None:
  """Writes the card of a folder whose other files are complete."""
  card = Card(
    step=step,
    metric=metric,
    extra=dict(extra),
    leaves=dict(leaves),
    files={name: _measure(folder, name) for name in _names(folder)},
  )
  content = {'format': _FORMAT, **dataclasses.asdict(card)}
  content['crc'] = _crc(content)
  with open(os.path.join(folder, FILE), 'w', encoding='utf-8') as file:
    json.dump(content, file, indent=1)
    file.flush()
    os.fsync(file.fileno())


def read(folder: str) -> Card:
  """Returns the card of a folder, whose files are not looked at.

  Raises:
    MeJaxError: there is none, or it is damaged.
  """
  path = os.path.join(folder, FILE)
  content = strict_json.read(path)
  if content.pop('crc', None) != _crc(content):
    raise errors.MeJaxError(f'{path} is damaged')
  if content.pop('format', None) != _FORMAT:
    raise errors.MeJaxError(
      f'{path} was written by another version of me_jax: use that one'
    )
  return Card(**content)


def check_files(folder: str, card: Card) -> None:
  """Raises MeJaxError unless every file is as it was written."""
  for name, (length, crc) in card.files.items():
    try:
      found = _measure(folder, name)
    except OSError as error:
      raise errors.MeJaxError(
        f'{name} cannot be read: {error.strerror}'
      ) from error
    if found[0] != length:
      raise errors.MeJaxError(f'{name} has {found[0]} bytes of {length}')
    if found[1] != crc:
      raise errors.MeJaxError(f'{name} has other bytes than were written')


def _names(folder: str) -> list[str]:
  """Returns the files of a folder, by path in it."""
  found = []
  for parent, _, names in os.walk(folder):
    found += [os.path.relpath(os.path.join(parent, n), folder) for n in names]
  return sorted(set(found) - {FILE, *_OF_ORBAX})


def _measure(folder: str, name: str) -> list[int]:
  """Returns length and CRC-32 of a file; 16 MiB of memory, 4 GB a second."""
  length, crc = 0, 0
  with open(os.path.join(folder, name), 'rb', buffering=0) as file:
    while piece := file.read(_PIECE):
      length += len(piece)
      crc = zlib.crc32(piece, crc)
  return [length, crc]


def _crc(content: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(content).encode())
