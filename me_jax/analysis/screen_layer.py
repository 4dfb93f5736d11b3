"""Which entries of one layer rank first, given what later layers do?

The compiled part of the screen: functions of one layer, run from the last
layer to the first. What later layers answer to each channel comes with it, so
that nothing is kept of a layer but its first entries, however deep the model.
An entry is a channel and a neuron that writes to it.

Letters: D model width, F FFN width, K some channels, S = 2 signs (+, -), N
entries of a ranking.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from me_jax.analysis import quadratic_form as form
from me_jax.models import config as config_lib
from me_jax.models import decoder

# What is less than a massive activation is none (Sun et al. 2024): neither a
# writer's amount, nor what is erased, nor a neuron's answer to its own channel.
MASSIVE = 100.0


class Later(NamedTuple):
  """What the layers after this one answer, `[D, S]` each.

  Attributes:
    removal: what they all together take away from channel and sign.
    most: the largest removal from any of them on to the last.
    largest: the largest removal by one of them.
    layer: which one; -1 where none removes anything.
    neuron: its neuron that removes most.
  """

  removal: jax.Array
  most: jax.Array
  largest: jax.Array
  layer: jax.Array
  neuron: jax.Array


class Ranking(NamedTuple):
  """The first entries of one layer, `[N]` each.

  Attributes:
    score: what they are ranked by.
    channel: where the neuron writes.
    neuron: which one.
    plain: |w| |g| |u|.
    cosine: between g and u.
    amount: signed.
    answer: `[N, S]`, what the neuron alone adds along the sign where the state
      holds nothing but that channel.
    erased: how much of the amount's sign later layers remove.
    eraser_layer: the one that removes most of it; -1 without one.
    eraser_neuron: its neuron.
  """

  score: jax.Array
  channel: jax.Array
  neuron: jax.Array
  plain: jax.Array
  cosine: jax.Array
  amount: jax.Array
  answer: jax.Array
  erased: jax.Array
  eraser_layer: jax.Array
  eraser_neuron: jax.Array


class Channels(NamedTuple):
  """The first channels of one layer, `[N]` each.

  Attributes:
    score: of the channel, the best of its entries where it has several.
    channel: its index.
  """

  score: jax.Array
  channel: jax.Array


class LayerScores(NamedTuple):
  """What leaves the device of one layer.

  Attributes:
    plain: by the plain score.
    pairs: by sqrt(|amount| * erased), both massive.
    writers: by |amount|, entries left out whose neuron answers its channel.
    best_pairs: the two best channels by `pairs`.
    best_writers: the two best channels by `writers`.
  """

  plain: Ranking
  pairs: Ranking
  writers: Ranking
  best_pairs: Channels
  best_writers: Channels


class _View(NamedTuple):
  """Some channels, `[K, ...]` each: their rows, later removal and scale."""

  rows: form.Rows
  most: jax.Array
  scale: jax.Array


_Score = Callable[[_View], jax.Array]
# Rows of an FFN, and the biases of gate and up.
Ffn = tuple[form.Rows, jax.Array, jax.Array]


def nothing_later(width: int) -> Later:
  """Returns what comes after the last layer."""
  zero_DS = jnp.zeros((width, 2), jnp.float32)
  none_DS = jnp.full((width, 2), -1, jnp.int32)
  return Later(zero_DS, zero_DS, zero_DS, none_DS, none_DS)


# Apart from what reads it: fused with that, XLA would reorder once a reader.
@functools.partial(jax.jit, static_argnums=0)
def read(
  config: config_lib.ModelConfig,
  params: decoder.Params,
  layer: jax.Array,
  orders_3F: jax.Array,
) -> tuple[Ffn, Ffn]:
  """Returns the FFN of one layer, and the same with its rows reordered.

  Args:
    config: of the model.
    params: its parameters, stacked.
    layer: int32 scalar, traced: one compile serves every depth.
    orders_3F: int32, see `quadratic_form.reorder`.
  """
  ffn = rows, *biases = form.read(config, params, layer)
  return ffn, form.reorder(rows, (biases[0], biases[1]), orders_3F)


@functools.partial(jax.jit, static_argnums=(0, 4))
def score_layer(
  config: config_lib.ModelConfig,
  ffn: Ffn,
  layer: jax.Array,
  later: Later,
  top: int,
) -> tuple[LayerScores, Later]:
  """Ranks the entries of one layer three ways.

  Args:
    config: of the model.
    ffn: of the layer, from `read`.
    layer: int32 scalar, its index.
    later: what the layers after it answer.
    top: entries of each ranking.

  Returns:
    The rankings, and what the layer before has after it.
  """
  rows, *biases = ffn
  each = form.neurons(rows, *biases)
  removal_DS, neuron_DS, scale_DS = form.answers(config, rows, each)
  everything = _View(rows, later.most, scale_DS)

  def plain(view: _View) -> jax.Array:
    return form.plain_scores(view.rows, each)

  def pairs(view: _View) -> jax.Array:
    amount_KF = form.amounts(config, view.rows, each)
    erased_KF = jnp.where(
      amount_KF > 0, view.most[:, 0, None], view.most[:, 1, None]
    )
    both_KF = (jnp.abs(amount_KF) > MASSIVE) & (erased_KF > MASSIVE)
    return jnp.where(both_KF, jnp.sqrt(jnp.abs(amount_KF) * erased_KF), 0.0)

  def writers(view: _View) -> jax.Array:
    amount_KF = form.amounts(config, view.rows, each)
    counts_KF = jnp.abs(amount_KF) > MASSIVE
    for answer_KF in _own_answers(config, view, each):
      counts_KF &= jnp.abs(answer_KF) < MASSIVE
    return jnp.where(counts_KF, jnp.abs(amount_KF), 0.0)

  (by_plain, _), (by_pairs, best_pairs), (by_writers, best_writers) = (
    _first(config, everything, each, later, score, top)
    for score in (plain, pairs, writers)
  )
  scores = LayerScores(by_plain, by_pairs, by_writers, best_pairs, best_writers)
  removal_all_DS = later.removal + removal_DS
  stronger_DS = removal_DS > later.largest
  return scores, Later(
    removal=removal_all_DS,
    most=jnp.maximum(later.most, removal_all_DS),
    largest=jnp.maximum(later.largest, removal_DS),
    layer=jnp.where(stronger_DS, layer, later.layer),
    neuron=jnp.where(stronger_DS, neuron_DS, later.neuron),
  )


@functools.partial(jax.jit, static_argnums=1)
def score_blocks(rows: form.Rows, top: int) -> Channels:
  """Ranks the channels of one layer by |U_k|_F."""
  return _channels(form.frobenius(rows), top)


def _own_answers(
  config: config_lib.ModelConfig, view: _View, each: form.Neurons
) -> list[jax.Array]:
  """Returns what each neuron alone adds along each sign, `[K, F]` twice."""
  return [
    sign
    * view.scale[:, s, None]
    * form.lone_acts(config, view.rows, each, sign)
    * view.rows.down
    for s, sign in enumerate(form.SIGNS)
  ]


def _first(
  config: config_lib.ModelConfig,
  everything: _View,
  each: form.Neurons,
  later: Later,
  score: _Score,
  top: int,
) -> tuple[Ranking, Channels]:
  """Returns the entries of largest score, and the two best channels.

  The first N lie in the N channels whose own best entry is largest, so that
  no array of channels by neurons is stored or sorted.
  """
  best = _channels(jnp.max(score(everything), axis=1), max(top, 2))
  channel_K = best.channel[:top]
  view = jax.tree.map(lambda leaf: leaf[channel_K], everything)
  score_KF = score(view)
  score_N, flat_N = jax.lax.top_k(score_KF.ravel(), min(top, score_KF.size))
  row_N, neuron_N = jnp.divmod(flat_N, score_KF.shape[1])
  channel_N = channel_K[row_N]
  amount_N = form.amounts(config, view.rows, each)[row_N, neuron_N]
  sign_N = jnp.where(amount_N > 0, 0, 1)
  own = [x[row_N, neuron_N] for x in _own_answers(config, view, each)]
  length2_N = (each.gate2 * each.up2)[neuron_N]
  ranking = Ranking(
    score=score_N,
    channel=channel_N,
    neuron=neuron_N,
    plain=form.plain_scores(view.rows, each)[row_N, neuron_N],
    cosine=each.dot[neuron_N] * jax.lax.rsqrt(jnp.maximum(length2_N, 1e-30)),
    amount=amount_N,
    answer=jnp.stack(own, axis=1),
    erased=later.most[channel_N, sign_N],
    eraser_layer=later.layer[channel_N, sign_N],
    eraser_neuron=later.neuron[channel_N, sign_N],
  )
  return ranking, jax.tree.map(lambda leaf: leaf[:2], best)


def _channels(score_D: jax.Array, count: int) -> Channels:
  return Channels(*jax.lax.top_k(score_D, min(count, len(score_D))))
