"""Which tokenizer belongs to a checkpoint's folder?

transformers is imported here and nowhere earlier: it takes a second. The class
is `PreTrainedTokenizerFast` and not `AutoTokenizer`, whose import brings torch
in where that is installed; both read `tokenizer.json` to the same ids.
"""

from __future__ import annotations

import json
import os
from typing import Any

from me_jax import errors

FAST_FILE = 'tokenizer.json'
# Files that only AutoTokenizer knows how to convert.
_SLOW_FILES = ('tokenizer.model', 'vocab.json', 'spiece.model', 'vocab.txt')


def load(folder: str) -> Any:
  """Returns the tokenizer of a Hugging Face folder.

  Args:
    folder: with `tokenizer.json`, or older files that transformers converts.

  Returns:
    A `transformers.PreTrainedTokenizerFast` with its chat template; None when
    the folder holds no tokenizer.

  Raises:
    MeJaxError: the files are there but broken.
  """
  present = set(os.listdir(folder))
  quiet()
  if FAST_FILE in present:
    from transformers import PreTrainedTokenizerFast as loader
  elif present.intersection(_SLOW_FILES):
    from transformers import AutoTokenizer as loader
  else:
    return None
  try:
    return loader.from_pretrained(folder, local_files_only=True)
  # The tokenizers library raises bare Exception on broken files, and what is
  # not even that where it did not expect them to be broken.
  except BaseException as error:
    panicked = type(error).__name__ == 'PanicException'
    if not isinstance(error, Exception) and not panicked:
      raise
    raise errors.MeJaxError(
      f'cannot read the tokenizer in {folder} (tokenizer.json,'
      f' tokenizer_config.json): {str(error)[:200]}'
    ) from error


def save(tokenizer: Any, folder: str) -> None:
  """Writes a tokenizer with its chat template, as `load` reads it.

  Args:
    tokenizer: a `transformers` tokenizer.
    folder: that exists.

  Raises:
    MeJaxError: it is none, or transformers cannot write it.
  """
  quiet()
  if not hasattr(tokenizer, 'save_pretrained'):
    raise errors.MeJaxError(
      f'the tokenizer is a {type(tokenizer).__name__}, which cannot be saved:'
      ' use one of transformers, or None'
    )
  try:
    tokenizer.save_pretrained(folder)
    _for_any_reader(os.path.join(folder, 'tokenizer_config.json'))
  # The tokenizers library raises bare Exception here, too.
  except Exception as error:
    raise errors.MeJaxError(
      f'cannot write the tokenizer: {str(error)[:200]}'
    ) from error


def _for_any_reader(path: str) -> None:
  """Names a class that transformers 4 knows, and forgets where we loaded."""
  with open(path, encoding='utf-8') as file:
    content = json.load(file)
  if content.get('tokenizer_class') == 'TokenizersBackend':
    content['tokenizer_class'] = 'PreTrainedTokenizerFast'
  for name in ('is_local', 'local_files_only'):
    content.pop(name, None)
  with open(path, 'w', encoding='utf-8') as file:
    json.dump(content, file, indent=2, ensure_ascii=False)
    file.write('\n')


def quiet() -> None:
  """Keeps transformers from advising to install torch: we need none of it."""
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
