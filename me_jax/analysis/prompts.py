"""Which texts are looked at? The built-in ones, or a file of the user's."""

from __future__ import annotations

from importlib import resources
import os
from typing import Any

from me_jax import errors
from me_jax import rows as rows_lib

Prompt = str | list[dict[str, str]]

# A row with both is a chat of a question and its answer.
PAIRS = (
  ('question', 'answer'),
  ('problem', 'solution'),
  ('prompt', 'response'),
  ('prompt', 'completion'),
  ('instruction', 'output'),
)


def builtin() -> list[Prompt]:
  """Returns 24 short prompts: prose, code, maths, chats, other languages."""
  file = resources.files('me_jax.analysis').joinpath('prompts.jsonl')
  text = file.read_text(encoding='utf-8')
  return _prompts(rows_lib.parse(text, 'the built-in prompts'))


def read(path: str | os.PathLike[str]) -> list[Prompt]:
  """Reads prompts from a file.

  Args:
    path: `.jsonl`, with an object a line that has `text` or `prompt` (a
      string), `messages` or `conversations` (a chat), or a question and its
      answer, which become one (`question` and `answer`, `problem` and
      `solution`, `prompt` and `response` or `completion`, `instruction` and
      `output` with, maybe, an `input`); or plain text, a prompt a line.

  Returns:
    Strings and chats, in order.

  Raises:
    MeJaxError: the file cannot be read, is empty, or has a row without text.
  """
  return _prompts(rows_lib.read(path))


def from_row(row: Any) -> Prompt | None:
  """Returns the text or chat of one row, None where there is none."""
  if isinstance(row, str):
    return row if row.strip() else None
  if not isinstance(row, dict):
    return None
  for name in rows_lib.CHATS:
    if row.get(name) is not None:
      return rows_lib.messages(row[name]) or None
  for question, answer in PAIRS:
    asked, said = rows_lib.question(row, question), row.get(answer)
    if asked and rows_lib.holds_text(said):
      return [
        {'role': 'user', 'content': asked},
        {'role': 'assistant', 'content': said},
      ]
  texts = (row.get(name) for name in ('text', 'prompt'))
  return next(filter(rows_lib.holds_text, texts), None)


def _prompts(rows: list[tuple[str, Any]]) -> list[Prompt]:
  prompts: list[Prompt] = []
  for where, row in rows:
    prompt = from_row(row)
    if prompt is None:
      raise errors.MeJaxError(
        f'{where}: needs a text that is not empty under "text", "prompt" or '
        '"messages", or a pair such as "question" and "answer".'
      )
    prompts.append(prompt)
  return prompts
