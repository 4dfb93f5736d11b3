"""What do eight bits cost, is it the massive tokens' fault, and does a mask help?

A model is run with activations, the residual stream or weights rounded
(`rounding.py`), beside itself without, text by text. Where massive tokens are
*exempt* they stay exact and do not count for a scale: what is then saved is their
part of the cost. The control exempts as many ordinary tokens of the same texts,
a few times others, because the least change flips roundings everywhere after it
and so moves the loss by itself; intervals over texts do not hold that.
The same is done to variants of the model, such as masked ones; a variant's
*relief* is what rounding costs it less what it costs the stock model, paired by
text. A per-tensor scale is that of a whole pass, some texts that run together.

Letters: X texts, B rows, T time, L layers, S sites.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from me_jax import errors
from me_jax.analysis import bootstrap
from me_jax.analysis import massive_tokens
from me_jax.analysis import next_token
from me_jax.analysis import passes
from me_jax.analysis import residual
from me_jax.evaluation import conditions
from me_jax.evaluation import rounding
from me_jax.mitigation import scoring
from me_jax.mitigation import wemask
from me_jax.models import batch as batch_lib
from me_jax.models import decoder
from me_jax.models import sink

STOCK, EXACT = 'stock', conditions.EXACT

_DRAWS = 3  # of ordinary tokens that are exempt

Progress = Callable[[int, int], Any]


class Corpus(NamedTuple):
  """What some texts are.

  Attributes:
    texts: how many.
    tokens: predicted tokens.
    massive_tokens: tokens with massive activations.
    massive_texts: texts that have one.
  """

  texts: int
  tokens: int
  massive_tokens: int
  massive_texts: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantisation:
  """What rounding costs.

  Attributes:
    bits: of a rounded number.
    guessing: loss of giving all words the same probability, nats per token.
    me_layer: of the stock model; None without one.
    conditions: what was rounded, `exact` first.
    variants: names of the models, `stock` first.
    corpora: the texts, by name.
    loss: by corpus, variant and condition, nats per token.
    cost: the same less the variant's exact loss, paired by text, with an
      interval.
    relief: by corpus, variant and condition, what rounding costs it less what
      it costs the stock model, paired by text; of no variant but the others.
    spared: by corpus, variant and condition with exempt tokens, its cost less
      that of the same condition without exemption, paired by text.
    error: by variant, condition and rounded site `[L]`, the root of the summed
      squares of the error over that of the values, at ordinary tokens that are
      rounded; over all corpora. NaN where nothing is rounded.
    peak: by variant and site `[2, L]`, the largest |x| of all tokens and of
      ordinary ones, in the exact model.
    weight_error: by variant and condition with rounded weights, the same ratio
      by matrix `[L]`.
  """

  bits: int
  guessing: float
  me_layer: int | None
  conditions: tuple[conditions.Condition, ...]
  variants: tuple[str, ...]
  corpora: dict[str, Corpus]
  loss: dict[str, dict[str, dict[str, float]]]
  cost: dict[str, dict[str, dict[str, bootstrap.Estimate]]]
  relief: dict[str, dict[str, dict[str, bootstrap.Estimate]]]
  spared: dict[str, dict[str, dict[str, bootstrap.Estimate]]]
  error: dict[str, dict[str, dict[str, np.ndarray]]]
  peak: dict[str, dict[str, np.ndarray]]
  weight_error: dict[str, dict[str, dict[str, np.ndarray]]]


def measure(
  model: decoder.Decoder,
  params: decoder.Params,
  variants: Mapping[str, decoder.Params],
  texts: Mapping[str, scoring.Texts],
  *,
  me_layer: int | None = None,
  bits: int = 8,
  seed: int = 0,
  progress: Progress | None = None,
) -> Quantisation:
  """Rounds a model and its variants in every way and compares the losses.

  Conditions are data: one compile serves all of one shape of texts.

  Args:
    model: the decoder, scanned; its own edits and observers are replaced.
    params: of the stock model.
    variants: parameters of the same model by name, with a mask or without.
    texts: the corpora, by name; rows of one length share a compile.
    me_layer: the ME Layer of the stock model, see `conditions.all_of`.
    bits: of a rounded number, 2 to 16.
    seed: of the bootstrap and of the ordinary tokens that are exempt.
    progress: called with (passes done, in all).

  Raises:
    MeJaxError: there is nothing to run, a name is taken, or `bits` or
      `me_layer` is out of range.
  """
  depth = model.config.num_hidden_layers
  _check(variants, texts, depth, me_layer, bits)
  levels = np.float32(2 ** (bits - 1) - 1)
  plan = conditions.all_of(depth, me_layer)
  trees = {
    # With the same leaves as masked ones they share a compile.
    name: tree if sink.SCALE in tree['layers'] else wemask.ones(model, tree)
    for name, tree in {STOCK: params, **variants}.items()
  }
  pieces = {
    name: _pieces(model, params, laid, seed) for name, laid in texts.items()
  }
  used = rounding.observed(model)
  total = len(trees) * sum(map(_draws, plan)) * sum(map(len, pieces.values()))
  done = 0
  sums: dict[tuple[str, str, str], np.ndarray] = {}
  seen: dict[tuple[str, str], dict[str, np.ndarray]] = {}
  weight_error: dict[str, dict[str, dict[str, np.ndarray]]] = {}
  for name, tree in trees.items():
    kernels = {'': tree}
    for condition in plan:
      how = condition.weights
      if how not in kernels:
        kernels[how] = rounding.round_kernels(
          tree, levels, by_channel=how == 'channel'
        )
      if how and not condition.sites:
        errors_of = _kernel_errors(tree, kernels[how])
        weight_error.setdefault(name, {})[condition.name] = errors_of
      parts = []
      draws = _draws(condition)
      for corpus, laid in texts.items():
        found = []
        for draw in range(draws):
          losses = []
          for piece in pieces[corpus]:
            operands = conditions.operands(
              condition,
              depth=depth,
              levels=float(levels),
              real_BT=piece.batch.segments_BT > 0,
              massive_BT=piece.massive_BT,
              ordinary_BT=piece.ordinary[draw],
            )
            scores, observed = jax.device_get(
              next_token.score(used, kernels[how], *piece.batch, operands)
            )
            losses.append(scores['loss'])
            parts.append(observed)
            done += 1
            if progress is not None:
              progress(done, total)
          loss_BT = np.concatenate(losses)[: len(laid.counted_BT)]
          found.append(laid.sums(loss_BT))
        sums[corpus, name, condition.name] = np.mean(found, axis=0)
      seen[name, condition.name] = _joined(parts)
  return Quantisation(
    bits=bits,
    guessing=math.log(model.config.vocab_size),
    me_layer=me_layer,
    conditions=plan,
    variants=tuple(trees),
    corpora={
      name: _described(laid, pieces[name]) for name, laid in texts.items()
    },
    **_compared(sums, texts, tuple(trees), plan, seed),
    error={
      name: {
        c.name: {
          site: _relative(seen[name, c.name][site], c, depth)
          for site in c.sites
        }
        for c in plan
        if c.sites
      }
      for name in trees
    },
    peak={
      name: {site: seen[name, EXACT][site][:, 2:].T for site in rounding.SITES}
      for name in trees
    },
    weight_error=weight_error,
  )


class _Piece(NamedTuple):
  """The rows of a pass, and its massive and some ordinary tokens, as masks."""

  batch: batch_lib.Batch
  massive_BT: np.ndarray
  ordinary: tuple[np.ndarray, ...]


def _draws(condition: conditions.Condition) -> int:
  return _DRAWS if condition.exempt == 'ordinary' else 1


def _check(
  variants: Mapping[str, Any],
  texts: Mapping[str, Any],
  depth: int,
  me_layer: int | None,
  bits: int,
) -> None:
  """Raises MeJaxError before any work."""
  if STOCK in variants:
    raise errors.MeJaxError(f'no variant can be named {STOCK!r}')
  if not texts:
    raise errors.MeJaxError('there is no text to run a rounded model on')
  if me_layer is not None and not 0 <= me_layer < depth:
    raise errors.MeJaxError(f'me_layer is {me_layer}, of {depth} layers')
  if not 2 <= bits <= 16:
    raise errors.MeJaxError(f'bits is {bits}, must be 2 to 16')


def _pieces(
  model: decoder.Decoder,
  params: decoder.Params,
  laid: scoring.Texts,
  seed: int,
) -> list[_Piece]:
  """Cuts texts into passes, and finds the stock model's massive tokens."""
  random = np.random.default_rng(seed)
  slots = passes.slots_of(laid.batch)
  pieces = []
  for start in range(0, len(laid.counted_BT), laid.rows):
    batch = passes.take_rows(laid.batch, start, laid.rows)
    look = massive_tokens.look(residual.measure, model, params, batch, slots)
    massive_BT = (batch.segments_BT > 0) & ~look.ordinary_BT
    ordinary = tuple(np.zeros_like(massive_BT) for _ in range(_DRAWS))
    for row, first, length, _ in zip(*look.spans):
      here = slice(first, first + length)
      others = np.flatnonzero(look.ordinary_BT[row, here])
      others = others[others > 0]
      count = min(int(massive_BT[row, here].sum()), len(others))
      for drawn_BT in ordinary:
        picked = random.choice(others, count, replace=False)
        drawn_BT[row, first + picked.astype(int)] = True
    pieces.append(_Piece(batch, massive_BT, ordinary))
  return pieces


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Adds up what passes saw, and keeps their largest: `[L, 4]` by site."""
  found = {}
  for site in rounding.SITES:
    each = np.stack([part[rounding.Seen(site).name] for part in parts])
    each = each.astype(np.float64)
    found[site] = np.concatenate(
      [each[..., :2].sum(axis=0), each[..., 2:].max(axis=0)], axis=-1
    )
  return found


def _relative(
  seen_L4: np.ndarray, condition: conditions.Condition, depth: int
) -> np.ndarray:
  """Returns the relative error in each layer that is rounded, else NaN."""
  error_L = np.sqrt(seen_L4[:, 0] / np.maximum(seen_L4[:, 1], 1e-300))
  inside_L = np.ones(depth, bool)
  if condition.layers is not None:
    inside_L = np.isin(np.arange(depth), condition.layers)
  return np.where(inside_L, error_L, np.nan)


def _kernel_errors(
  exact: decoder.Params, other: decoder.Params
) -> dict[str, np.ndarray]:
  """Returns the relative error of each matrix, by layer."""
  found = {}
  for branch in ('self_attn', 'mlp'):
    for name, leaves in exact['layers'][branch].items():
      if 'kernel' in leaves:
        old = np.asarray(leaves['kernel'], np.float32)
        new = np.asarray(other['layers'][branch][name]['kernel'], np.float32)
        size = np.linalg.norm(old, axis=(1, 2))
        found[name] = np.linalg.norm(new - old, axis=(1, 2)) / size
  return found


def _described(laid: scoring.Texts, pieces: list[_Piece]) -> Corpus:
  massive_BT = np.concatenate([piece.massive_BT for piece in pieces])
  massive_BT = massive_BT[: len(laid.text_BT)]
  return Corpus(
    texts=len(laid.tokens_X),
    tokens=int(laid.tokens_X.sum()),
    massive_tokens=int(massive_BT.sum()),
    massive_texts=len(np.unique(laid.text_BT[massive_BT])),
  )


def _compared(
  sums: Mapping[tuple[str, str, str], np.ndarray],
  texts: Mapping[str, scoring.Texts],
  variants: tuple[str, ...],
  plan: tuple[conditions.Condition, ...],
  seed: int,
) -> dict[str, Any]:
  """Returns `loss`, `cost`, `relief` and `spared`, paired by text."""
  loss, cost, relief, spared = ({c: {} for c in texts} for _ in range(4))
  for corpus, laid in texts.items():
    tokens_X = laid.tokens_X

    mean = functools.partial(_mean, tokens_X=tokens_X, seed=seed)

    rise = {
      (v, c.name): sums[corpus, v, c.name] - sums[corpus, v, EXACT]
      for v in variants
      for c in plan
    }
    for v in variants:
      names = [c.name for c in plan if c.name != EXACT]
      loss[corpus][v] = {
        c.name: float(sums[corpus, v, c.name].sum() / tokens_X.sum())
        for c in plan
      }
      cost[corpus][v] = {name: mean(rise[v, name]) for name in names}
      if v != STOCK:
        relief[corpus][v] = {
          name: mean(rise[v, name] - rise[STOCK, name]) for name in names
        }
      spared[corpus][v] = {
        c.name: mean(rise[v, c.name] - rise[v, c.name.split(',')[0]])
        for c in plan
        if c.exempt
      }
  return {'loss': loss, 'cost': cost, 'relief': relief, 'spared': spared}


def _mean(
  sums_X: np.ndarray, *, tokens_X: np.ndarray, seed: int
) -> bootstrap.Estimate:
  return bootstrap.weighted_mean(sums_X / tokens_X, tokens_X, seed=seed)
