"""What does a family of models say about its configurations?

The shape of an entry in the tables of families, and the one question that most
of them answer: which layers see only a window of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from me_jax import errors
from me_jax.models import config as config_lib
from me_jax.models import hf_fields

LAYER_TYPES = {'sliding_attention': True, 'full_attention': False}
Raw = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """One `model_type`.

  Attributes:
    architecture: name of the class in transformers.
    fields: those that `read` translates, besides the ones all families have.
    defaults: what transformers assumes for fields that are absent.
    inert: fields that are harmless at exactly these values.
    read: from a configuration, defaults filled in, to fields of ours besides
      the ones all families have.
    write: the opposite.
  """

  architecture: str
  fields: frozenset[str] = frozenset()
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  inert: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  read: Callable[[Raw, dict[str, Any]], dict[str, Any]]
  write: Callable[[config_lib.ModelConfig], dict[str, Any]]


def window(raw: Raw) -> int | None:
  """Returns `sliding_window`, or None."""
  if raw.get('sliding_window') is None:
    return None
  return hf_fields.size(raw, 'sliding_window')


def layer_types(raw: Raw, count: int) -> tuple[bool, ...] | None:
  """Returns which of `count` layers are windowed, None when it is not said."""
  return hf_fields.layer_flags(raw, 'layer_types', count, LAYER_TYPES)


def windows(size: int | None, layers: tuple[bool, ...]) -> dict[str, Any]:
  """Returns our fields of a window pattern; without windows they are unset."""
  if not any(layers):
    return {}
  if size is None:
    raise errors.MeJaxError(
      'the configuration has no sliding_window in use, which its '
      'sliding_attention layers need.'
    )
  return dict(sliding_window=size, layer_windowed=layers)


def write_layer_types(config: config_lib.ModelConfig) -> list[str]:
  """Returns `layer_types`."""
  windowed = config.layer_windowed or (False,) * config.num_hidden_layers
  return ['sliding_attention' if w else 'full_attention' for w in windowed]
