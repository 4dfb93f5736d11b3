"""How is a ModelConfig written down so that it comes back exactly?

As JSON with our own field names, all of them. Hugging Face's form is a
translation, which not every configuration survives bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import types
import typing
from typing import Any

from me_jax import errors
from me_jax.models import config as config_lib

_SIZES = (
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
  'num_key_value_heads',
  'head_dim',
  'max_position_embeddings',
)
_PER_LAYER = ('layer_windowed', 'rope_layers')


def to_json(config: config_lib.ModelConfig) -> dict[str, Any]:
  """Returns the configuration as nested dicts; tuples become lists."""
  return dataclasses.asdict(config)


def from_json(value: Any, where: str) -> config_lib.ModelConfig:
  """Undoes `to_json` after a trip through JSON.

  Args:
    value: what JSON gave.
    where: it was read from, for messages.

  Raises:
    MeJaxError: a field is missing, unknown, or of the wrong type.
  """
  config = _build(config_lib.ModelConfig, value, f'{where}: config')
  for name in _SIZES:
    if getattr(config, name) <= 0:
      raise errors.MeJaxError(
        f'{where}: config.{name} = {getattr(config, name)} is not positive'
      )
  if config.num_attention_heads % config.num_key_value_heads:
    raise errors.MeJaxError(
      f'{where}: config.num_attention_heads = {config.num_attention_heads} is'
      ' not a multiple of num_key_value_heads'
    )
  for name in _PER_LAYER:
    if len(getattr(config, name)) not in (0, config.num_hidden_layers):
      raise errors.MeJaxError(
        f'{where}: config.{name} does not have an entry for every layer'
      )
  return config


def _build(kind: Any, value: Any, where: str) -> Any:
  """Returns a dataclass from a dict, every field checked."""
  if not isinstance(value, Mapping):
    raise errors.MeJaxError(f'{where} is no JSON object')
  hints = typing.get_type_hints(kind)
  for name in value:
    if name not in hints:
      raise errors.MeJaxError(
        f'{where} has the field {name!r:.60}, which this version of me_jax'
        ' does not know: update me_jax'
      )
  fields = {}
  for field in dataclasses.fields(kind):
    if field.name in value:
      fields[field.name] = _convert(
        hints[field.name], value[field.name], f'{where}.{field.name}'
      )
    elif field.default is dataclasses.MISSING:
      raise errors.MeJaxError(f'{where} lacks {field.name}')
  return kind(**fields)


def _convert(hint: Any, value: Any, where: str) -> Any:
  """Returns a value as its annotation asks for it."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin in (types.UnionType, typing.Union):
    if value is None:
      return None
    [hint] = [part for part in arguments if part is not type(None)]
    return _convert(hint, value, where)
  if origin is tuple and isinstance(value, list):
    return tuple(_convert(arguments[0], item, where) for item in value)
  if origin is typing.Literal and isinstance(value, str) and value in arguments:
    return value
  if dataclasses.is_dataclass(hint):
    return _build(hint, value, where)
  # A number that is whole may stand where a float is meant; True is no number.
  allowed = (int, float) if hint is float else (hint,)
  if origin is None and type(value) in allowed:
    return value
  raise errors.MeJaxError(f'{where} = {value!r:.60} is not what it must be')
