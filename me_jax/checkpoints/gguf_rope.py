"""Which rotary embedding do the metadata of a GGUF file describe?

The answer is Hugging Face's `rope_parameters`. Two kinds are stored not as the
numbers that define them but as divisors per dimension: Llama 3's, from which
the numbers are recovered, and Phi-3's, which are the numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from me_jax import errors
from me_jax.checkpoints import gguf
from me_jax.checkpoints import gguf_fields

KEYS = (
  'rope.dimension_count',
  'rope.freq_base',
  # Before rope.scaling.* existed.
  'rope.scale_linear',
  'rope.scaling.attn_factor',
  'rope.scaling.factor',
  'rope.scaling.finetuned',
  'rope.scaling.original_context_length',
  'rope.scaling.type',
  'rope.scaling.yarn_attn_factor',
  'rope.scaling.yarn_beta_fast',
  'rope.scaling.yarn_beta_slow',
  'rope.scaling.yarn_ext_factor',
)
LLAMA3_FACTORS = 'rope_freqs.weight'
LONG_FACTORS = 'rope_factors_long.weight'
SHORT_FACTORS = 'rope_factors_short.weight'
# Factors are stored in float32, some after a computation in float32.
_CLOSE = 1e-5


def read(
  file: gguf.GgufFile,
  fields: gguf_fields.Fields,
  head_dim: int,
  *,
  theta: float | None = 10_000.0,
) -> dict[str, Any]:
  """Reads the embedding of a model that rotates whole heads.

  Args:
    file: with the tensors.
    fields: its metadata.
    head_dim: H.
    theta: base when the file names none; None when it must.

  Returns:
    Hugging Face's `rope_parameters`.

  Raises:
    MeJaxError: a scaling that is not supported, or two of them.
  """
  if fields.size('rope.dimension_count', head_dim) != head_dim:
    raise fields.error(
      'rope.dimension_count', f'differs from the head dimension {head_dim}'
    )
  rope: dict[str, Any] = {
    'rope_theta': fields.number('rope.freq_base', theta),
    'rope_type': 'default',
  }
  # llama.cpp, too, takes a factor without a type for a linear one.
  kind = fields.text('rope.scaling.type', 'linear')
  if kind not in ('none', 'linear', 'yarn'):
    raise fields.error('rope.scaling.type', f'is {kind!r}, not linear or yarn')
  if fields.number('rope.scaling.attn_factor', 1.0) != 1.0:
    raise fields.error('rope.scaling.attn_factor', 'is not supported')
  factor = fields.number('rope.scale_linear', 1.0)
  factor = fields.number('rope.scaling.factor', factor)
  if kind != 'none' and factor != 1.0:
    rope |= {'rope_type': kind, 'factor': factor}
  rope |= _yarn(fields, factor) if kind == 'yarn' else _no_yarn(fields)
  if LLAMA3_FACTORS in file.tensors:
    if rope['rope_type'] != 'default':
      raise errors.MeJaxError(
        f'{file.path} scales its rotary embedding twice, by {LLAMA3_FACTORS}'
        ' and by rope.scaling.type: not supported'
      )
    rope |= _llama3_scaling(file, rope['rope_theta'], head_dim)
  return rope


def _no_yarn(fields: gguf_fields.Fields) -> dict[str, Any]:
  for key in KEYS:
    if '.yarn_' in key and fields.has(key):
      raise fields.error(key, 'stands there without rope.scaling.type = yarn')
  return {}


def _yarn(fields: gguf_fields.Fields, factor: float) -> dict[str, Any]:
  """Returns what YaRN needs besides its factor."""
  if factor == 1.0:
    return {}
  if fields.number('rope.scaling.yarn_ext_factor', 1.0) != 1.0:
    raise fields.error('rope.scaling.yarn_ext_factor', 'is not supported')
  # llama.cpp multiplies by this number what Hugging Face replaces by it: only
  # the value that both would compute means one thing.
  usual = 0.1 * math.log(max(factor, 1.0)) + 1.0
  scale = fields.number('rope.scaling.yarn_attn_factor', usual)
  if not math.isclose(scale, usual, rel_tol=_CLOSE):
    raise fields.error(
      'rope.scaling.yarn_attn_factor',
      f'is {scale}, not the {usual:.6f} that follows from the factor',
    )
  key = 'rope.scaling.original_context_length'
  yarn = {'original_max_position_embeddings': fields.size(key)}
  for name in ('beta_fast', 'beta_slow'):
    if fields.has(f'rope.scaling.yarn_{name}'):
      yarn[name] = fields.number(f'rope.scaling.yarn_{name}')
  return yarn


def _llama3_scaling(
  file: gguf.GgufFile, theta: float, head_dim: int
) -> dict[str, Any]:
  """Recovers Llama 3's scaling from the factors that were computed from it.

  All published Llama 3.1 to 3.3 models share three of the four numbers; the
  largest factor is the fourth. Factors that do not come out exactly are of
  some other kind and are refused.
  """
  low, high, original = 1.0, 4.0, 8192
  refusal = errors.MeJaxError(
    f'{file.path}: {LLAMA3_FACTORS} is not the scaling of Llama 3, the only'
    ' one supported: load the model from its safetensors folder'
  )
  tensor = file.tensors[LLAMA3_FACTORS]
  # Before as many numbers are computed as the metadata claim.
  if tensor.shape != ((head_dim + 1) // 2,):
    raise refusal
  stored = np.asarray(tensor.read(), np.float64)
  factor = float(str(np.float32(stored.max(initial=1.0))))
  exponents = np.arange(0, head_dim, 2) / head_dim
  wavelengths = 2 * math.pi * theta**exponents
  smooth = (original / wavelengths - low) / (high - low)
  expected = 1 / ((1 - smooth) / factor + smooth)
  expected = np.where(wavelengths < original / high, 1.0, expected)
  expected = np.where(wavelengths > original / low, factor, expected)
  if not np.allclose(stored, expected, rtol=_CLOSE, atol=0):
    raise refusal
  return {
    'rope_type': 'llama3',
    'factor': factor,
    'low_freq_factor': low,
    'high_freq_factor': high,
    'original_max_position_embeddings': original,
  }


def read_phi3(
  file: gguf.GgufFile,
  fields: gguf_fields.Fields,
  head_dim: int,
  context: int,
) -> dict[str, Any]:
  """Reads Phi-3's embedding: of a part of each head, plain or LongRoPE.

  Args:
    file: with the factors.
    fields: its metadata.
    head_dim: H.
    context: longest context in tokens.

  Returns:
    As `read`.

  Raises:
    MeJaxError: as in `read`; factors that are incomplete or unexplained.
  """
  rotated = fields.size('rope.dimension_count', head_dim)
  if rotated > head_dim or rotated % 2:
    raise fields.error(
      'rope.dimension_count', f'is {rotated}, of heads of {head_dim}'
    )
  share = rotated / head_dim
  if int(head_dim * share) < rotated:
    # The product is rounded down by one place: 30 of 44.
    share = math.nextafter(share, 1.0)
  rope = {
    'rope_theta': fields.number('rope.freq_base', 10_000.0),
    'rope_type': 'default',
    'partial_rotary_factor': share,
  }
  if fields.number('rope.scaling.factor', 1.0) != 1.0:
    raise fields.error('rope.scaling.factor', 'is not supported')
  _no_yarn(fields)
  kind = fields.text('rope.scaling.type', 'none')
  stored = {LONG_FACTORS, SHORT_FACTORS} & file.tensors.keys()
  if kind not in ('none', 'longrope') or (kind == 'longrope' and not stored):
    raise fields.error(
      'rope.scaling.type', f'is {kind!r}, which does not fit the tensors'
    )
  if not stored:
    if fields.number('rope.scaling.attn_factor', 1.0) != 1.0:
      raise fields.error('rope.scaling.attn_factor', 'has no factors with it')
    return rope
  original = fields.size('rope.scaling.original_context_length')
  rope |= {
    'rope_type': 'longrope',
    'long_factor': _factors(file, LONG_FACTORS, rotated),
    'short_factor': _factors(file, SHORT_FACTORS, rotated),
    'original_max_position_embeddings': original,
  }
  # What Hugging Face computes where its configuration does not say.
  stretch = max(1.0, context / original)
  usual = math.sqrt(1 + math.log(stretch) / math.log(max(original, 2)))
  scale = fields.number('rope.scaling.attn_factor')
  if not math.isclose(scale, usual, rel_tol=_CLOSE):
    rope['attention_factor'] = scale
  return rope


def _factors(file: gguf.GgufFile, name: str, rotated: int) -> list[float]:
  """Returns a tensor of divisors as the decimals that were meant."""
  tensor = file.tensors.get(name)
  if tensor is None or tensor.shape != (rotated // 2,):
    raise errors.MeJaxError(
      f'{file.path}: {name} is missing or has not {rotated // 2} numbers'
    )
  values = np.asarray(tensor.read(), np.float32)
  return [float(str(value)) for value in values]
