"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864).

Every kind of scaling becomes a vector of inverse frequencies and a factor on
the cosines and sines; the rotation itself is the same for all.

Letters: B batch, T time, N heads, H head dim, R half the rotated dims.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from me_jax import errors
from me_jax.models import config as config_lib

# Kinds whose frequencies depend on how long the text is.
_BY_LENGTH = ('dynamic', 'longrope')


def inverse_frequencies(
  rope: config_lib.RopeConfig,
  head_dim: int,
  lengths: jax.Array | None = None,
) -> tuple[np.ndarray | jax.Array, float]:
  """Returns the angles per position step and the scale of cos and sin.

  Formulas: linear, arXiv 2306.15595; dynamic NTK and yarn, arXiv 2309.00071
  (sections 3.3, 3.1 and 3.4); llama3, the Llama 3.1 reference code; longrope,
  arXiv 2402.13753. Constants as transformers 5 has them.

  Args:
    rope: the kind and its numbers.
    head_dim: H.
    lengths: int32 of any shape, tokens of the texts. Only `dynamic` and
      `longrope` need it, whose frequencies depend on it.

  Returns:
    float32 `[R]` in radians per token (`[*lengths.shape, R]` for the two kinds
    that need lengths), and the attention factor.

  Raises:
    MeJaxError: the kind is not handled.
  """
  rotated = int(head_dim * rope.partial_rotary_factor)
  exponents_R = np.arange(0, rotated, 2, dtype=np.float32) / rotated
  # A float64 power rounded to float32 gives torch's float32 power, bit by bit.
  wave_R = np.float64(rope.theta) ** exponents_R.astype(np.float64)
  wave_R = wave_R.astype(np.float32)
  freq_R = np.float32(1.0) / wave_R
  if rope.kind == 'default':
    return freq_R, 1.0
  if rope.kind == 'linear':
    return freq_R / np.float32(rope.factor), 1.0
  if rope.kind == 'llama3':
    return _llama3(rope, freq_R), 1.0
  if rope.kind == 'yarn':
    return _yarn(rope, rotated, wave_R)
  if rope.kind not in _BY_LENGTH:
    raise errors.MeJaxError(f"RoPE kind '{rope.kind}' is not handled.")
  if lengths is None:
    raise errors.MeJaxError(f"RoPE kind '{rope.kind}' needs lengths of texts.")
  if rope.kind == 'dynamic':
    return _dynamic(rope, rotated, exponents_R, lengths), 1.0
  return _longrope(rope, wave_R, lengths)


def _original(rope: config_lib.RopeConfig) -> int:
  """Returns the context that was trained first, of a kind that needs it."""
  original = rope.original_max_position_embeddings
  if original is None:
    raise errors.MeJaxError(
      f"RoPE kind '{rope.kind}' needs original_max_position_embeddings."
    )
  return original


def _llama3(rope: config_lib.RopeConfig, freq_R: np.ndarray) -> np.ndarray:
  """Llama 3.1's rule: long waves stretched, short ones kept, a ramp between."""
  original = _original(rope)
  wave_R = 2 * math.pi / freq_R
  low, high = rope.low_freq_factor, rope.high_freq_factor
  ramp_R = (original / wave_R - low) / (high - low)
  smooth_R = (1 - ramp_R) * freq_R / rope.factor + ramp_R * freq_R
  scaled_R = np.where(wave_R > original / low, freq_R / rope.factor, smooth_R)
  return np.where(wave_R < original / high, freq_R, scaled_R).astype(np.float32)


def _dynamic(
  rope: config_lib.RopeConfig,
  rotated: int,
  exponents_R: np.ndarray,
  lengths: jax.Array,
) -> jax.Array:
  """A base that grows with the text beyond the original context."""
  original = _original(rope)
  lengths = jnp.maximum(lengths, original).astype(jnp.float32)
  stretch = rope.factor * lengths / original - (rope.factor - 1)
  base = rope.theta * stretch ** (rotated / (rotated - 2))
  exponents = exponents_R.reshape((1,) * base.ndim + (-1,))
  return 1.0 / base[..., None] ** exponents


