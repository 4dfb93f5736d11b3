"""The observers that the analyses share; each is a reduction of one site.

Letters: B batch, T time, D width of the site, P chosen positions of a row.
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

  site: str = 'resid_post'
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
    """Takes tokens out of `[B, T, D]`."""
    taken_BPD = jax.lax.platform_dependent(
      value, context.operands['positions'], cpu=_slices, default=_gather
    )
    return taken_BPD.astype(jnp.float32)


def _gather(value_BTD: jax.Array, positions_BP: jax.Array) -> jax.Array:
  return jnp.take_along_axis(value_BTD, positions_BP[..., None], axis=1)


def _slices(value_BTD: jax.Array, positions_BP: jax.Array) -> jax.Array:
  """The same by slices: XLA on the CPU fuses a gather with its whole operand."""
  batch, time, width = value_BTD.shape
  flat = value_BTD.reshape(-1, width)
  row_B1 = jnp.arange(batch)[:, None] * time
  taken = jax.lax.map(
    lambda i: jax.lax.dynamic_index_in_dim(flat, i, keepdims=False),
    (row_B1 + positions_BP).reshape(-1),
  )
  return taken.reshape(*positions_BP.shape, width)


@dataclasses.dataclass(frozen=True)
class Whole:
  """The value as it is, in float32: for few tokens or few layers only."""

  site: str
  name: str

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Returns the value."""
    del context
    return value.astype(jnp.float32)
