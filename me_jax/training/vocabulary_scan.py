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
    entropy_BT: of the distribution that it was drawn from, nats, float32; None
      where it was not asked for.
  """

  logp_BT: jax.Array
  entropy_BT: jax.Array | None


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
    entropy: whether it is asked for.
    precision: of products.
  """

  tied: bool
  size: int
  width: int
  steps: int
  softcap: float
  temperature: float
  entropy: bool
  precision: Any

  @property
  def even(self) -> bool:
    """Whether no chunk reaches back over another."""
    return self.width * self.steps == self.size

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
    fresh: `[1, 1, 1, P]`, False where the chunk before has had the token; None
      where none can have.
    place: `[B, T, G]`, where in the chunk the target is; -1 for elsewhere.
  """

  head: jax.Array
  logits: jax.Array
  slope: jax.Array | float
  fresh: jax.Array | None
  place: jax.Array

  def kept(self, x: jax.Array, other: float) -> jax.Array:
    """Replaces what the chunk before has had."""
    return x if self.fresh is None else jnp.where(self.fresh, x, other)


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
  axes = [axis if axis == 'vocab' else None for axis in how.axes]
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
  # Known to change nothing it is left out: XLA's reductions on CPUs are several
  # times as slow with a mask.
  fresh = None
  first = jnp.zeros((), jnp.int32)
  if not how.even:
    first = step * how.width - start
    fresh = (jnp.arange(how.width) >= first)[None, None, None]
  parts = jnp.arange(logits.shape[2])[None, None]
  place = targets_BT[..., None] - parts * how.size - start
  inside = (place >= first) & (place < how.width)
  return _Chunk(piece, logits, slope, fresh, jnp.where(inside, place, -1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def score(
  how: How, head: jax.Array, hidden_BTD: jax.Array, targets_BT: jax.Array
) -> Scores:
  """Returns the scores; `head` is laid out as `How` says."""
  return forward(how, head, hidden_BTD, targets_BT)[0]


def forward(
  how: How, head: jax.Array, hidden_BTD: jax.Array, targets_BT: jax.Array
) -> tuple[Scores, tuple[jax.Array | None, ...]]:
  """Returns the scores and what backward needs."""

  def step(carry, i):
    highest, total, moment, picked = carry
    chunk = _chunk(how, head, hidden_BTD, targets_BT, i)
    peak = jnp.max(chunk.kept(chunk.logits, _LOWEST), axis=3)
    new = jnp.maximum(highest, peak)
    above = chunk.kept(chunk.logits - new[..., None], 0.0)
    weights = chunk.kept(jnp.exp(above), 0.0)
    shrink = jnp.exp(highest - new)
    if how.entropy:
      moment = shrink * (moment + total * (highest - new))
      moment += jnp.sum(weights * above, axis=3)
    total = shrink * total + jnp.sum(weights, axis=3)
    # One number of each column: a masked sum would read them all.
    index = jnp.maximum(chunk.place, 0)[..., None]
    here = jnp.take_along_axis(chunk.logits, index, axis=3)[..., 0]
    picked = jnp.where(chunk.place >= 0, here, picked)
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
    jnp.log(total) - moment / total if how.entropy else None,
  )
  return scores, (head, hidden_BTD, targets_BT, highest, total, scores[1])


def no_gradient(how: How, head: jax.Array) -> jax.Array:
  """Returns what gradients of the head are added to."""
  return logical_axes.constrain(jnp.zeros_like(head), how.axes)


def backward(
  how: How,
  residuals: tuple[jax.Array, ...],
  cotangents: Scores,
  by_head: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns the gradients of the head, added to `by_head`, and of the states.

  Args:
    how: what is compiled.
    residuals: of `forward`.
    cotangents: of its scores.
    by_head: of `no_gradient`, or what other columns gave.
  """
  head, hidden_BTD, targets_BT, *columns = residuals
  highest, total, entropy, by_logp, by_entropy = jax.tree.map(
    lambda x: x[..., None, None],
    (*columns, *cotangents),
  )
  within = jnp.arange(how.width)[None, None, None]

  def step(carry, i):
    hidden_gradient, head_gradient = carry
    chunk = _chunk(how, head, hidden_BTD, targets_BT, i)
    logp = chunk.logits - highest - jnp.log(total)
    probs = chunk.kept(jnp.exp(logp), 0.0)
    gradient = by_logp * ((chunk.place[..., None] == within) - probs)
    if how.entropy:
      gradient -= by_entropy * probs * (logp + entropy)
    gradient = (gradient * chunk.slope).astype(hidden_BTD.dtype)
    hidden_gradient += how.dot('btgp,h->btd', gradient, chunk.head)
    # The hidden states first: see `mlp._product`.
    piece = jax.lax.dot_general(
      hidden_BTD,
      gradient,
      (((0, 1), (0, 1)), ((), ())),
      precision=how.precision,
      preferred_element_type=jnp.float32,
    )
    piece = jnp.moveaxis(piece, 0, 2 if how.tied else 1)
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

  start = jnp.zeros(hidden_BTD.shape, jnp.float32), by_head
  (hidden_gradient, head_gradient), _ = jax.lax.scan(
    step, start, jnp.arange(how.steps)
  )
  return head_gradient, hidden_gradient.astype(hidden_BTD.dtype)


def _backward(
  how: How, residuals: tuple[jax.Array, ...], cotangents: Scores
) -> tuple[jax.Array, jax.Array, None]:
  start = no_gradient(how, residuals[0])
  return *backward(how, residuals, cotangents, start), None


score.defvjp(forward, _backward)
