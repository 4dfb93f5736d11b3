"""What do a head's logits say of given tokens, a chunk of them at a time?

Logits `[B, T, V]` are the largest array of a training step. Here a scan over
the vocabulary holds those of one chunk of it at a time, with a running maximum
and sum; backward computes them again, so that nothing but the gradient of the
head itself grows with the vocabulary; under jit a head that is not trained has
none. Derivatives are reverse only.

Where the vocabulary is cut over devices, a chunk has a piece of each device's
part: no device needs another's logits, and the head is never gathered whole.

Letters: B rows, T time, D model width, V vocabulary, G parts of the vocabulary,
P tokens of each part in a chunk (chunks are `[G, P]`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from me_jax.models import logical_axes

_LOWEST = float(jnp.finfo(jnp.float32).min)


class Scores(NamedTuple):
  """What a model gives to tokens; both can be differentiated.

  Attributes:
    logp_BT: log-probability of each token, nats, float32.
    entropy_BT: of the distribution that it was drawn from, nats, float32.
  """

  logp_BT: jax.Array
  entropy_BT: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class How:
  """What a program is compiled for.

  Attributes:
    tied: whether the head is `[G, V / G, D]`; else it is `[G, D, V / G]`.
    size: V / G.
    width: P.
    steps: chunks.
    softcap: of the logits; 0 for none.
    temperature: divides the logits.
    precision: of products.
  """

  tied: bool
  size: int
  width: int
  steps: int
  softcap: float
  temperature: float
  precision: Any

  @property
  def axis(self) -> int:
    """The head's axis that is sliced."""
    return 1 if self.tied else 2

  @property
  def axes(self) -> tuple[str | None, ...]:
    """Logical names of the head's axes."""
    return ('vocab', None, 'embed') if self.tied else ('vocab', 'embed', None)

  def start(self, step: jax.Array) -> jax.Array:
    """Returns where a chunk begins; the last reaches back to be as long."""
    return jnp.minimum(step * self.width, self.size - self.width)

  def dot(self, spec: str, *operands: jax.Array) -> jax.Array:
    """Returns a product; `h` in the spec are the head's axes."""
    head = 'gpd' if self.tied else 'gdp'
    return jnp.einsum(
      spec.replace('h', head),
      *operands,
      precision=self.precision,
      preferred_element_type=jnp.float32,
    )


class _Chunk(NamedTuple):
  """The logits of a chunk.

  Attributes:
    head: its part of the head, in the type of the computation.
    logits: `[B, T, G, P]`.
    slope: their derivative by what the head puts out, `[B, T, G, P]` or 1.
    fresh: `[1, 1, 1, P]`, False where the chunk before has had the token.
    hit: `[B, T, G, P]`, where the target is.
  """

  head: jax.Array
  logits: jax.Array
  slope: jax.Array | float
  fresh: jax.Array
  hit: jax.Array


def _chunk(
  how: How,
  head: jax.Array,
  hidden_BTD: jax.Array,
  targets_BT: jax.Array,
  step: jax.Array,
) -> _Chunk:
  """Computes the logits of a chunk."""
  start = how.start(step)
  piece = jax.lax.dynamic_slice_in_dim(head, start, how.width, how.axis)
  # First as it lies, then whole in D, so that of a head that is cut along D as
  # well no more than a chunk is gathered.
  piece = logical_axes.constrain(piece, how.axes).astype(hidden_BTD.dtype)
  axes = (axis if axis == 'vocab' else None for axis in how.axes)
  piece = logical_axes.constrain(piece, axes)
  logits = how.dot('btd,h->btgp', hidden_BTD, piece)
  logits = logical_axes.constrain(logits, ('batch', 'time', 'act_vocab', None))
  slope = 1.0
  if how.softcap:
    logits = jnp.tanh(logits / how.softcap)
    slope = 1.0 - logits**2
    logits = how.softcap * logits
  if how.temperature != 1.0:
    logits, slope = logits / how.temperature, slope / how.temperature
  within = start + jnp.arange(how.width)[None, None, None]
  fresh = within >= step * how.width
  parts = jnp.arange(logits.shape[2])[None, None, :, None]
  hit = parts * how.size + within == targets_BT[..., None, None]
  return _Chunk(piece, logits, slope, fresh, hit & fresh)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def score(
  how: How, head: jax.Array, hidden_BTD: jax.Array, targets_BT: jax.Array
) -> Scores:
  """Returns the scores; `head` is laid out as `How` says."""
  return _forward(how, head, hidden_BTD, targets_BT)[0]


