"""How are only those columns scored that are wanted?

In fine-tuning about half of the tokens are learnt, and which they are differs
from batch to batch, while a compiled program's shapes do not. Here the wanted
columns of each row are put first, and blocks of columns are scored until no
wanted one is left: what the head costs goes by how many there are.

Letters: B rows, T time, D model width, N columns of a block.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from me_jax.training import vocabulary_scan


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def score(
  how: vocabulary_scan.How,
  blocks: int,
  head: jax.Array,
  hidden_BTD: jax.Array,
  targets_BT: jax.Array,
  wanted_BT: jax.Array,
) -> vocabulary_scan.Scores:
  """Returns scores as `vocabulary_scan.score` does, of wanted columns.

  Args:
    how: of `vocabulary_scan`.
    blocks: into how many T is cut, which they divide.
    head: laid out as `how` says.
    hidden_BTD: what the head receives.
    targets_BT: int32, the tokens to score.
    wanted_BT: bool; what the other columns get is 0 or their score.
  """
  return _forward(how, blocks, head, hidden_BTD, targets_BT, wanted_BT)[0]


def _forward(
  how: vocabulary_scan.How,
  blocks: int,
  head: jax.Array,
  hidden_BTD: jax.Array,
  targets_BT: jax.Array,
  wanted_BT: jax.Array,
) -> tuple[vocabulary_scan.Scores, Any]:
  """Returns the scores and what backward needs."""
  order_BT = jnp.argsort(~wanted_BT, axis=1, stable=True)
  back_BT = jnp.argsort(order_BT, axis=1)
  count = targets_BT.shape[1] // blocks
  needed = -(-jnp.max(jnp.sum(wanted_BT, axis=1)) // count)
  states = _ordered((hidden_BTD, targets_BT), order_BT)

  def score_block(i, found):
    scores, (_, _, _, *columns) = vocabulary_scan.forward(
      how, head, *_block(states, i, count)
    )
    return _with_block(found, (scores, *columns), i)

  zeros_BT = jnp.zeros(targets_BT.shape, jnp.float32)
  entropy_BT = zeros_BT if how.entropy else None
  start = (
    vocabulary_scan.Scores(zeros_BT, entropy_BT),
    zeros_BT,
    zeros_BT,
    entropy_BT,
  )
  found = jax.lax.fori_loop(0, needed, score_block, start)
  kept = head, states, found[1:], order_BT, back_BT, needed
  return _ordered(found[0], back_BT), kept


def _backward(
  how: vocabulary_scan.How,
  blocks: int,
  kept: Any,
  cotangents: vocabulary_scan.Scores,
) -> tuple[jax.Array, jax.Array, None, None]:
  """Returns the gradients of the head and of the hidden states."""
  head, states, columns, order_BT, back_BT, needed = kept
  count = order_BT.shape[1] // blocks
  cotangents = _ordered(cotangents, order_BT)

  def add_block(i, gradients):
    by_head, by_hidden = gradients
    here = _block((states, columns, cotangents), i, count)
    by_head, part = vocabulary_scan.backward(
      how, (head, *here[0], *here[1]), here[2], by_head
    )
    return by_head, _with_block(by_hidden, part, i)

  start = vocabulary_scan.no_gradient(how, head), jnp.zeros_like(states[0])
  by_head, by_hidden = jax.lax.fori_loop(0, needed, add_block, start)
  return by_head, _ordered(by_hidden, back_BT), None, None


def _ordered(tree: Any, order_BT: jax.Array) -> Any:
  """Returns arrays `[B, T, ...]` with their columns in another order."""

  def of(x: jax.Array) -> jax.Array:
    order = order_BT.reshape(*order_BT.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, order, axis=1)

  return jax.tree.map(of, tree)


def _block(tree: Any, i: jax.Array, count: int) -> Any:
  """Returns the columns of a block, `[B, N, ...]`."""
  return jax.tree.map(
    lambda x: jax.lax.dynamic_slice_in_dim(x, i * count, count, axis=1), tree
  )


def _with_block(tree: Any, block: Any, i: jax.Array) -> Any:
  """Returns the arrays with a block's columns written."""
  return jax.tree.map(
    lambda x, part: jax.lax.dynamic_update_slice_in_dim(
      x, part, i * part.shape[1], axis=1
    ),
    tree,
    block,
  )


score.defvjp(_forward, _backward)