def _yarn(
  rope: config_lib.RopeConfig, rotated: int, wave_R: np.ndarray
) -> tuple[np.ndarray, float]:
  """Long waves stretched, short ones kept, a ramp over dimensions between."""
  original = _original(rope)

  def dimension(rotations: float) -> float:
    turns = original / (rotations * 2 * math.pi)
    return rotated * math.log(turns) / (2 * math.log(rope.theta))

  low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
  if rope.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, rotated - 1)
  high = high + 0.001 if low == high else high  # as the reference has it
  index_R = np.arange(rotated // 2, dtype=np.float32)
  ramp_R = np.clip((index_R - low) / (high - low), 0, 1).astype(np.float32)
  kept_R = 1 - ramp_R
  freq_R = (
    np.float32(1.0) / (np.float32(rope.factor) * wave_R) * (1 - kept_R)
    + np.float32(1.0) / wave_R * kept_R
  )

  def magnitude(weight: float) -> float:
    if rope.factor <= 1:
      return 1.0
    return 0.1 * weight * math.log(rope.factor) + 1.0

  scale = rope.attention_factor
  if scale is None and rope.mscale and rope.mscale_all_dim:
    scale = magnitude(rope.mscale) / magnitude(rope.mscale_all_dim)
  elif scale is None:
    scale = magnitude(1.0)
  return freq_R.astype(np.float32), scale


def _longrope(
  rope: config_lib.RopeConfig, wave_R: np.ndarray, lengths: jax.Array
) -> tuple[jax.Array, float]:
  """One searched divisor a dimension; another set beyond the old context."""
  original = _original(rope)
  one = np.float32(1.0)
  short_R = one / (np.asarray(rope.short_factor, np.float32) * wave_R)
  long_R = one / (np.asarray(rope.long_factor, np.float32) * wave_R)
  shape = (1,) * lengths.ndim + (-1,)
  freq = jnp.where(
    (lengths > original)[..., None],
    long_R.reshape(shape),
    short_R.reshape(shape),
  )
  scale = rope.attention_factor
  if scale is None:
    scale = 1.0
    if rope.factor > 1:
      scale = math.sqrt(1 + math.log(rope.factor) / math.log(original))
  return freq, scale


def tables(
  rope: config_lib.RopeConfig,
  head_dim: int,
  positions_BT: jax.Array,
  lengths_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns cosines and sines `[B, T, R]` in float32.

  Args:
    rope: the kind and its numbers.
    head_dim: H.
    positions_BT: int32, each token's index within its text.
    lengths_BT: int32, how many tokens its text has.
  """
  freq, scale = inverse_frequencies(rope, head_dim, lengths_BT)
  freq_BTR = freq if freq.ndim > 1 else freq[None, None]
  angle_BTR = positions_BT[..., None].astype(jnp.float32) * freq_BTR
  return jnp.cos(angle_BTR) * scale, jnp.sin(angle_BTR) * scale


def rotate(
  x_BTNH: jax.Array,
  cos_BTR: jax.Array,
  sin_BTR: jax.Array,
  in_float32: bool = False,
) -> jax.Array:
  """Rotates the first 2R dims of every head, half against half.

  Args:
    x_BTNH: queries or keys.
    cos_BTR: from `tables`, in the type of `x_BTNH` or float32.
    sin_BTR: likewise.
    in_float32: whether to compute in float32 whatever the type of `x_BTNH`.

  Returns:
    `[B, T, N, H]` in the type of `x_BTNH`.
  """
  half = cos_BTR.shape[-1]
  kind = jnp.float32 if in_float32 else x_BTNH.dtype
  cos = cos_BTR[:, :, None].astype(kind)
  sin = sin_BTR[:, :, None].astype(kind)
  x = x_BTNH.astype(kind)
  first, second, rest = jnp.split(x, (half, 2 * half), axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin, rest], axis=-1
  ).astype(x_BTNH.dtype)