def _forward(
  how: How, head: jax.Array, hidden_BTD: jax.Array, targets_BT: jax.Array
) -> tuple[Scores, tuple[jax.Array, ...]]:
  """Returns the scores and what backward needs."""

  def step(carry, i):
    highest, total, moment, picked = carry
    _, logits, _, fresh, hit = _chunk(how, head, hidden_BTD, targets_BT, i)
    new = jnp.maximum(
      highest, jnp.max(logits, axis=3, initial=_LOWEST, where=fresh)
    )
    above = jnp.where(fresh, logits - new[..., None], 0.0)
    weights = jnp.where(fresh, jnp.exp(above), 0.0)
    shrink = jnp.exp(highest - new)
    moment = shrink * (moment + total * (highest - new))
    moment += jnp.sum(weights * above, axis=3)
    total = shrink * total + jnp.sum(weights, axis=3)
    here = jnp.sum(jnp.where(hit, logits, 0.0), axis=3)
    picked = jnp.where(jnp.any(hit, axis=3), here, picked)
    return (new, total, moment, picked), None

  # `[B, T, G]`: the parts meet after the last chunk. `moment` is the sum of
  # (logit - highest) exp(logit - highest): differences keep their digits where
  # logits are large.
  shape = (*targets_BT.shape, len(head))
  start = (_LOWEST, 0.0, 0.0, -jnp.inf)
  (each, total, moment, picked), _ = jax.lax.scan(
    step,
    tuple(jnp.full(shape, x, jnp.float32) for x in start),
    jnp.arange(how.steps),
  )
  highest = jnp.max(each, axis=2, keepdims=True)
  shrink = jnp.exp(each - highest)
  moment = jnp.sum(shrink * (moment + total * (each - highest)), axis=2)
  total = jnp.sum(shrink * total, axis=2)
  highest = highest[..., 0]
  scores = Scores(
    jnp.max(picked, axis=2) - highest - jnp.log(total),
    jnp.log(total) - moment / total,
  )
  return scores, (head, hidden_BTD, targets_BT, highest, total, scores[1])


def _backward(
  how: How, residuals: tuple[jax.Array, ...], cotangents: Scores
) -> tuple[jax.Array, jax.Array, None]:
  """Returns the gradients of the head and of the hidden states."""
  head, hidden_BTD, targets_BT, *columns = residuals
  highest, total, entropy, by_logp, by_entropy = (
    x[..., None, None] for x in (*columns, *cotangents)
  )

  def step(carry, i):
    hidden_gradient, head_gradient = carry
    chunk = _chunk(how, head, hidden_BTD, targets_BT, i)
    logp = chunk.logits - highest - jnp.log(total)
    probs = jnp.where(chunk.fresh, jnp.exp(logp), 0.0)
    gradient = by_logp * (chunk.hit - probs)
    gradient -= by_entropy * probs * (logp + entropy)
    gradient = (gradient * chunk.slope).astype(hidden_BTD.dtype)
    hidden_gradient += how.dot('btgp,h->btd', gradient, chunk.head)
    piece = how.dot('btgp,btd->h', gradient, hidden_BTD)
    piece = logical_axes.constrain(piece.astype(head.dtype), how.axes)
    start = how.start(i)
    # Added, because the last chunk reaches back over the one before.
    piece += jax.lax.dynamic_slice_in_dim(
      head_gradient, start, how.width, how.axis
    )
    head_gradient = jax.lax.dynamic_update_slice_in_dim(
      head_gradient, piece, start, how.axis
    )
    return (hidden_gradient, head_gradient), None

  start = (
    jnp.zeros(hidden_BTD.shape, jnp.float32),
    logical_axes.constrain(jnp.zeros_like(head), how.axes),
  )
  (hidden_gradient, head_gradient), _ = jax.lax.scan(
    step, start, jnp.arange(how.steps)
  )
  return head_gradient, hidden_gradient.astype(hidden_BTD.dtype), None


score.defvjp(_forward, _backward)
