"""What stands beside the parameters in a saved folder?

`me_jax.json` with the format's number, the configuration and free metadata,
and the tokenizer as transformers writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import json
import os
import re
import tempfile
from typing import Any

from me_jax import errors
from me_jax import strict_json
from me_jax.checkpoints import config_json
from me_jax.checkpoints import tokenizer as tokenizer_lib
from me_jax.models import config as config_lib

FILE = 'me_jax.json'
PARAMS = 'params'
TOKENIZER = 'tokenizer'
# Orbax's own file, and how it names a folder that is not complete.
ORBAX_FILE = '_CHECKPOINT_METADATA'
_TEMPORARY = '.orbax-checkpoint-tmp'
_FORMAT = 1
_ANNOTATIONS = re.compile(r" \[[\w ]+='.*$")


def files(
  config: config_lib.ModelConfig,
  metadata: Mapping[str, Any],
  tokenizer: Any,
) -> dict[str, bytes]:
  """Returns what to write, by path in the folder.

  Args:
    config: of the model.
    metadata: as `metadata.check` returns them.
    tokenizer: a `transformers` tokenizer, or None.

  Raises:
    MeJaxError: the tokenizer cannot be written.
  """
  from me_jax import __version__

  card = {
    'format': _FORMAT,
    'me_jax': __version__,
    'config': config_json.to_json(config),
    'metadata': dict(metadata),
  }
  text = json.dumps(card, indent=1, ensure_ascii=False) + '\n'
  return {FILE: text.encode()} | _tokenizer_files(tokenizer)


def read(folder: str) -> tuple[config_lib.ModelConfig, dict[str, Any]]:
  """Returns configuration and metadata of a folder.

  Args:
    folder: an Orbax checkpoint.

  Raises:
    MeJaxError: it is not complete, not ours, or broken.
  """
  if _TEMPORARY in os.path.basename(os.path.abspath(folder)):
    raise errors.MeJaxError(
      f'{folder} is what an interrupted save has left: it is not complete'
    )
  if not os.path.isfile(os.path.join(folder, ORBAX_FILE)):
    raise errors.MeJaxError(
      f'{folder} has no {ORBAX_FILE}: it is no folder that me_jax.save has'
      ' written'
    )
  mark = strict_json.read(os.path.join(folder, ORBAX_FILE))
  if type(mark.get('commit_timestamp_nsecs')) is not int:
    raise errors.MeJaxError(
      f'{folder} is not complete: its save was interrupted'
    )
  path = os.path.join(folder, FILE)
  if not os.path.isfile(path):
    raise errors.MeJaxError(
      f'{folder} is an Orbax checkpoint without {FILE}: only those that'
      ' me_jax.save has written can be loaded'
    )
  card = strict_json.read(path)
  if card.get('format') != _FORMAT or type(card['format']) is not int:
    raise errors.MeJaxError(
      f'{path} has format {card.get("format")!r:.40}, this version of me_jax'
      f' reads {_FORMAT}: use the version that wrote it'
    )
  metadata = card.get('metadata')
  if not isinstance(metadata, dict):
    raise errors.MeJaxError(f'{path}: metadata is no JSON object')
  return config_json.from_json(card.get('config'), path), metadata


def is_saved(present: Iterable[str]) -> bool:
  """Whether names in a folder show that it is an Orbax checkpoint."""
  return not {FILE, ORBAX_FILE}.isdisjoint(present)


def failure(what: str, error: Exception) -> errors.MeJaxError:
  """Returns one line for whatever Orbax has raised."""
  if isinstance(error, errors.MeJaxError):
    return error
  reason = ' '.join(str(error).split()) or type(error).__name__
  # TensorStore lists codes and its whole specification behind that.
  reason = _ANNOTATIONS.sub('', reason)
  # What the file system says comes last, after long paths.
  if len(reason) > 300:
    reason = f'{reason[:150]} ... {reason[-150:]}'
  return errors.MeJaxError(f'{what}: {reason}')


def _tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
  """Returns what transformers writes for a tokenizer, by relative path."""
  if tokenizer is None:
    return {}
  files = {}
  with tempfile.TemporaryDirectory() as folder:
    tokenizer_lib.save(tokenizer, folder)
    for parent, _, names in os.walk(folder):
      for name in names:
        path = os.path.join(parent, name)
        with open(path, 'rb') as file:
          relative = os.path.relpath(path, folder)
          files[os.path.join(TOKENIZER, relative)] = file.read()
  return files
