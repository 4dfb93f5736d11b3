"""Which run does a folder hold, and is it the one that shall go on?

`run.json` is the run's configuration as it was when it began. Who comes back
with another one is told what differs, unless that may differ. One process at a
time works in a folder: a lock that ends with its process says so.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
import contextlib
import json
import os
import pathlib
from typing import Any

from me_jax import errors
from me_jax import files
from me_jax import strict_json
from me_jax.checkpoints import atomic

FILE = 'run.json'
_FORMAT = 1
_ABSENT = 'absent'
# Of a message: how many differences, and how long a value.
_MOST, _LONG = 8, 40


def has_run(folder: str | os.PathLike[str]) -> bool:
  """Says whether a folder holds a run, rather than nothing.

  Args:
    folder: that need not exist.

  Raises:
    MeJaxError: it holds something else, or cannot be read.
  """
  target = atomic.absolute(folder)
  if os.path.lexists(target) and not os.path.isdir(target):
    raise errors.MeJaxError(f'{folder} is a file: name a folder for the run')
  try:
    present = sorted(os.listdir(target)) if os.path.isdir(target) else []
  except OSError as error:
    raise errors.MeJaxError(
      f'cannot read {folder}: {error.strerror}'
    ) from error
  if FILE in present:
    return True
  # What a process leaves that was killed while it wrote the first file.
  strangers = [name for name in present if name != f'.{FILE}.partial']
  if strangers:
    raise errors.MeJaxError(
      f'{folder} holds {strangers[0]:.80} but no {FILE}, so it is no run: name'
      ' an empty or a new folder'
    )
  return False


def write(folder: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
  """Writes what a run is, whole or not at all.

  Args:
    folder: of the run; made if need be.
    config: as JSON can hold it.

  Raises:
    MeJaxError: the folder holds something else, or cannot be written.
  """
  from me_jax import __version__

  has_run(folder)
  content = {
    'format': _FORMAT,
    'me_jax': __version__,
    'config': _as_json(config),
  }
  files.write_json(pathlib.Path(atomic.absolute(folder), FILE), content)


def read(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the configuration of a run.

  Raises:
    MeJaxError: the folder holds no run, or its file is broken.
  """
  if not has_run(folder):
    raise errors.MeJaxError(f'{folder} holds no run')
  path = os.path.join(atomic.absolute(folder), FILE)
  content = strict_json.read(path)
  config = content.get('config')
  if content.get('format') != _FORMAT or not isinstance(config, dict):
    raise errors.MeJaxError(
      f'{path} is no configuration that this version of me_jax can read: use'
      ' the version that wrote it, or name another folder'
    )
  return config


def check(
  folder: str | os.PathLike[str],
  config: Mapping[str, Any],
  *,
  may_differ: tuple[str, ...] = (),
) -> list[str]:
  """Compares a run with the one that shall go on in its folder.

  Args:
    folder: of the run.
    config: of now.
    may_differ: dotted names of what may differ, alone or with all below it:
      `optim` covers `optim.lr`.

  Returns:
    What differs and may, such as `steps: 100 there, 200 now`.

  Raises:
    MeJaxError: something else differs, and what; or there is no run.
  """
  there, now = _flat(read(folder)), _flat(_as_json(config))
  allowed, forbidden = [], []
  for name in sorted(there.keys() | now.keys()):
    if _same(there.get(name, _ABSENT), now.get(name, _ABSENT)):
      continue
    line = f'{name}: {_show(name, there)} there, {_show(name, now)} now'
    free = any(name == n or name.startswith(f'{n}.') for n in may_differ)
    (allowed if free else forbidden).append(line)
  if forbidden:
    more = len(forbidden) - _MOST
    named = '; '.join(forbidden[:_MOST]) + (f'; and {more} more' * (more > 0))
    raise errors.MeJaxError(
      f'{folder} holds a run with other settings ({named}): go on with those, or'
      ' name another folder'
    )
  return allowed


@contextlib.contextmanager
def lock(folder: str | os.PathLike[str]) -> Generator[None]:
  """Keeps other processes out of a folder, until the block or the process ends.

  For one process of a run; makes the folder.

  Raises:
    MeJaxError: another process is in it, or it cannot be made.
  """
  target = atomic.absolute(folder)
  try:
    os.makedirs(target, exist_ok=True)
  except OSError as error:
    raise errors.MeJaxError(
      f'cannot make {folder}: {error.strerror}'
    ) from error
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(atomic.lock(target))
    except errors.MeJaxError as error:
      raise errors.MeJaxError(
        f'another process is at work in {folder}: wait for it, or name another'
        ' folder'
      ) from error
    yield


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a configuration as it comes back from JSON, tuples as lists."""
  try:
    return json.loads(json.dumps(dict(config), allow_nan=False))
  except (TypeError, ValueError) as error:
    raise errors.MeJaxError(
      f'the configuration cannot be written as JSON: {error}'
    ) from error


def _flat(value: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns the values of nested objects by dotted name; lists stay whole."""
  found = {}
  for name, inner in value.items():
    if isinstance(inner, dict) and inner:
      found |= _flat(inner, f'{prefix}{name}.')
    else:
      found[f'{prefix}{name}'] = inner
  return found


def _same(one: Any, other: Any) -> bool:
  """Says whether values are equal; 1 is 1.0 but not true."""
  return one == other and isinstance(one, bool) == isinstance(other, bool)


def _show(name: str, values: Mapping[str, Any]) -> str:
  if name not in values:
    return _ABSENT
  text = json.dumps(values[name], ensure_ascii=False)
  return text if len(text) <= _LONG else f'{text[:_LONG]}...'
