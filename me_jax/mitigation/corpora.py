"""Which texts is a mask chosen on, and which is it measured on?

Never the same ones. Chats and plain texts are apart, because what stands at a
text's first position differs.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from me_jax import errors
from me_jax.analysis import prompts as prompts_lib
from me_jax.checkpoints import encoding
from me_jax.models import config as config_lib

# A line of a plain text file that is shorter is a heading, not a text.
_LEAST_CHARACTERS = 200
# Of public sets under their usual names: a name, the file to choose on (None:
# none may be) and the file to measure on. One file for both is halved.
_KNOWN = (
  ('GSM8K', 'gsm8k/train.jsonl', 'gsm8k/test.jsonl'),
  ('MATH-500', None, 'math500/test.jsonl'),
  ('C4', 'text/c4_demo.jsonl', 'text/c4_demo.jsonl'),
  ('WikiText-2', 'wikitext2/valid.txt', 'wikitext2/valid.txt'),
)
_ENDINGS = ('.jsonl', '.txt')

# Token ids of a text, and how many come before the answer that it ends with.
Encoded = tuple[list[int], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
  """Texts of one kind.

  Attributes:
    name: of the corpus.
    chat: whether they are chats.
    calibration: what a mask may be chosen on; empty for some.
    held_out: what it is measured on.
  """

  name: str
  chat: bool
  calibration: tuple[Any, ...]
  held_out: tuple[Any, ...]


def builtin() -> list[Corpus]:
  """Returns the built-in prompts, a few of each kind: every other calibrates."""
  texts = prompts_lib.builtin()
  groups = {
    'built-in chats': [text for text in texts if isinstance(text, list)],
    'built-in texts': [text for text in texts if isinstance(text, str)],
  }
  return [
    _corpus(name, group[::2], group[1::2]) for name, group in groups.items()
  ]


def read(path: str | os.PathLike[str]) -> list[Corpus]:
  """Reads what lies in a folder.

  Args:
    path: a folder that holds public sets under their usual names (GSM8K,
      MATH-500, C4, WikiText-2: `gsm8k/train.jsonl` and so on), of which those
      that are there are used; or a folder of other .jsonl and .txt files, or
      one such file, of which the first half is for choosing and the second for
      measuring.

  Returns:
    The corpora, chats first.

  Raises:
    MeJaxError: there is nothing to read, or a file is not sound.
  """
  path = os.path.expanduser(os.fspath(path))
  if not os.path.exists(path):
    raise errors.MeJaxError(f'{path}: no such file or folder')
  known = [
    _known(path, *entry)
    for entry in _KNOWN
    if os.path.isfile(os.path.join(path, entry[-1]))
  ]
  found = known or [_halved(file) for file in _files(path)]
  if not any(corpus.calibration for corpus in found):
    raise errors.MeJaxError(
      f'{path} holds nothing to choose a mask on: it needs .jsonl or .txt files'
      ' of at least two texts, or gsm8k/train.jsonl'
    )
  return sorted(found, key=lambda corpus: not corpus.chat)


def encode(
  tokenizer: Any,
  config: config_lib.ModelConfig,
  texts: Sequence[prompts_lib.Prompt],
  count: int,
  length: int,
) -> list[Encoded]:
  """Turns the first texts that fit into token ids.

  Args:
    tokenizer: of the model.
    config: of the model.
    texts: strings and chats.
    count: how many at most.
    length: a plain text is cut there; a longer chat is left out.

  Raises:
    MeJaxError: as `encoding.token_ids` does.
  """
  length = min(length, config.context_length)
  result: list[Encoded] = []
  for text in texts:
    if len(result) == count:
      break
    if isinstance(text, str):
      # Beyond this many characters no cut text can reach.
      part = text[: length * 64]
      ids = encoding.token_ids(tokenizer, config, [part])[0][:length]
      result.append((ids, 0))
      continue
    ids = encoding.token_ids(tokenizer, config, [text])[0]
    if len(ids) <= length:
      result.append((ids, _before_answer(tokenizer, config, text, ids)))
  return [(ids, before) for ids, before in result if len(ids) > before + 1]


def _before_answer(
  tokenizer: Any,
  config: config_lib.ModelConfig,
  chat: list[dict[str, str]],
  ids: list[int],
) -> int:
  """Returns how many tokens stand before a chat's last answer; 0 without."""
  if len(chat) < 2 or chat[-1]['role'] != 'assistant':
    return 0
  # The answer is where a chat with another answer first differs.
  other = [*chat[:-1], {'role': 'assistant', 'content': '\n§'}]
  others = encoding.token_ids(tokenizer, config, [other])[0]
  same = (a == b for a, b in zip(ids, others))
  return next((i for i, equal in enumerate(same) if not equal), 0)


def _known(
  folder: str, name: str, calibration: str | None, held_out: str
) -> Corpus:
  """Reads one of the public sets."""
  texts = _texts(os.path.join(folder, held_out))
  if calibration == held_out:
    middle = len(texts) // 2
    return _corpus(name, texts[:middle], texts[middle:])
  chosen_on = os.path.join(folder, calibration) if calibration else ''
  return _corpus(
    name, _texts(chosen_on) if os.path.isfile(chosen_on) else [], texts
  )


def _halved(file: str) -> Corpus:
  """Reads any other file."""
  texts = _texts(file)
  name = os.path.splitext(os.path.basename(file))[0]
  middle = len(texts) // 2
  return _corpus(name, texts[:middle], texts[middle:])


def _files(path: str) -> list[str]:
  """Returns the files that may hold texts."""
  if os.path.isfile(path):
    return [path]
  return [
    os.path.join(path, name)
    for name in sorted(os.listdir(path))
    if name.endswith(_ENDINGS)
  ]


def _texts(file: str) -> list[prompts_lib.Prompt]:
  """Reads the texts of a file."""
  texts = prompts_lib.read(file)
  if file.endswith('.jsonl'):
    return texts
  long = [text for text in texts if len(text) >= _LEAST_CHARACTERS]
  return long or texts


def _corpus(name: str, calibration: list[Any], held_out: list[Any]) -> Corpus:
  """Returns a corpus, which is of chats if its first text is one."""
  return Corpus(
    name=name,
    chat=isinstance((calibration + held_out)[0], list),
    calibration=tuple(calibration),
    held_out=tuple(held_out),
  )
