"""How is a file of rows read, and what may a field of one hold?

A row is a line: of a `.jsonl` file a JSON value, of any other its text.
"""

from __future__ import annotations

import json
import os
from typing import Any, cast

from me_jax import errors

# Fields that hold a chat.
CHATS = ('messages', 'conversations')
_ENDINGS = ('.jsonl', '.txt')
# Speakers in the notation with `from` and `value`.
_ROLES = {
  'system': 'system',
  'human': 'user',
  'user': 'user',
  'gpt': 'assistant',
  'assistant': 'assistant',
}


def files(path: str) -> list[str]:
  """Returns the files that may hold rows: this one, or those of a folder.

  Raises:
    MeJaxError: it is a file of another kind.
  """
  if os.path.isfile(path):
    if not path.endswith(_ENDINGS):
      raise errors.MeJaxError(
        f'{path}: texts are read from {" and ".join(_ENDINGS)} files'
      )
    return [path]
  return [
    os.path.join(path, name)
    for name in sorted(os.listdir(path))
    if name.endswith(_ENDINGS)
  ]


def read(path: str | os.PathLike[str]) -> list[tuple[str, Any]]:
  """Reads the rows of a file, whatever they hold.

  Args:
    path: of the file.

  Returns:
    Where each row stands, as a message names it, and the row. Blank lines are
    no rows.

  Raises:
    MeJaxError: the file cannot be read, is empty, or a line is no JSON.
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
    found = parse(text, str(path))
  else:
    found = [
      (f'{path}, line {number}', line)
      for number, line in enumerate(text.splitlines(), 1)
      if line.strip()
    ]
  if not found:
    raise errors.MeJaxError(f'{path} is empty: it holds no text.')
  return found


def parse(text: str, name: str) -> list[tuple[str, Any]]:
  """Returns the rows of JSON lines, as `read` does.

  Args:
    text: the lines.
    name: of the file, for messages.

  Raises:
    MeJaxError: a line is no JSON.
  """
  found = []
  # Not splitlines: a JSON string may hold the other ends of a line.
  for number, line in enumerate(text.split('\n'), 1):
    if not line.strip():
      continue
    try:
      found.append((f'{name}, line {number}', json.loads(line)))
    # Deep nesting ends in RecursionError.
    except (ValueError, RecursionError) as error:
      raise errors.MeJaxError(
        f'{name}, line {number}: not valid JSON ({error}).'
      ) from None
  return found


def messages(value: Any) -> list[dict[str, str]] | None:
  """Returns a chat as messages with a role and content.

  Args:
    value: a list of such messages, or of ones with `from` (`human`, `gpt`) and
      `value`.

  Returns:
    The messages; None if that is not what it is.
  """
  if not isinstance(value, list):
    return None
  found = [_message(message) for message in value]
  sound = [message for message in found if message is not None]
  return sound if len(sound) == len(found) else None


def question(row: dict[str, Any], name: str) -> str | None:
  """Returns what a row asks in the field `name`, None where that is no text."""
  asked = row.get(name)
  if not holds_text(asked):
    return None
  # What an instruction is about.
  if name == 'instruction' and holds_text(row.get('input')):
    return f'{asked}\n\n{row["input"]}'
  return asked


def holds_text(value: Any) -> bool:
  """Says whether a value is a string that is not blank."""
  return isinstance(value, str) and bool(value.strip())


def _message(message: Any) -> dict[str, str] | None:
  if not isinstance(message, dict):
    return None
  if 'from' in message and 'role' not in message:
    role = message['from']
    role = _ROLES.get(role) if isinstance(role, str) else None
    message = {'role': role, 'content': message.get('value')}
  sound = isinstance(message.get('role'), str) and isinstance(
    message.get('content'), str
  )
  return cast(dict[str, str], message) if sound else None
