"""The observers that the analyses share; each is a reduction of one site.

Letters: B batch, T time, D width of the site, C chosen tokens of a row, P texts
of a row.
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
  """The whole vector at chosen tokens: `[B, C, D]` float32.

  `operands['positions']` is int32 `[B, C]`, the indices within each row.
  """

  site: str
  name: str

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Takes tokens out of `[B, T, D]`."""
    return at(value, context.operands['positions']).astype(jnp.float32)


def at(value_BTD: jax.Array, positions_BC: jax.Array) -> jax.Array:
  """Returns the vectors at chosen tokens of each row, `[B, C, D]`."""
  return jax.lax.platform_dependent(
    value_BTD, positions_BC, cpu=_slices, default=_gather
  )


def _gather(value_BTD: jax.Array, positions_BC: jax.Array) -> jax.Array:
  return jnp.take_along_axis(value_BTD, positions_BC[..., None], axis=1)


def _slices(value_BTD: jax.Array, positions_BC: jax.Array) -> jax.Array:
  """The same by slices: XLA on the CPU fuses a gather with its whole operand."""
  batch, time, width = value_BTD.shape
  flat = value_BTD.reshape(-1, width)
  row_B1 = jnp.arange(batch)[:, None] * time
  taken = jax.lax.map(
    lambda i: jax.lax.dynamic_index_in_dim(flat, i, keepdims=False),
    (row_B1 + positions_BC).reshape(-1),
  )
  return taken.reshape(*positions_BC.shape, width)


@dataclasses.dataclass(frozen=True)
class TextMedian:
  """Median |x| over all tokens and channels of each text: `[B, P]` float32.

  By counting instead of sorting: each round counts the entries below a bound
  and moves it, along the line between the nearest counts on both sides of the
  half once there are some. Good to 1 %. Each round reads everything again, so
  of a longer text `tokens` evenly spaced ones are looked at.

  `operands['members']` is bool `[B, P, T]`, which tokens belong to which text;
  `operands['positions']` must hold a token of each: the first bound is a
  typical entry there.
  """

  site: str = 'resid_post'
  name: str = 'median'
  rounds: int = 8
  tokens: int = 512

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Reduces `[B, T, D]`."""
    first_BP = self._typical(value, context)
    value, members_BPT = self._sampled(value, context.operands['members'])
    entries_BP = jnp.sum(members_BPT, axis=-1) * float(value.shape[-1])

    def share_below(log_BP: jax.Array) -> jax.Array:
      bound_BPT = jnp.where(members_BPT, jnp.exp(log_BP)[..., None], 0.0)
      bound_BT1 = jnp.max(bound_BPT, axis=1)[..., None]
      # Without abs: XLA would share it with other readers, and store it.
      below_BTD = (value < bound_BT1) & (value > -bound_BT1)
      below_BT = jnp.sum(below_BTD, axis=-1, dtype=jnp.int32)
      below_BPT = jnp.where(members_BPT, below_BT[:, None], 0)
      return jnp.sum(below_BPT, axis=-1) / jnp.maximum(entries_BP, 1.0)

    def move(_, state):
      log_BP, low, high = state
      share_BP = share_below(log_BP)
      under = share_BP < 0.5
      low = [jnp.where(under, *x) for x in zip((log_BP, share_BP), low)]
      high = [jnp.where(under, *x[::-1]) for x in zip((log_BP, share_BP), high)]
      gap = jnp.maximum(high[1] - low[1], 1e-6)
      between = low[0] + (high[0] - low[0]) * (0.5 - low[1]) / gap
      # Until there is a count on either side, on by the slope that a normal
      # distribution has, and a little farther.
      onward = log_BP + jnp.clip((0.5 - share_BP) / 0.35, -2.0, 2.0)
      onward += jnp.where(under, 0.02, -0.02)
      enclosed = jnp.isfinite(low[0]) & jnp.isfinite(high[0])
      return jnp.where(enclosed, between, onward), low, high

    zero_BP = jnp.zeros_like(first_BP)
    start = (
      first_BP,
      [zero_BP - jnp.inf, zero_BP],
      [zero_BP + jnp.inf, zero_BP + 1.0],
    )
    return jnp.exp(jax.lax.fori_loop(0, self.rounds, move, start)[0])

  def _sampled(
    self, value: jax.Array, members_BPT: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns fewer tokens and which texts they belong to, if there are many."""
    batch, slots, time = members_BPT.shape
    if slots * self.tokens >= time:
      return value, members_BPT
    start_BP1 = jnp.argmax(members_BPT, axis=-1)[..., None]
    length_BP1 = jnp.sum(members_BPT, axis=-1)[..., None]
    index_11S = jnp.arange(self.tokens)[None, None]
    # Without a product that 32 bits do not hold.
    step_BP1 = jnp.maximum(length_BP1 / self.tokens, 1.0)
    place_BPS = start_BP1 + (index_11S * step_BP1).astype(jnp.int32)
    inside_BPS = index_11S < jnp.minimum(length_BP1, self.tokens)
    flat = (batch, slots * self.tokens)
    own = jnp.eye(slots, dtype=bool)[None, :, :, None]
    taken = at(value, jnp.minimum(place_BPS, time - 1).reshape(flat))
    members = own & inside_BPS[:, None]
    return taken, members.reshape(batch, slots, -1)

  def _typical(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Returns a guess of each text's log median, `[B, P]`.

    The geometric mean, which a spike hardly moves, times what a normal
    distribution's median is of it. The floor is for zeros.
    """
    positions_BC = context.operands['positions']
    size_BCD = jnp.abs(at(value, positions_BC)).astype(jnp.float32)
    floor_BC1 = 1e-3 * jnp.mean(size_BCD, axis=-1, keepdims=True) + 1e-30
    log_BC = jnp.mean(jnp.log(size_BCD + floor_BC1), axis=-1)
    chosen_BPC = jnp.take_along_axis(
      context.operands['members'], positions_BC[:, None], axis=2
    ).astype(jnp.float32)
    count_BP = jnp.maximum(jnp.sum(chosen_BPC, axis=-1), 1.0)
    return jnp.einsum('BPC,BC->BP', chosen_BPC, log_BC) / count_BP + 0.24


@dataclasses.dataclass(frozen=True)
class Whole:
  """The value as it is, in float32: for few tokens or few layers only."""

  site: str
  name: str

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Returns the value."""
    del context
    return value.astype(jnp.float32)
