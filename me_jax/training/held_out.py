"""What does a model lose on rows that nothing is learnt from?

Text by text, so that two models are compared on the same texts, pair by pair,
with an interval.

Letters: B rows, T time, X texts of a row, N texts of a set.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from me_jax.analysis import bootstrap
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.training import data as data_lib
from me_jax.training import epoch as epoch_lib
from me_jax.training import examples as examples_lib
from me_jax.training import losses
from me_jax.training import objectives
from me_jax.training import packing
from me_jax.training import placement
from me_jax.training import settings as settings_lib
from me_jax.training import sharding as sharding_lib


class Texts(NamedTuple):
  """What a set lost.

  Attributes:
    loss_N: summed over each text's answer tokens, nats, float64; of pairs the
      chosen answer's.
    tokens_N: how many those are.
    rejected_N: of pairs, summed over the rejected answer; None of texts.
  """

  loss_N: np.ndarray
  tokens_N: np.ndarray
  rejected_N: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Set:
  """A held-out set in rows.

  Attributes:
    settings: of the set.
    packed: of each side (texts have one, pairs two) all rows.
    most: texts of a row, at most.
    left_out: texts that are too long.
  """

  settings: settings_lib.HeldOut
  packed: tuple[packing.Packed, ...]
  most: int
  left_out: int

  @property
  def name(self) -> str:
    """Its name in tables."""
    return self.settings.name


# Scores rows: `(params, packed)` to sums and counts by text, `[B, X]` each.
Score = Callable[[decoder.Params, packing.Packed], tuple[jax.Array, jax.Array]]


def read(
  settings: settings_lib.HeldOut,
  run: settings_lib.Run,
  tokenizer: Any,
  config: config_lib.ModelConfig,
) -> Set:
  """Reads a set and lays it out.

  Args:
    settings: of the set.
    run: whose evaluation settings are used.
    tokenizer: of the model.
    config: of the model.

  Raises:
    MeJaxError: it cannot be read, or no row of it fits.
  """
  length = min(run.evaluation.length, config.context_length)
  encoded = examples_lib.encode(
    tokenizer,
    config,
    data_lib.rows_of(settings.source, settings.kind),
    kind=settings.kind,
    length=length,
    answers=settings.answers,
  )
  rows = epoch_lib.rows(encoded, pack=True)
  if settings.kind == 'pairs':
    packed = tuple(packing.lay_out_pairs(rows, length))
    most = 1
  else:
    packed = (packing.lay_out(rows, length),)
    most = max(len(row) for row in rows)
  return Set(
    settings=settings, packed=packed, most=most, left_out=encoded.left_out
  )


def scorer(
  model: decoder.Decoder,
  run: settings_lib.Run,
  mesh: jax.sharding.Mesh,
  most: int,
) -> Score:
  """Returns the compiled function that scores rows of up to `most` texts."""
  everywhere = jax.NamedSharding(mesh, jax.P())

  @functools.partial(jax.jit, out_shardings=everywhere)
  def score(
    params: decoder.Params, packed: packing.Packed
  ) -> tuple[jax.Array, jax.Array]:
    logp_BT = objectives.token_logprobs(
      model, params, packed, chunk=run.compute.vocabulary_chunk
    )
    learnt_BT = objectives.learnt(packed)
    sums = functools.partial(
      losses.text_sums,
      wanted_BT=learnt_BT,
      segments_BT=packed.segments_BT,
      texts=most,
    )
    return -sums(logp_BT), sums(learnt_BT)

  return score


def measure(
  one: Set,
  score: Score,
  params: decoder.Params,
  mesh: jax.sharding.Mesh,
  rules: sharding_lib.Rules,
  rows: int,
) -> Texts:
  """Scores all texts of a set.

  Args:
    one: the set.
    score: from `scorer`, for at least as many texts of a row.
    params: of the model.
    mesh: that they lie on.
    rules: the table.
    rows: of a pass over all devices; raised to what the mesh divides.

  Returns:
    The sums, in the order of the rows.
  """
  parts = rules.parts('batch', mesh)
  rows = -(-rows // parts) * parts
  hosts, host = placement.row_share(mesh, rules)
  share = slice(host * rows // hosts, (host + 1) * rows // hosts)
  sides = []
  for packed in one.packed:
    sums, counts = [], []
    for start in range(0, len(packed.tokens_BT), rows):
      piece = jax.tree.map(
        lambda x, start=start: _filled(x[start : start + rows], rows)[share],
        packed,
      )
      piece = placement.to_global(piece, mesh, rules)
      for found, values in zip((sums, counts), score(params, piece)):
        found.append(np.asarray(values, np.float64))
    loss_BX, count_BX = np.concatenate(sums), np.concatenate(counts)
    sides.append((loss_BX[count_BX > 0], count_BX[count_BX > 0]))
  rejected = sides[1][0] if len(sides) > 1 else None
  return Texts(*sides[0], rejected)


def loss(texts: Texts) -> float:
  """Returns the loss per token, in nats."""
  return float(texts.loss_N.sum() / texts.tokens_N.sum())


def estimate(texts: Texts, seed: int = 0) -> bootstrap.Estimate:
  """Returns the loss per token with its 95 % interval, in nats."""
  return bootstrap.weighted_mean(
    texts.loss_N / texts.tokens_N, texts.tokens_N, seed=seed
  )


def change(before: Texts, after: Texts, seed: int = 0) -> bootstrap.Estimate:
  """Returns by how much the loss per token rose, paired by text, in nats."""
  difference_N = (after.loss_N - before.loss_N) / before.tokens_N
  return bootstrap.weighted_mean(difference_N, before.tokens_N, seed=seed)


def correct(before: Texts, after: Texts) -> float:
  """Returns the share of pairs that are told: the implicit reward's sign.

  Args:
    before: of the reference.
    after: of the model.
  """
  chosen_N = before.loss_N - after.loss_N
  assert before.rejected_N is not None and after.rejected_N is not None
  rejected_N = before.rejected_N - after.rejected_N
  return float(np.mean(chosen_N > rejected_N))


def to_json(texts: Texts) -> dict[str, Any]:
  """Returns the sums as JSON types; floats keep every bit."""
  return {
    name: None if values is None else values.tolist()
    for name, values in texts._asdict().items()
  }


def from_json(content: dict[str, Any]) -> Texts:
  """Returns what `to_json` was given."""
  found: list[Any] = [
    None if content[name] is None else np.array(content[name], np.float64)
    for name in Texts._fields
  ]
  return Texts(*found)


def _filled(values: np.ndarray, rows: int) -> np.ndarray:
  """Returns rows filled up with padding."""
  missing = [(0, rows - len(values))] + [(0, 0)] * (values.ndim - 1)
  return np.pad(values, missing)
