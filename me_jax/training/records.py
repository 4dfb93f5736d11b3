"""What does a row of a training file hold?

There are three kinds of training data. `texts` are learnt: a plain text, or a
chat of which an answer is learnt. `pairs` are a prompt with two answers, one of
which is preferred. `prompts` wait for an answer that a reward will judge.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from me_jax import errors
from me_jax import rows as rows_lib
from me_jax.analysis import prompts as prompts_lib

KINDS = ('texts', 'pairs', 'prompts')
# What a message about a row of each kind asks for.
_NEEDS = {
  'texts': (
    '"text", a chat that has an answer under "messages" or "conversations", or'
    ' a pair such as "question" and "answer"'
  ),
  'pairs': (
    'a "prompt", "messages" or "conversations", and two answers to it, "chosen"'
    ' and "rejected"'
  ),
  'prompts': (
    '"prompt", a chat under "messages" or "conversations", or a "question",'
    ' "problem" or "instruction"'
  ),
}

Chat = list[dict[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
  """A row that has been understood.

  Attributes:
    where: the file and line, as a message names it.
    row: as it was read; a reward may look things up in it.
    texts: of the kind `texts`, one string or chat; of `pairs`, two chats that
      differ in their last message alone, the chosen one first; of `prompts`,
      one string, or one chat that an answer would continue.
  """

  where: str
  row: Any
  texts: tuple[prompts_lib.Prompt, ...]


def parse(kind: str, where: str, row: Any) -> Record:
  """Understands a row.

  Args:
    kind: one of `KINDS`.
    where: the row stands, for messages.
    row: of a file or dataset.

  Raises:
    MeJaxError: there is no such kind, or the row does not hold what it needs.
  """
  check_kind(kind)
  understand = {'texts': _text, 'pairs': _pair, 'prompts': _prompt}[kind]
  found = understand(row)
  if found is None:
    raise errors.MeJaxError(f'{where}: needs {_NEEDS[kind]}.')
  return Record(where=where, row=row, texts=found)


def check_kind(kind: str) -> None:
  """Raises MeJaxError where there is no such kind of data."""
  if kind not in KINDS:
    raise errors.MeJaxError(
      f'the kind of data is {kind!r}, must be one of {", ".join(KINDS)}'
      f'{errors.nearest(str(kind), KINDS)}.'
    )


def _text(row: Any) -> tuple[prompts_lib.Prompt] | None:
  """Returns what is learnt."""
  text = prompts_lib.from_row(row)
  if isinstance(text, list):
    return (text,) if _has_answer(text) else None
  # A prompt whose answer has a name that we do not know is not to be learnt.
  if isinstance(row, dict) and row.get('text') != text:
    return None
  return None if text is None else (text,)


def _has_answer(chat: Chat) -> bool:
  """Says whether a chat has answers, and the last one is not blank."""
  answers = [turn for turn in chat if turn['role'] == 'assistant']
  return bool(answers) and rows_lib.holds_text(answers[-1]['content'])


def _pair(row: Any) -> tuple[Chat, Chat] | None:
  """Returns the chats with the chosen and the rejected answer."""
  if not isinstance(row, dict):
    return None
  chosen, rejected = (_answered(row.get(n)) for n in ('chosen', 'rejected'))
  if chosen is None or rejected is None:
    return None
  if len(chosen) == len(rejected) == 1:
    asked = _asked(row)
    if isinstance(asked, str):
      asked = [{'role': 'user', 'content': asked}]
    if not asked or asked[-1]['role'] == 'assistant':
      return None
    return [*asked, *chosen], [*asked, *rejected]
  # Both hold the prompt themselves.
  return (chosen, rejected) if chosen[:-1] == rejected[:-1] else None


def _answered(value: Any) -> Chat | None:
  """Returns messages whose last one is an answer."""
  if rows_lib.holds_text(value):
    return [{'role': 'assistant', 'content': value}]
  chat = rows_lib.messages([value] if isinstance(value, dict) else value)
  sound = chat and chat[-1]['role'] == 'assistant' and _has_answer(chat)
  return chat if sound else None


def _prompt(row: Any) -> tuple[prompts_lib.Prompt] | None:
  """Returns what is to be answered."""
  asked = row if rows_lib.holds_text(row) else None
  if isinstance(row, dict):
    asked = _asked(row)
  if isinstance(asked, list) and asked[-1]['role'] == 'assistant':
    asked = asked[:-1]
  return (asked,) if asked else None


def _asked(row: dict[str, Any]) -> prompts_lib.Prompt | None:
  """Returns what a row asks, whether or not it holds an answer."""
  for name in rows_lib.CHATS:
    if row.get(name) is not None:
      return rows_lib.messages(row[name]) or None
  if isinstance(row.get('prompt'), list):
    return rows_lib.messages(row['prompt']) or None
  names = dict.fromkeys(question for question, _ in prompts_lib.PAIRS)
  found = (rows_lib.question(row, name) for name in names)
  return next(filter(None, found), None)
