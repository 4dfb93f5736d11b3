"""How does `optim.lr=1e-3` change one field of a run?"""

from __future__ import annotations

import ast
from collections.abc import Sequence
import dataclasses
import math
import types
import typing
from typing import Any

from me_jax import errors


def apply(run: Any, changes: Sequence[str]) -> Any:
  """Returns a run with some fields changed, the later ones last.

  Args:
    run: a dataclass of dataclasses, such as `settings.Run`.
    changes: `path=value` each; the path goes through fields by name and through
      tuples by index (`held_out.0.limit=0.05`), the value is written as in
      Python or, a string, without quotes; a tuple also as `a,b`.

  Raises:
    MeJaxError: there is no such field (the nearest is named), or the value is
      of another type.
  """
  for change in changes:
    path, equals, text = change.partition('=')
    if not equals or not path:
      raise errors.MeJaxError(
        f"'{change}' is no change: write --set path=value, such as"
        ' --set optim.lr=1e-3.'
      )
    run = _changed(run, path.strip().split('.'), text.strip(), path, None)
  return run


def paths(run: Any, before: str = '') -> list[str]:
  """Returns the paths of all fields that hold no others."""
  found = []
  for field in dataclasses.fields(run):
    value = getattr(run, field.name)
    if dataclasses.is_dataclass(value):
      found += paths(value, f'{before}{field.name}.')
    else:
      found.append(before + field.name)
  return found


def _changed(
  value: Any, steps: Sequence[str], text: str, path: str, hint: Any
) -> Any:
  """Returns a value in which what the steps lead to is another."""
  if not steps:
    return _read(text, hint, path)
  first, rest = steps[0], steps[1:]
  if isinstance(value, tuple):
    if not first.isdecimal() or int(first) >= len(value):
      raise errors.MeJaxError(
        f'--set {path}: {first!r} is none of the {len(value)} that are there,'
        ' which are named by place, from 0 on.'
      )
    index = int(first)
    _check_names_a_field(value[index], rest, path)
    inner = _changed(value[index], rest, text, path, type(value[index]))
    return (*value[:index], inner, *value[index + 1 :])
  if not dataclasses.is_dataclass(value):
    raise errors.MeJaxError(
      f'--set {path}: {first!r} is below a value that has no fields.'
    )
  names = [field.name for field in dataclasses.fields(value)]
  if first not in names:
    raise errors.MeJaxError(
      f'--set {path}: {type(value).__name__} has no field {first!r}'
      f'{errors.nearest(first, names)}; it has {", ".join(names) or "none"}.'
    )
  inner_hint = typing.get_type_hints(type(value))[first]
  inner = getattr(value, first)
  _check_names_a_field(inner, rest, path)
  return dataclasses.replace(
    value, **{first: _changed(inner, rest, text, path, inner_hint)}
  )


def _check_names_a_field(value: Any, rest: Sequence[str], path: str) -> None:
  """Raises MeJaxError where a path ends at what holds fields of its own."""
  if rest or not dataclasses.is_dataclass(value):
    return
  names = [field.name for field in dataclasses.fields(value)]
  raise errors.MeJaxError(
    f'--set {path}: name one of its fields, such as {path}.{names[0]}.'
    if names
    else f'--set {path}: {type(value).__name__} has no fields; another one'
    ' takes a configuration.'
  )


def _read(text: str, hint: Any, path: str) -> Any:
  """Returns the value that a text stands for."""
  try:
    value = ast.literal_eval(text)
  except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
    value = text
    if {'true': True, 'false': False}.get(text.lower()) is not None:
      value = text.lower() == 'true'
  # What is a list is no string, nor a list of strings with brackets in them.
  listed = isinstance(value, list | tuple)
  for candidate in (value,) if listed else (value, text):
    fits, found = _fit(candidate, hint)
    if fits:
      return found
  raise errors.MeJaxError(
    f'--set {path}: {text!r} does not fit, it must be {_spell(hint)}.'
  )


def _fit(value: Any, hint: Any) -> tuple[bool, Any]:
  """Says whether a value is of a type, and returns it as such."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    for argument in arguments:
      fits, found = _fit(value, argument)
      if fits:
        return True, found
    return False, None
  if hint is Any or hint is None:
    return hint is Any or value is None, value
  if origin is Sequence:
    # Of one length or another; kept as a tuple, which cannot be changed.
    origin, arguments = tuple, (*arguments, Ellipsis)
  if origin is tuple:
    if isinstance(value, str) and arguments[0] is str:
      value = tuple(filter(None, (part.strip() for part in value.split(','))))
    if type(value) is int and arguments[0] is int:
      value = (value,)
    if not isinstance(value, list | tuple):
      return False, None
    kinds = arguments
    if len(arguments) == 2 and arguments[1] is Ellipsis:
      kinds = arguments[:1] * len(value)
    if len(kinds) != len(value):
      return False, None
    fitted = [_fit(item, kind) for item, kind in zip(value, kinds)]
    return all(fits for fits, _ in fitted), tuple(item for _, item in fitted)
  if hint is float:
    if isinstance(value, str) and value in ('inf', 'infinity'):
      return True, math.inf
    if isinstance(value, bool) or not isinstance(value, int | float):
      return False, None
    try:
      return True, float(value)
    except OverflowError:  # Whole numbers know no end.
      return False, None
  if hint in (bool, int):
    return type(value) is hint, value
  return isinstance(hint, type) and isinstance(value, hint), value


def _spell(hint: Any) -> str:
  """Names a type for a message."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    return ' or '.join(_spell(argument) for argument in arguments)
  if origin in (tuple, Sequence):
    inside = f'a list of {_spell(arguments[0])}'
    return f'{inside}, such as (1, 2)' if int in arguments else inside
  names = {
    float: 'a number', int: 'a whole number', bool: 'true or false',
    str: 'a string', type(None): 'None',
  }  # fmt: skip
  return names.get(hint, getattr(hint, '__name__', str(hint)))
