"""Which tokens are learnt, and which rows are too long?

Letter: T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple, cast

import numpy as np

from me_jax import errors
from me_jax.analysis import prompts as prompts_lib
from me_jax.checkpoints import answers as answers_lib
from me_jax.checkpoints import encoding
from me_jax.models import config as config_lib
from me_jax.training import records as records_lib

ANSWERS = ('last', 'all', 'whole')


class Example(NamedTuple):
  """A text.

  Attributes:
    tokens_T: int32 token ids.
    wanted_T: bool; the tokens that are learnt.
  """

  tokens_T: np.ndarray
  wanted_T: np.ndarray


class Pair(NamedTuple):
  """A prompt with two answers, each with the prompt before it.

  Attributes:
    chosen: the answer that is preferred.
    rejected: the other.
  """

  chosen: Example
  rejected: Example


class Prompt(NamedTuple):
  """What an answer is sampled for.

  Attributes:
    tokens_T: int32 token ids, up to where the answer begins.
    row: that the prompt was read from, for the reward.
  """

  tokens_T: np.ndarray
  row: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
  """The rows of a source as token ids.

  Attributes:
    kind: one of `records.KINDS`.
    length: tokens of a row at most.
    examples: an `Example`, `Pair` or `Prompt` each, in order.
    left_out: rows that were longer.
    longest: tokens of the longest row, left out or not.
  """

  kind: str
  length: int
  examples: tuple[Example | Pair | Prompt, ...]
  left_out: int
  longest: int


def encode(
  tokenizer: Any,
  config: config_lib.ModelConfig,
  records: Sequence[records_lib.Record],
  *,
  kind: str,
  length: int,
  answers: str = 'last',
) -> Encoded:
  """Turns rows into token ids and says which of them are learnt.

  A chat is written by the tokenizer's template. Without one its messages
  become `role: content` lines, with an EOS token at the end if there is one.
  Of a plain text all tokens are learnt; of a chat those of an answer, and the
  special token that ends it.

  Args:
    tokenizer: of the model.
    config: of the model.
    records: the rows, all of one kind.
    kind: that kind, one of `records.KINDS`.
    length: longer rows are left out; of a pair both texts must fit.
    answers: which of a chat's answers are learnt, the `last` or `all`; or
      `whole`, every token of the chat. Of a pair it is always the last answer,
      which is where the two differ.

  Raises:
    MeJaxError: an argument is out of range, a text cannot be encoded (its row
      is named), no row fits, or prompts of chats lack a template.
  """
  records_lib.check_kind(kind)
  if answers not in ANSWERS:
    raise errors.MeJaxError(
      f'answers is {answers!r}, must be one of {", ".join(ANSWERS)}.'
    )
  if tokenizer is None:
    raise errors.MeJaxError(
      'the checkpoint has no tokenizer: put its tokenizer.json beside it.'
    )
  if not 2 <= length <= config.context_length:
    raise errors.MeJaxError(
      f'rows of {length} tokens: must be from 2 to the context of'
      f' {config.context_length}.'
    )
  if not records:
    raise errors.MeJaxError('there is no row to train on.')
  read = {'texts': _text, 'pairs': _pair, 'prompts': _prompt}[kind]
  found = [read(tokenizer, config, record, answers) for record in records]
  sizes = [_size(example) for example in found]
  fitting = tuple(
    example for example, size in zip(found, sizes) if size <= length
  )
  if not fitting:
    raise errors.MeJaxError(
      f'no row fits into {length} tokens, the shortest has {min(sizes)} (see'
      f' {records[0].where}): raise the length.'
    )
  return Encoded(
    kind=kind,
    length=length,
    examples=fitting,
    left_out=len(found) - len(fitting),
    longest=max(sizes),
  )


def _size(example: Example | Pair | Prompt) -> int:
  """Returns how many tokens a row must have room for."""
  if isinstance(example, Pair):
    return max(len(text.tokens_T) for text in example)
  return len(example.tokens_T)


def _text(
  tokenizer: Any,
  config: config_lib.ModelConfig,
  record: records_lib.Record,
  answers: str,
) -> Example:
  """Encodes what is learnt."""
  (text,) = record.texts
  if isinstance(text, list):
    return _chat(tokenizer, config, text, record.where, answers)
  ids = _ids(tokenizer, config, text, record.where)
  return Example(np.array(ids, np.int32), np.ones(len(ids), bool))


def _pair(
  tokenizer: Any,
  config: config_lib.ModelConfig,
  record: records_lib.Record,
  answers: str,
) -> Pair:
  """Encodes a prompt with either answer."""
  del answers  # The two differ in the last one alone.
  return Pair(
    *(
      _chat(tokenizer, config, chat, record.where, 'last')
      for chat in cast(Sequence[list[dict[str, str]]], record.texts)
    )
  )


def _prompt(
  tokenizer: Any,
  config: config_lib.ModelConfig,
  record: records_lib.Record,
  answers: str,
) -> Prompt:
  """Encodes what is to be answered."""
  del answers  # There is none yet.
  (text,) = record.texts
  if isinstance(text, str) and tokenizer.chat_template:
    text = [{'role': 'user', 'content': text}]
  if isinstance(text, str):
    ids = _ids(tokenizer, config, text, record.where)
  else:
    ids = encoding.chat_ids(
      tokenizer, config, text, any_length=True, name=record.where
    )
  return Prompt(np.array(ids, np.int32), record.row)


def _chat(
  tokenizer: Any,
  config: config_lib.ModelConfig,
  chat: records_lib.Chat,
  where: str,
  answers: str,
) -> Example:
  """Encodes a chat of which answers, or all tokens, are learnt."""
  ids = _ids(tokenizer, config, chat, where)
  wanted_T = np.full(len(ids), answers == 'whole')
  turns = [i for i, turn in enumerate(chat) if turn['role'] == 'assistant']
  few = {'last': turns[-1:], 'all': turns, 'whole': []}[answers]
  for turn in few:
    start, stop = answers_lib.span(tokenizer, config, chat, ids, turn)
    wanted_T[start : answers_lib.through_end(tokenizer, ids, stop)] = True
  if not wanted_T.any():
    raise errors.MeJaxError(
      f'{where}: the chat template leaves nothing of the answer.'
    )
  # Where no template ends an answer, it would be learnt without an end.
  end = tokenizer.eos_token_id
  ended = tokenizer.chat_template or end is None or ids[-1] == end
  if not ended and chat[-1]['role'] == 'assistant':
    ids, wanted_T = [*ids, end], np.append(wanted_T, True)
  return Example(np.array(ids, np.int32), wanted_T)


def _ids(
  tokenizer: Any,
  config: config_lib.ModelConfig,
  text: prompts_lib.Prompt,
  where: str,
) -> list[int]:
  return encoding.token_ids(
    tokenizer, config, [text], any_length=True, names=[where]
  )[0]
