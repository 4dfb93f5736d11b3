"""RMSNorm, in the order of operations that Hugging Face uses.

Letters: D the normalised width.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


def rms_normalize(x: jax.Array, eps: float) -> jax.Array:
  """Divides by the root mean square of the last axis, in float32.

  Args:
    x: `[..., D]`, any float type.
    eps: added to the mean square.

  Returns:
    `[..., D]` float32, of root mean square one.
  """
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


class RMSNorm(nn.Module):
  """Root-mean-square norm (Zhang and Sennrich 2019, arXiv 1910.07467).

  The state is normalised in float32, cast to `dtype`, then multiplied by the
  weight: the order of the Llama family. With an `offset` (Gemma) the weight
  is added to it and applied in float32, before the cast.

  Attributes:
    eps: added to the mean square.
    offset: what the stored weight must be added to.
    dtype: of the result.
    param_dtype: of the weight.
    axis: logical name of the normalised axis, for sharding.
  """

  eps: float
  offset: float = 0.0
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  axis: str = 'norm'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises the last axis of `x`: `[..., D]` in, `[..., D]` out."""
    init = nn.initializers.zeros if self.offset else nn.initializers.ones
    weight_D = self.param(
      'weight',
      nn.with_logical_partitioning(init, (self.axis,)),
      (x.shape[-1],),
      self.param_dtype,
    )
    weight_D = weight_D.reshape((1,) * (x.ndim - 1) + (-1,))
    normal = rms_normalize(x, self.eps)
    if self.offset:
      scaled = normal * (self.offset + weight_D.astype(jnp.float32))
      return scaled.astype(self.dtype)
    return normal.astype(self.dtype) * weight_D.astype(self.dtype)
