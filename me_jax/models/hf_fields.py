"""Is a field of a Hugging Face configuration what it should be?

Each function reads one kind of field and raises a `MeJaxError` that names the
field and its value when it is of another kind. Null counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
from typing import Any

from me_jax import errors

Raw = Mapping[str, Any]
_SMALLEST, _LARGEST = 1e-15, 1e15


def size(raw: Raw, name: str, default: int | None = None) -> int:
  """Returns a positive integer; without a default it must be there."""
  value = raw.get(name)
  value = default if value is None else value
  if value is None:
    raise errors.MeJaxError(f'the configuration lacks {name}.')
  if type(value) is not int or not 1 <= value < 1 << 31:
    raise errors.MeJaxError(
      f'{name} = {shown(value)} is not a positive integer below 2^31.'
    )
  return value


def number(raw: Raw, name: str) -> float:
  """Returns a number above zero, as an int where it is one."""
  value = optional_number(raw, name)
  if value is None:
    raise errors.MeJaxError(f'the configuration lacks {name}.')
  return value


def optional_number(raw: Raw, name: str) -> float | None:
  """Returns a number above zero, or None."""
  value = raw.get(name)
  if value is None:
    return None
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise errors.MeJaxError(f'{name} = {shown(value)} is not a number.')
  # Beyond these, products of two overflow in float32.
  if not _SMALLEST <= value <= _LARGEST:
    raise errors.MeJaxError(
      f'{name} = {shown(value)} is not between {_SMALLEST:g} and {_LARGEST:g}.'
    )
  return value


def numbers(raw: Raw, name: str, count: int) -> tuple[float, ...]:
  """Returns a list of `count` numbers above zero."""
  values = raw.get(name)
  if not isinstance(values, Sequence) or isinstance(values, str):
    raise errors.MeJaxError(f'{name} = {shown(values)} is no list of numbers.')
  if len(values) != count:
    raise errors.MeJaxError(
      f'{name} has {len(values)} numbers, the rotated dimensions need {count}.'
    )
  return tuple(float(number({name: value}, name)) for value in values)


def flag(raw: Raw, name: str) -> bool:
  """Returns a boolean; absent is False."""
  value = raw.get(name)
  if value is not None and not isinstance(value, bool):
    raise errors.MeJaxError(
      f'{name} = {shown(value)} is neither true nor false.'
    )
  return bool(value)


def token(raw: Raw, name: str) -> int | None:
  """Returns a token id, or None."""
  value = raw.get(name)
  if value is not None and type(value) is not int:
    raise errors.MeJaxError(f'{name} = {shown(value)} is no token id.')
  return value


def tokens(raw: Raw, name: str) -> tuple[int, ...]:
  """Returns token ids: none, one or a list of them."""
  value = raw.get(name)
  values = value if isinstance(value, list) else [value]
  found = (token({name: each}, name) for each in values)
  return tuple(each for each in found if each is not None)


def mapping(raw: Raw, name: str) -> Raw:
  """Returns an object; absent is empty."""
  value = raw.get(name)
  if value is not None and not isinstance(value, Mapping):
    raise errors.MeJaxError(f'{name} = {shown(value)} is no object.')
  return value or {}


def layer_flags(
  raw: Raw, name: str, count: int, meanings: Mapping[Any, bool]
) -> tuple[bool, ...] | None:
  """Returns what a list says of each layer, or None when there is none.

  Args:
    raw: the configuration.
    name: of the field.
    count: L; a longer list is cut, as Hugging Face does.
    meanings: of the values that may stand in the list.
  """
  values = raw.get(name)
  if values is None:
    return None
  if not isinstance(values, list) or len(values) < count:
    raise errors.MeJaxError(
      f'{name} = {shown(values)} is not a list of {count} layers.'
    )
  for value in values[:count]:
    if not isinstance(value, (str, int)) or value not in meanings:
      raise errors.MeJaxError(
        f'{name} holds {shown(value)}, which is not handled; '
        f'{", ".join(map(shown, meanings))} are.'
      )
  return tuple(meanings[value] for value in values[:count])


def shown(value: Any) -> str:
  """Returns a value as a short line of JSON."""
  text = json.dumps(value, default=str)
  return text if len(text) <= 60 else text[:57] + '...'
