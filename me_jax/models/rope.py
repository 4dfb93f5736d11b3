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


def inverse_frequencies(
  rope: config_lib.RopeConfig, head_dim: int
) -> tuple[np.ndarray, float]:
  """Returns the angles per position step and the scale of cos and sin.

  Args:
    rope: the kind and its numbers.
    head_dim: H.

  Returns:
    float32 `[R]` in radians per token, and the attention factor.

  Raises:
    MeJaxError: the kind is not handled.
  """
  rotated = int(head_dim * rope.partial_rotary_factor)
  exponents_R = np.arange(0, rotated, 2, dtype=np.float32) / rotated
  # A float64 power rounded to float32 gives torch's float32 power, bit by bit.
  wave_R = np.float64(rope.theta) ** exponents_R.astype(np.float64)
  freq_R = np.float32(1.0) / wave_R.astype(np.float32)
  if rope.kind == 'default':
    return freq_R, 1.0
  if rope.kind == 'linear':
    return freq_R / np.float32(rope.factor), 1.0
  if rope.kind == 'llama3':
    return _llama3(rope, freq_R), 1.0
  raise errors.MeJaxError(
    f"RoPE kind '{rope.kind}' is not handled; default, linear and llama3 are."
  )


def _llama3(rope: config_lib.RopeConfig, freq_R: np.ndarray) -> np.ndarray:
  """Llama 3.1's rule: long waves stretched, short ones kept, a ramp between."""
  original = rope.original_max_position_embeddings
  wave_R = 2 * math.pi / freq_R
  low, high = rope.low_freq_factor, rope.high_freq_factor
  ramp_R = (original / wave_R - low) / (high - low)
  smooth_R = (1 - ramp_R) * freq_R / rope.factor + ramp_R * freq_R
  scaled_R = np.where(wave_R > original / low, freq_R / rope.factor, smooth_R)
  return np.where(wave_R < original / high, freq_R, scaled_R).astype(np.float32)


def tables(
  rope: config_lib.RopeConfig, head_dim: int, positions_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns cosines and sines `[B, T, R]` in float32 for int32 positions."""
  freq_R, scale = inverse_frequencies(rope, head_dim)
  angle_BTR = positions_BT[..., None].astype(jnp.float32) * freq_R[None, None]
  return jnp.cos(angle_BTR) * scale, jnp.sin(angle_BTR) * scale


def rotate(
  x_BTNH: jax.Array, cos_BTR: jax.Array, sin_BTR: jax.Array
) -> jax.Array:
  """Rotates the first 2R dims of every head, half against half.

  Args:
    x_BTNH: queries or keys.
    cos_BTR: from `tables`, in the type of `x_BTNH` or float32.
    sin_BTR: likewise.

  Returns:
    `[B, T, N, H]` in the type of `x_BTNH`.
  """
  half = cos_BTR.shape[-1]
  cos = cos_BTR[:, :, None].astype(x_BTNH.dtype)
  sin = sin_BTR[:, :, None].astype(x_BTNH.dtype)
  first, second = x_BTNH[..., :half], x_BTNH[..., half : 2 * half]
  rest = x_BTNH[..., 2 * half :]
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin, rest], axis=-1
  )
