"""Where a loss is not finite: which rows make it so?"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from me_jax.analysis import host as host_lib
from me_jax.training import feed as feed_lib
from me_jax.training import objectives
from me_jax.training import placement
from me_jax.training import prepare as prepare_lib

_SHOWN = 60  # characters of a row
_NAMED = 3  # rows


def message(
  plan: prepare_lib.Plan,
  placed: prepare_lib.Placed,
  state: Any,
  fed: feed_lib.Fed,
  step: int,
  means: dict[str, float],
) -> str:
  """Says what happened in a step whose loss or gradient is not finite.

  Args:
    plan: of the run.
    placed: its model.
    state: before the step; an update that is not finite is not made.
    fed: the step's batch.
    step: its number, from 1.
    means: what the step returned.
  """
  run = plan.run

  @jax.jit
  def score(tree: Any, frozen: Any, packed: Any) -> jax.Array:
    params = prepare_lib.computed(run, tree, frozen)
    return objectives.token_logprobs(
      placed.model, params, packed, chunk=run.compute.vocabulary_chunk
    )

  batch = placement.to_global(fed.packed, plan.mesh, plan.rules)
  logp_BT = score(state.tree, placed.frozen, batch)
  bad_B = ~np.isfinite(host_lib.readable(logp_BT)).all(axis=1)
  # Of the rows of all processes, those that this one can read out.
  hosts, host = placement.row_share(plan.mesh, plan.rules)
  rows = np.flatnonzero(np.split(bad_B, hosts)[host]).tolist()
  what = f'loss {means["loss"]:g}, gradient {means["grad_norm"]:g}'
  start = f'step {step} is not finite ({what})'
  end = 'nothing after the last checkpoint is kept.'
  if not rows and bad_B.any():
    return f'{start} because of rows of another process; {end}'
  if not rows or bad_B.all():
    return (
      f'{start}, and no single row is to blame: try a smaller optim.lr, or more'
      f' optim.warmup; {end}'
    )
  named = ', '.join(
    f'row {row + 1} ({_begins(plan.tokenizer, fed.packed, row)!r})'
    for row in rows[:_NAMED]
  )
  more = f' and {len(rows) - _NAMED} more' if len(rows) > _NAMED else ''
  return f'{start} because of {named}{more} of its batch; {end}'


def _begins(tokenizer: Any, packed: Any, row: int) -> str:
  ids = packed.tokens_BT[row][packed.segments_BT[row] > 0]
  return tokenizer.decode(ids[:_SHOWN].tolist())[:_SHOWN]
