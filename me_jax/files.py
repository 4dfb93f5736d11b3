"""How is a file written whole or not at all?

Under a hidden name beside its place, renamed when it is complete. A folder
that appears as one is `checkpoints.atomic`'s matter.
"""

from __future__ import annotations

from collections.abc import Generator
import contextlib
import json
import os
import pathlib
import re
from typing import Any

from me_jax import errors

_SURROGATE = re.compile('[\ud800-\udfff]')


def check_writable(path: pathlib.Path | None) -> None:
  """Raises MeJaxError if a file could not be written; touches nothing."""
  if path is None:
    return
  # os.path answers False where pathlib would raise for want of permission.
  if os.path.isdir(path):
    raise errors.MeJaxError(f'{path} is a folder, not a file to write.')
  parent = path.absolute().parent
  while not os.path.exists(parent):
    parent = parent.parent
  if not os.path.isdir(parent):
    raise errors.MeJaxError(f'cannot write {path}: {parent} is no folder.')
  if not os.access(parent, os.W_OK | os.X_OK):
    raise errors.MeJaxError(f'cannot write {path}: no permission in {parent}.')


def make_parent(path: pathlib.Path) -> None:
  """Makes the folder of a file."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.MeJaxError(
      f'cannot make the folder {path.parent}: {error.strerror}'
    ) from None


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Generator[pathlib.Path]:
  """Yields a name to write to, which becomes `path` if nothing is raised.

  Args:
    path: of the file, in a folder that exists.

  Raises:
    MeJaxError: the file system refuses.
  """
  partial = path.with_name(f'.{path.name}.partial')
  try:
    yield partial
    os.replace(partial, path)
  except OSError as error:
    raise errors.MeJaxError(f'cannot write {path}: {error.strerror}') from None
  finally:
    partial.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all, with its folder."""
  make_parent(path)
  with whole(path) as partial:
    partial.write_text(text, encoding='utf-8')


def json_text(value: Any) -> str:
  """Returns a value as JSON for people and programs."""
  text = json.dumps(value, indent=1, ensure_ascii=False) + '\n'
  # Names of files need not be UTF-8; JSON can say it, UTF-8 cannot.
  return _SURROGATE.sub(lambda found: ascii(found[0])[1:-1], text)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a value as JSON, whole or not at all."""
  write_text(path, json_text(value))
