"""Which rotary embedding does a Hugging Face configuration ask for?

transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5
`rope_parameters`; both are read, and both are written, because a reader of the
other generation would silently fall back to an unscaled embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from me_jax import errors
from me_jax.models import config as config_lib
from me_jax.models import hf_fields

# What each kind reads besides the base. Optional fields may be missing.
_REQUIRED = {
  'default': (),
  'linear': ('factor',),
  'dynamic': ('factor',),
  'llama3': ('factor', 'low_freq_factor', 'high_freq_factor'),
  'yarn': (),
  'longrope': ('short_factor', 'long_factor'),
}
_OPTIONAL = {
  'dynamic': ('original_max_position_embeddings',),
  'llama3': ('original_max_position_embeddings',),
  'yarn': (
    'factor', 'original_max_position_embeddings', 'attention_factor',
    'beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim', 'truncate',
  ),
  'longrope': (
    'factor', 'original_max_position_embeddings', 'attention_factor',
  ),
}  # fmt: skip
# `finetuned` tells how a model was made, not what it computes.
_NAMES = (
  'rope_type', 'type', 'rope_theta', 'partial_rotary_factor', 'finetuned',
)  # fmt: skip
_ALL = {
  name
  for table in (_REQUIRED, _OPTIONAL)
  for names in table.values()
  for name in names
}


def read(
  raw: Mapping[str, Any],
  head_dim: int,
  *,
  theta: float = 10_000.0,
  partial: bool = False,
  aliases: Mapping[str, str] | None = None,
) -> config_lib.RopeConfig:
  """Reads the embedding that all layers share.

  Args:
    raw: the configuration.
    head_dim: H.
    theta: base when the configuration names none.
    partial: whether the family can rotate a part of each head.
    aliases: other names of kinds.

  Raises:
    MeJaxError: a kind, a field or a value that is not handled.
  """
  found = {
    each: read_one(
      hf_fields.mapping(raw, each),
      raw,
      head_dim,
      theta=theta,
      partial=partial,
      aliases=aliases,
    )
    for each in ('rope_parameters', 'rope_scaling')
    if raw.get(each)
  }
  if len(set(found.values())) > 1:
    raise errors.MeJaxError(
      'rope_parameters and rope_scaling contradict each other: remove the one '
      'that is wrong.'
    )
  if found:
    return next(iter(found.values()))
  return read_one(
    {}, raw, head_dim, theta=theta, partial=partial, aliases=aliases
  )


def read_one(
  scaling: Mapping[str, Any],
  raw: Mapping[str, Any],
  head_dim: int,
  *,
  theta: float,
  partial: bool = False,
  aliases: Mapping[str, str] | None = None,
) -> config_lib.RopeConfig:
  """Reads one object of fields; arguments as in `read`."""
  kind = scaling.get('rope_type') or scaling.get('type') or 'default'
  kind = (aliases or {}).get(kind, kind) if isinstance(kind, str) else kind
  if not isinstance(kind, str) or kind not in _REQUIRED:
    raise errors.MeJaxError(
      f'rope_type = {hf_fields.shown(kind)} is not handled; '
      f'{", ".join(_REQUIRED)} are.'
    )
  known = {*_NAMES, *_REQUIRED[kind], *_OPTIONAL.get(kind, ())}
  # The default kind reads no numbers, so those of other kinds do no harm.
  known |= _ALL if kind == 'default' else set()
  for name, value in scaling.items():
    if name not in known:
      raise errors.MeJaxError(
        f'rope field {name} = {hf_fields.shown(value)} is not handled with '
        f'rope_type = {kind!r}.'
      )
  fields = {'rope_theta': theta, **_present(raw, 'rope_theta'), **scaling}
  share = {'partial_rotary_factor': 1.0}
  share |= _present(raw, 'partial_rotary_factor')
  share |= _present(scaling, 'partial_rotary_factor')
  rotated = hf_fields.number(share, 'partial_rotary_factor')
  if rotated > 1 or (rotated < 1 and not partial):
    raise errors.MeJaxError(
      f'partial_rotary_factor = {rotated} is not handled for this model_type.'
    )
  base = float(hf_fields.number(fields, 'rope_theta'))
  dims = int(head_dim * rotated)
  values = _numbers(kind, scaling, raw, dims)
  _check(kind, base, dims, head_dim, values)
  return config_lib.RopeConfig(
    kind=kind,
    theta=base,
    partial_rotary_factor=float(rotated),
    **values,
  )


def _present(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
  return {} if raw.get(name) is None else {name: raw[name]}


def _numbers(
  kind: str, scaling: Mapping[str, Any], raw: Mapping[str, Any], dims: int
) -> dict[str, Any]:
  """Returns the fields of `RopeConfig` that a kind has.

  Args:
    kind: which.
    scaling: the object of fields.
    raw: the whole configuration.
    dims: rotated dimensions of a head.
  """
  if kind == 'default':
    return {}
  values = {}
  if kind != 'linear':
    context = hf_fields.size(raw, 'max_position_embeddings')
    original = 'original_max_position_embeddings'
    # Phi-3 keeps it outside, and then that one counts.
    place = raw if raw.get(original) is not None else scaling
    values[original] = hf_fields.size(place, original, context)
    if kind == 'dynamic' and values[original] != context:
      raise errors.MeJaxError(
        f'{original} = {values[original]} is not handled with rope_type = '
        f"'dynamic', which scales from max_position_embeddings = {context}."
      )
  if kind == 'llama3':
    low, high = 'low_freq_factor', 'high_freq_factor'
    values |= {name: hf_fields.number(scaling, name) for name in (low, high)}
    if values[low] >= values[high]:
      raise errors.MeJaxError(
        f'{low} = {values[low]} is not below {high} = {values[high]}.'
      )
  if kind in ('yarn', 'longrope') and scaling.get('factor') is None:
    values['factor'] = context / values[original]
  else:
    values['factor'] = hf_fields.number(scaling, 'factor')
  for name in _OPTIONAL.get(kind, ()):
    if name not in values and scaling.get(name) is not None:
      read_field = hf_fields.flag if name == 'truncate' else hf_fields.number
      values[name] = read_field(scaling, name)
  if kind == 'longrope':
    for name in ('short_factor', 'long_factor'):
      values[name] = hf_fields.numbers(scaling, name, (dims + 1) // 2)
  return values


def _check(
  kind: str, theta: float, dims: int, head_dim: int, values: Mapping[str, Any]
) -> None:
  """Raises on numbers for which the formulas have no value."""
  if theta <= 1:
    raise errors.MeJaxError(f'rope_theta = {theta} is not above 1.')
  # An odd number of dimensions is rounded up, and must still fit.
  if dims < (4 if kind == 'dynamic' else 2) or dims + dims % 2 > head_dim:
    raise errors.MeJaxError(
      f'head_dim = {head_dim}, of which {dims} are rotated, does not fit '
      f'rope_type = {kind!r}.'
    )
  original = values.get('original_max_position_embeddings', 2)
  if original < 2:
    raise errors.MeJaxError(
      f'original_max_position_embeddings = {original} is too short for '
      f'rope_type = {kind!r}.'
    )


def write_one(rope: config_lib.RopeConfig) -> dict[str, Any]:
  """Returns the object of fields that transformers 5 reads."""
  fields = {'rope_type': rope.kind, 'rope_theta': rope.theta}
  if rope.partial_rotary_factor != 1.0:
    fields['partial_rotary_factor'] = rope.partial_rotary_factor
  for name in (*_REQUIRED[rope.kind], *_OPTIONAL.get(rope.kind, ())):
    value = getattr(rope, name)
    if value is not None:
      fields[name] = list(value) if isinstance(value, tuple) else value
  return fields


def write(rope: config_lib.RopeConfig) -> dict[str, Any]:
  """Returns the fields of both generations for one shared embedding."""
  fields = write_one(rope)
  result = {'rope_parameters': fields, 'rope_theta': rope.theta}
  if rope.partial_rotary_factor != 1.0:
    result['partial_rotary_factor'] = rope.partial_rotary_factor
  if rope.kind != 'default':
    result['rope_scaling'] = {
      name: value
      for name, value in fields.items()
      if name not in ('rope_theta', 'partial_rotary_factor')
    }
  return result
