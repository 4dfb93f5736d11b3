"""Which texts are looked at? The built-in ones, or a file of the user's."""

from __future__ import annotations

from importlib import resources
import json
import os
from typing import Any

from me_jax import errors

Prompt = str | list[dict[str, str]]

# A row with both is a chat of a question and its answer.
_PAIRS = (
  ('question', 'answer'),
  ('problem', 'solution'),
  ('prompt', 'response'),
  ('instruction', 'output'),
)


def builtin() -> list[Prompt]:
  """Returns 24 short prompts: prose, code, maths, chats, other languages."""
  file = resources.files('me_jax.analysis').joinpath('prompts.jsonl')
  return _rows(file.read_text(encoding='utf-8'), 'the built-in prompts')


def read(path: str | os.PathLike[str]) -> list[Prompt]:
  """Reads prompts from a file.

  Args:
    path: `.jsonl`, with an object a line that has `text` or `prompt` (a
      string), `messages` (a chat), or a question and its answer, which become
      one (`question` and `answer`, `problem` and `solution`, `prompt` and
      `response`, `instruction` and `output` with, maybe, an `input`); or plain
      text, a prompt a line.

  Returns:
    Strings and chats, in order.

  Raises:
    MeJaxError: the file cannot be read, is empty, or has a row without text.
  """
  try:
    with open(path, encoding='utf-8') as file:
      text = file.read()
  except OSError as error:
    raise errors.MeJaxError(
      f'cannot read {path}: {error.strerror or error}'
    ) from None
  except UnicodeDecodeError:
    raise errors.MeJaxError(f'{path} is not UTF-8 text.') from None
  if str(path).endswith('.jsonl'):
    prompts = _rows(text, str(path))
  else:
    prompts = [line for line in text.splitlines() if line.strip()]
  if not prompts:
    raise errors.MeJaxError(f'{path} is empty: it holds no prompt.')
  return prompts


def _rows(text: str, path: str) -> list[Prompt]:
  prompts: list[Prompt] = []
  for number, line in enumerate(text.split('\n'), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:
      raise errors.MeJaxError(
        f'{path}, line {number}: not valid JSON ({error}).'
      ) from None
    prompt = _prompt(row)
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
      raise errors.MeJaxError(
        f'{path}, line {number}: needs a text that is not empty under "text", '
        '"prompt" or "messages", or a pair such as "question" and "answer".'
      )
    prompts.append(prompt)
  return prompts


def _prompt(row: Any) -> Prompt | None:
  """Returns the prompt of one row, None where there is none."""
  if isinstance(row, str):
    return row
  if not isinstance(row, dict):
    return None
  messages = row.get('messages')
  if messages is not None:
    sound = isinstance(messages, list) and all(
      isinstance(message, dict)
      and isinstance(message.get('role'), str)
      and isinstance(message.get('content'), str)
      for message in messages
    )
    return messages if sound else None
  for question, answer in _PAIRS:
    asked, said = row.get(question), row.get(answer)
    if _holds_text(asked) and _holds_text(said):
      # What an instruction is about.
      if question == 'instruction' and _holds_text(row.get('input')):
        asked = f'{asked}\n\n{row["input"]}'
      return [
        {'role': 'user', 'content': asked},
        {'role': 'assistant', 'content': said},
      ]
  texts = (row.get(name) for name in ('text', 'prompt'))
  return next(filter(_holds_text, texts), None)


def _holds_text(value: Any) -> bool:
  return isinstance(value, str) and bool(value.strip())
