"""RMSNorm, in the order of operations that Hugging Face uses.

Letters: D the normalised width.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from me_jax.models import config as config_lib


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
  weight: the order of the Llama family. Others multiply before they cast.

  Attributes:
    eps: added to the mean square.
    offset: what the stored weight must be added to (Gemma: 1).
    in_float32: whether the weight is multiplied before the cast.
    dtype: of the result.
    param_dtype: of the weight.
    axis: logical name of the normalised axis, for sharding.
  """

  eps: float
  offset: float = 0.0
  in_float32: bool = False
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
    kind = jnp.float32 if self.in_float32 else self.dtype
    scale_D = weight_D.astype(kind)
    if self.offset:
      scale_D = scale_D + self.offset
    scale_D = scale_D.reshape((1,) * (x.ndim - 1) + (-1,))

    # Backward normalises again, so that of all this the state alone is kept.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def normalize(x: jax.Array, scale_D: jax.Array) -> jax.Array:
      y = rms_normalize(x, self.eps).astype(kind) * scale_D
      return y.astype(self.dtype)

    return normalize(x, scale_D)


def for_config(
  config: config_lib.ModelConfig,
  dtype: jnp.dtype,
  param_dtype: jnp.dtype,
  *,
  name: str | None = None,
  axis: str = 'norm',
) -> RMSNorm:
  """Returns a norm as all norms of a model are.

  Args:
    config: of the model.
    dtype: of the result.
    param_dtype: of the weight.
    name: of the module.
    axis: logical name of the normalised axis.
  """
  return RMSNorm(
    eps=config.rms_norm_eps,
    offset=config.norm_offset,
    in_float32=config.norm_in_float32,
    dtype=dtype,
    param_dtype=param_dtype,
    axis=axis,
    name=name,
  )
