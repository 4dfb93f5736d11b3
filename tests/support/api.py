"""The public interface, written out: what `tests/api.txt` holds.

After an intended change, this rewrites it:

  .venv/bin/python -m tests.support.api
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import enum
import inspect
import pathlib
import sys
import typing
from typing import Any

import me_jax

FILE = pathlib.Path(__file__).parents[1] / 'api.txt'
# What every linen module has, which is flax's to change.
_OF_FLAX = ('parent', 'name')


def describe() -> str:
  """Returns every public name with its parameters or fields, one a line.

  The types that these return or hold follow, each under its module's name.
  """
  public = {name: getattr(me_jax, name) for name in sorted(me_jax.__all__)}
  parts = [_entry(f'me_jax.{name}', one) for name, one in public.items()]
  held = sorted(_held(public.values()), key=_name)
  parts += [_entry(_name(one), one) for one in held]
  return '\n'.join(parts)


def _name(one: type) -> str:
  return f'{one.__module__}.{one.__qualname__}'


def _entry(name: str, one: Any) -> str:
  is_class = isinstance(one, type)
  lines = [f'class {name}' if is_class else f'def {name}']
  if _is_record(one) or not is_class:
    lines += _given(one)
  if is_class:
    lines += _members(one)
  else:
    lines.append(f'-> {_spelled(inspect.signature(one).return_annotation)}')
  return '\n  '.join(lines) + '\n'


def _is_record(one: Any) -> bool:
  return dataclasses.is_dataclass(one) or hasattr(one, '_fields')


def _given(one: Any) -> Iterator[str]:
  """Yields parameters, which are the fields of a record; `*` as in Python."""
  named = False
  for parameter in inspect.signature(one).parameters.values():
    if hasattr(one, 'scope') and parameter.name in _OF_FLAX:
      continue
    if parameter.kind is parameter.KEYWORD_ONLY and not named:
      named = True
      yield '*'
    yield _parameter(parameter)


def _members(one: type) -> Iterator[str]:
  """Yields methods and properties that are the class's own."""
  for name, member in sorted(vars(one).items()):
    member = getattr(member, '__func__', member)
    # What makes a dataclass, flax and NamedTuple add is not documented here.
    if name.startswith('_') or not _written_in(member, one):
      continue
    if isinstance(member, property):
      yield f'.{name}'
    else:
      given = inspect.signature(member).parameters.values()
      listed = ', '.join(map(_parameter, given))
      yield f'.{name}({listed})'


def _written_in(member: Any, one: type) -> bool:
  member = getattr(member, 'fget', member)
  if not inspect.isfunction(inspect.unwrap(member)):
    return False
  return inspect.unwrap(member).__module__ == one.__module__


def _parameter(parameter: inspect.Parameter) -> str:
  line = parameter.name
  if parameter.annotation is not parameter.empty:
    line += f': {_spelled(parameter.annotation)}'
  if parameter.default is not parameter.empty:
    line += f' = {_default(parameter.default)}'
  return line


def _spelled(annotation: Any) -> str:
  """Returns an annotation as it is written in the file."""
  if isinstance(annotation, typing.ForwardRef):
    return annotation.__forward_arg__
  return str(annotation)


def _default(value: Any) -> str:
  """Returns a default; a function or a class by its name, a record's as `...`.

  The fields of a record have an entry of their own, or are nobody's business.
  """
  if isinstance(value, (type, enum.Enum)) or callable(value):
    return getattr(value, '__name__', '...')
  return '...' if _is_record(value) else repr(value)


def _held(found: Any) -> set[type]:
  """Returns the records of ours that these return or hold, at any depth."""
  ahead, seen = list(found), []
  while ahead:
    one = ahead.pop()
    if one in seen:
      continue
    seen.append(one)
    if isinstance(one, type) and not _is_record(one):
      continue
    said = one.__annotations__
    if not isinstance(one, type):
      said = {'return': said['return']}
    for annotation in said.values():
      hint = _evaluated(annotation, one)
      ahead += [part for part in _parts(hint) if _is_ours(part)]
  return {one for one in seen if isinstance(one, type)} - set(found)


def _evaluated(annotation: Any, one: Any) -> Any:
  """Returns a type, or None where only type checkers import its module."""
  try:
    return eval(_spelled(annotation), vars(sys.modules[one.__module__]))
  except NameError:
    return None


def _parts(hint: Any) -> Iterator[Any]:
  yield hint
  for part in typing.get_args(hint):
    yield from _parts(part)


def _is_ours(one: Any) -> bool:
  return isinstance(one, type) and one.__module__.startswith('me_jax.')


if __name__ == '__main__':
  FILE.write_text(describe(), 'utf-8')
  print(f'wrote {FILE.name}')
