"""Which texts is a mask chosen on, and which is it measured on?

Never the same ones: a text that occurs among both is only measured on. Chats
and plain texts are apart, because what stands at a text's first position
differs.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
import os
from typing import Any

from me_jax import errors
from me_jax import rows as rows_lib
from me_jax.analysis import prompts as prompts_lib
from me_jax.checkpoints import answers
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
  groups = _kinds('built-in', prompts_lib.builtin())
  return [
    _corpus(name, group[::2], group[1::2]) for name, group in groups.items()
  ]


def read(
  path: str | os.PathLike[str], *, choosing: bool = True
) -> list[Corpus]:
  """Reads what lies in a folder.

  Args:
    path: a folder that holds public sets under their usual names (GSM8K,
      MATH-500, C4, WikiText-2: `gsm8k/train.jsonl` and so on), of which those
      that are there are used; or a folder of other .jsonl and .txt files, or
      one such file, of which the first half is for choosing and the second for
      measuring. A file of chats and plain texts becomes two corpora.
    choosing: whether something to choose on is needed.

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
  found = _apart(known or _others(path))
  if choosing and not any(corpus.calibration for corpus in found):
    raise errors.MeJaxError(
      f'{path} holds nothing to choose a mask on: it needs .jsonl or .txt files'
      ' of at least two different texts, or gsm8k/train.jsonl beside'
      ' gsm8k/test.jsonl'
    )
  return sorted(found, key=lambda corpus: not corpus.chat)


def encode(
  tokenizer: Any,
  config: config_lib.ModelConfig,
  texts: Sequence[prompts_lib.Prompt],
  count: int,
  length: int,
) -> list[Encoded]:
  """Turns the first texts that fit, and have a token to predict, into ids.

  Args:
    tokenizer: of the model.
    config: of the model.
    texts: strings and chats.
    count: how many at most.
    length: a plain text is cut there; a longer chat is left out.

  Raises:
    MeJaxError: as `encoding.token_ids` does, whatever the texts' length.
  """
  length = min(length, config.context_length)
  result: list[Encoded] = []
  for text in texts:
    if len(result) == count:
      break
    before = 0
    if isinstance(text, str):
      # Beyond this many characters no cut text can reach.
      ids = _ids(tokenizer, config, text[: length * 64])[:length]
    else:
      ids = _ids(tokenizer, config, text)
      if len(ids) > length:
        continue
      before = _before_answer(tokenizer, config, text, ids)
    # The first token is never predicted.
    if len(ids) > max(before, 1):
      result.append((ids, before))
  return result


def _ids(
  tokenizer: Any, config: config_lib.ModelConfig, text: prompts_lib.Prompt
) -> list[int]:
  """Returns the token ids of a text of any length."""
  return encoding.token_ids(tokenizer, config, [text], any_length=True)[0]


def _before_answer(
  tokenizer: Any,
  config: config_lib.ModelConfig,
  chat: list[dict[str, str]],
  ids: list[int],
) -> int:
  """Returns how many tokens stand before a chat's last answer; 0 without."""
  if len(chat) < 2 or chat[-1]['role'] != 'assistant':
    return 0
  return answers.span(tokenizer, config, chat, ids, len(chat) - 1)[0]


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


def _others(path: str) -> list[Corpus]:
  """Reads any other files; names with an ending where one would be twice."""
  files = rows_lib.files(path)
  names = [os.path.basename(file) for file in files]
  stems = [os.path.splitext(name)[0] for name in names]
  return [
    corpus
    for file, name, stem in zip(files, names, stems, strict=True)
    for corpus in _halved(file, stem if stems.count(stem) == 1 else name)
  ]


def _halved(file: str, name: str) -> list[Corpus]:
  """Reads a file as corpora of this name."""
  return [
    _corpus(name, texts[: len(texts) // 2], texts[len(texts) // 2 :])
    for name, texts in _kinds(name, _texts(file)).items()
  ]


def _kinds(
  name: str, texts: list[prompts_lib.Prompt]
) -> dict[str, list[prompts_lib.Prompt]]:
  """Tells chats and plain texts apart: lists by name of a corpus."""
  groups: dict[str, list[prompts_lib.Prompt]] = {
    f'{name} chats': [text for text in texts if isinstance(text, list)],
    f'{name} texts': [text for text in texts if isinstance(text, str)],
  }
  return groups if all(groups.values()) else {name: texts}


def _apart(found: Sequence[Corpus]) -> list[Corpus]:
  """Takes the texts that any mask is measured on out of the others."""
  held_out = {json.dumps(text) for part in found for text in part.held_out}
  return [
    dataclasses.replace(
      part,
      calibration=tuple(
        text for text in part.calibration if json.dumps(text) not in held_out
      ),
    )
    for part in found
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
