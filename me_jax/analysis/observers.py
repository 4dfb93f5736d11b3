"""The observers that the analyses share; each is a reduction of one site.

Letters: B batch, T time, D width of the site, P chosen positions of a row, S
sampled tokens, W sampled channels.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from me_jax.models import sites


@dataclasses.dataclass(frozen=True)
class TokenNorm:
  """L2 norm of every token's state: `[B, T]` float32, 0 at padding.

  At `resid_pre` it is nearly free: the block's norm needs the same sum.
  """

  site: str = 'resid_pre'
  name: str = 'norm'

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Reduces `[B, T, D]`."""
    value = value.astype(jnp.float32)
    norm_BT = jnp.sqrt(jnp.sum(value * value, axis=-1))
    return jnp.where(context.segments_BT > 0, norm_BT, 0.0)


@dataclasses.dataclass(frozen=True)
class TokenPeak:
  """Largest |x| over every token's channels: `[B, T]` float32, 0 at padding."""

  site: str = 'resid_pre'
  name: str = 'peak'

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Reduces `[B, T, D]`."""
    peak_BT = jnp.max(jnp.abs(value), axis=-1).astype(jnp.float32)
    return jnp.where(context.segments_BT > 0, peak_BT, 0.0)


@dataclasses.dataclass(frozen=True)
class AtPositions:
  """The whole vector at chosen tokens: `[B, P, D]` float32.

  `operands['positions']` is int32 `[B, P]`, the indices within each row.
  """

  site: str
  name: str

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Gathers from `[B, T, D]`."""
    at_BP1 = context.operands['positions'][..., None]
    taken_BPD = jnp.take_along_axis(value, at_BP1, axis=1)
    return taken_BPD.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Sample:
  """|x| at tokens and channels spread evenly over the batch: `[S, W]` float32.

  The median of a layer's |x| would take a sort of the whole layer; that of a
  sample of n entries has a relative standard error of about 1.2 / sqrt(n).
  `operands['sample_rows']` and `operands['sample_columns']`, int32 `[S]`, say
  which tokens; `channels` bounds W.
  """

  site: str = 'resid_pre'
  name: str = 'sample'
  channels: int = 256

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Gathers from `[B, T, D]`."""
    rows_S = context.operands['sample_rows']
    columns_S = context.operands['sample_columns']
    stride = -(-value.shape[-1] // self.channels)
    taken_SW = value[rows_S, columns_S, ::stride]
    return jnp.abs(taken_SW).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Whole:
  """The value as it is, in float32: for few tokens or few layers only."""

  site: str
  name: str

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Returns the value."""
    del context
    return value.astype(jnp.float32)
