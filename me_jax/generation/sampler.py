"""Which token comes next?

Filters follow Hugging Face's rules in Hugging Face's order: repetition penalty
(Keskar et al. 2019, arXiv 1909.05858), temperature, top-k (Fan et al. 2018,
arXiv 1805.04833), top-p (Holtzman et al. 2020, arXiv 1904.09751), min-p (Nguyen
et al. 2024, arXiv 2407.01082). Logits that tie are kept or left out together.

Nothing is sorted: a filter keeps what is at least some logit, and that logit is
found by bisection over its bits, which is exact. A token is drawn by one number
a row, which depends on the row's seed and on how many tokens it has, never on
the rows beside it.

Letters: B rows, V vocabulary, N blocks of it, M tokens of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import math

import jax
import jax.numpy as jnp

from me_jax import errors

_BLOCK = 256  # tokens whose probabilities are summed first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How a token is chosen.

  Attributes:
    temperature: logits are divided by it; 0 takes the likeliest token.
    top_k: only so many likeliest tokens; 0 is all.
    top_p: only the likeliest that together have this probability.
    min_p: only those with this share of the likeliest one's probability.
    repetition_penalty: logits of tokens that the text holds are divided by it
      where positive, multiplied where negative.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0

  def __post_init__(self):
    for name, low, high, what in (
      ('temperature', 0.0, math.inf, '0 or more'),
      ('top_k', 0, math.inf, '0 (all) or more'),
      ('top_p', 0.0, 1.0, 'above 0, at most 1'),
      ('min_p', 0.0, 1.0, 'from 0 to 1'),
      ('repetition_penalty', 0.0, math.inf, 'above 0'),
    ):
      value = getattr(self, name)
      positive = name in ('top_p', 'repetition_penalty')
      if (
        not low <= value <= high
        or value == math.inf
        or (positive and value == 0)
      ):
        raise errors.MeJaxError(f'{name} is {value}, must be {what}.')

  @property
  def active(self) -> tuple[str, ...]:
    """The filters that do something; a program is compiled for each set."""
    inert = {'top_k': 0, 'top_p': 1.0, 'min_p': 0.0, 'repetition_penalty': 1.0}
    names = [k for k, nothing in inert.items() if getattr(self, k) != nothing]
    if self.temperature == 0:
      # The likeliest token survives every filter.
      return tuple(k for k in names if k == 'repetition_penalty')
    return ('temperature', *names)

  @property
  def values(self) -> dict[str, jax.Array]:
    """The numbers, which are traced: others need no new compile."""
    return {k: jnp.float32(getattr(self, k)) for k in self.active}


def draw(
  active: tuple[str, ...],
  values: Mapping[str, jax.Array],
  logits_BV: jax.Array,
  seen_BV: jax.Array | None,
  seeds_B: jax.Array,
  count_B: jax.Array,
) -> jax.Array:
  """Chooses a token a row, `[B]` int32.

  Args:
    active: `Sampling.active`.
    values: `Sampling.values`.
    logits_BV: float32.
    seen_BV: bool, tokens that the text holds; for the repetition penalty.
    seeds_B: uint32, one a row.
    count_B: int32, which token of its row this is.
  """
  if 'repetition_penalty' in active:
    assert seen_BV is not None
    by = values['repetition_penalty']
    punished_BV = jnp.where(logits_BV > 0, logits_BV / by, logits_BV * by)
    logits_BV = jnp.where(seen_BV, punished_BV, logits_BV)
  if 'temperature' not in active:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  weights_BV = filtered(active, values, logits_BV)
  uniform_B = jax.vmap(
    lambda seed, count: jax.random.uniform(
      jax.random.fold_in(jax.random.key(seed), count)
    )
  )(seeds_B, count_B)
  return _pick(weights_BV, uniform_B)


def filtered(
  active: tuple[str, ...], values: Mapping[str, jax.Array], logits_BV: jax.Array
) -> jax.Array:
  """Returns unnormalised probabilities `[B, V]`, 0 for what filters leave out."""
  logits_BV = logits_BV / values['temperature']
  peak_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
  weights_BV = jnp.exp(logits_BV - peak_B1)
  if 'top_k' in active:
    # The largest bound that so many tokens reach.
    bound_B = _bound(
      weights_BV,
      lambda bound_B1: (
        jnp.sum(weights_BV >= bound_B1, axis=-1) >= values['top_k']
      ),
    )
    weights_BV = jnp.where(weights_BV >= bound_B[:, None], weights_BV, 0.0)
  if 'top_p' in active:
    wanted_B = values['top_p'] * jnp.sum(weights_BV, axis=-1)
    # The largest bound whose tokens have the probability together.
    bound_B = _bound(
      weights_BV,
      lambda bound_B1: (
        jnp.sum(jnp.where(weights_BV >= bound_B1, weights_BV, 0.0), axis=-1)
        >= wanted_B
      ),
    )
    weights_BV = jnp.where(weights_BV >= bound_B[:, None], weights_BV, 0.0)
  if 'min_p' in active:
    # The likeliest weighs one.
    weights_BV = jnp.where(weights_BV >= values['min_p'], weights_BV, 0.0)
  return weights_BV


def _bound(
  weights_BV: jax.Array, enough: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """Returns the largest bound `[B]` that is still low enough; 0 if none is.

  Args:
    weights_BV: from 0 to 1, whose bits are ordered as they are.
    enough: says of bounds `[B, 1]` whether they are low enough, `[B]`.
  """

  def halve(i: jax.Array, bits_B: jax.Array) -> jax.Array:
    tried_B = bits_B | (jnp.int32(1) << (29 - i))
    bound_B = jax.lax.bitcast_convert_type(tried_B, jnp.float32)
    return jnp.where(enough(bound_B[:, None]), tried_B, bits_B)

  zero_B = jnp.zeros(weights_BV.shape[0], jnp.int32)
  bits_B = jax.lax.fori_loop(0, 30, halve, zero_B)
  return jax.lax.bitcast_convert_type(bits_B, jnp.float32)


def _pick(weights_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
  """Returns the token at a share of the summed weights, `[B]`."""
  batch, vocab = weights_BV.shape
  pads = ((0, 0), (0, -vocab % _BLOCK))
  weights_BNM = jnp.pad(weights_BV, pads).reshape(batch, -1, _BLOCK)
  reached_BN = jnp.cumsum(jnp.sum(weights_BNM, axis=-1), axis=-1)
  wanted_B1 = (uniform_B * reached_BN[:, -1])[:, None]
  block_B1 = jnp.sum(reached_BN <= wanted_B1, axis=-1, keepdims=True)
  block_B1 = jnp.minimum(block_B1, reached_BN.shape[1] - 1)
  before_BN = jnp.pad(reached_BN, ((0, 0), (1, 0)))
  rest_B1 = wanted_B1 - jnp.take_along_axis(before_BN, block_B1, axis=1)
  inside_BM = jnp.take_along_axis(weights_BNM, block_B1[..., None], axis=1)[
    :, 0
  ]
  place_B = jnp.sum(jnp.cumsum(inside_BM, axis=-1) <= rest_B1, axis=-1)
  # Rounding must not end on a token that was left out.
  last_B = _BLOCK - 1 - jnp.argmax(inside_BM[:, ::-1] > 0, axis=-1)
  place_B = jnp.minimum(place_B, last_B)
  return (block_B1[:, 0] * _BLOCK + place_B).astype(jnp.int32)
