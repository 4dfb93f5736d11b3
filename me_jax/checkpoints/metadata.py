"""What has been said about a model, beside its weights?

`save` and `export` take free metadata: where the model comes from, what was
done to it. A folder of `save` has them in its `me_jax.json`, one of `export` in
a file of their own, which other programs pass over.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
from typing import Any

from me_jax import errors
from me_jax import strict_json
from me_jax.checkpoints import orbax_card

# Not me_jax.json, which marks what `save` has written.
FILE = 'me_jax_metadata.json'
# What a folder of another kind that can be loaded holds.
_WEIGHTS = ('.safetensors', '.gguf')


def read_metadata(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the metadata that were given to `save` or `export`.

  Args:
    folder: that one of them has written, or any other checkpoint.

  Returns:
    The metadata; empty when nothing was said.

  Raises:
    MeJaxError: the folder is no checkpoint, or broken.

  Examples:
    >>> import me_jax
    >>> lm = me_jax.load('smollm2')
    >>> _ = me_jax.save(lm, 'kept', metadata={'from': 'PyPI'}, overwrite=True)
    >>> me_jax.read_metadata('kept')
    {'from': 'PyPI'}
  """
  folder = os.path.expanduser(os.fspath(folder))
  if not os.path.isdir(folder):
    raise errors.MeJaxError(f'{folder}: no such folder')
  try:
    present = os.listdir(folder)
  except OSError as error:
    raise errors.MeJaxError(
      f'cannot read {folder}: {error.strerror}'
    ) from error
  if orbax_card.is_saved(present):
    return orbax_card.read(folder)[1]
  if not any(name.endswith(_WEIGHTS) for name in present):
    raise errors.MeJaxError(
      f'{folder} is no checkpoint: give a folder that me_jax.save or'
      ' me_jax.export has written'
    )
  return beside(folder)


def beside(folder: str) -> dict[str, Any]:
  """Returns the metadata in a folder of `export`; empty without the file.

  Raises:
    MeJaxError: the file is broken.
  """
  path = os.path.join(folder, FILE)
  return strict_json.read(path) if os.path.lexists(path) else {}


def text(metadata: Mapping[str, Any]) -> str:
  """Returns what `beside` reads."""
  return json.dumps(metadata, indent=1, ensure_ascii=False) + '\n'


def check(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
  """Returns metadata, sure to come back as they are.

  Raises:
    MeJaxError: they would not.
  """
  if metadata is not None and not isinstance(metadata, Mapping):
    raise errors.MeJaxError(
      f'metadata is a {type(metadata).__name__}, must be a dict'
    )
  metadata = dict(metadata or {})
  try:
    data = json.dumps(metadata, allow_nan=False, ensure_ascii=False).encode()
  except (TypeError, ValueError, RecursionError) as error:
    raise errors.MeJaxError(
      f'metadata cannot be written as JSON: {error}'
    ) from error
  try:
    same = strict_json.parse(data, 'metadata') == metadata
  except errors.MeJaxError:
    same = False
  if not same:
    raise errors.MeJaxError(
      'metadata must be what JSON gives back unchanged: dicts with strings as'
      f' keys, lists, strings, numbers that are finite and have at most'
      f' {strict_json.MAX_DIGITS} digits, booleans and None'
    )
  return metadata
