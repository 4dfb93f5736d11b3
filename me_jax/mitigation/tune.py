"""Which mask helps this model? Chosen on calibration texts.

Two families: the paper's, which has a choice of channels and layers, one rate
and one strength; and one strength a layer, found by following the gradient of
the calibration loss along each layer's mask. No weight is trained, and a mask is
data, so that a sweep compiles once for each shape of texts.

Letters: M settings, X texts, L layers, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
import optax

from me_jax.analysis import me_report
from me_jax.mitigation import scoring
from me_jax.mitigation import wemask
from me_jax.models import batch as batch_lib
from me_jax.models import decoder

RATES = (0.25, 0.5, 0.75, 1.0)
STRENGTHS = (0.5, 1.0)
# Kinds of calibration texts.
CHATS, PLAIN = 'chats', 'plain'
# Steps of the search for strengths, and how far one goes at first.
STEPS, _RATE = 16, 0.12
_START = 0.25
# The strengths that were found are tried as they are, weaker and stronger.
_FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5)

Progress = Callable[[int, int], Any]
Calibration = Mapping[str, scoring.Texts]


class Trial(NamedTuple):
  """A mask and what it does to calibration texts.

  Attributes:
    name: of the setting.
    recipe: how it is made again.
    change: mean change of the loss, nats per token, by kind of text.
  """

  name: str
  recipe: wemask.Recipe
  change: dict[str, float]


def grid(
  model: decoder.Decoder,
  report: me_report.MEReport,
  *,
  selections: Sequence[str] = ('weight', 'me_weight'),
  layers: Sequence[Any] = ('after', 'next'),
  rates: Sequence[float] = RATES,
  strengths: Sequence[float] = STRENGTHS,
  tokens: str | Sequence[int] = 'first',
  seed: int = 0,
) -> dict[str, wemask.Recipe]:
  """Returns the settings with one rate and strength, by name, each once."""
  found: dict[str, wemask.Recipe] = {}
  masks = set()
  for select in selections:
    for where in layers:
      for rate in rates:
        for strength in strengths:
          name = where if isinstance(where, str) else _listed(where)
          recipe = wemask.resolve(
            model, report, rate=rate, strength=strength, select=select,
            layers=where, tokens=tokens, seed=seed,
          )  # fmt: skip
          # All channels, and none, are the same ones whatever selects them.
          some = 0 < recipe.count < model.config.hidden_size
          mask = recipe if some else dataclasses.replace(recipe, select='')
          if mask not in masks:
            masks.add(mask)
            found[f'{select} {rate:g} × {strength:g}, {name}'] = recipe
  return found


def sweep(
  model: decoder.Decoder,
  params: decoder.Params,
  recipes: Mapping[str, wemask.Recipe],
  calibration: Calibration,
  *,
  batch: batch_lib.Batch | None = None,
  progress: Progress | None = None,
) -> list[Trial]:
  """Scores settings on calibration texts.

  Args:
    model: the decoder.
    params: its parameters, without a mask.
    recipes: the settings by name.
    calibration: texts by kind.
    batch: texts for `activation`.
    progress: called with (settings done, in all).

  Returns:
    A trial for each setting, in order. Its change is against no mask.
  """
  stock = wemask.ones(model, params)
  before = {
    kind: _mean(model, stock, texts) for kind, texts in calibration.items()
  }
  trials = []
  for done, (name, recipe) in enumerate(recipes.items(), 1):
    masked = wemask.apply(model, params, recipe, batch=batch)
    change = {
      kind: _mean(model, masked, texts) - before[kind]
      for kind, texts in calibration.items()
    }
    trials.append(Trial(name, recipe, change))
    if progress:
      progress(done, len(recipes))
  return trials


def strengths(
  model: decoder.Decoder,
  params: decoder.Params,
  recipe: wemask.Recipe,
  calibration: Calibration,
  *,
  steps: int = STEPS,
  batch: batch_lib.Batch | None = None,
  progress: Progress | None = None,
) -> wemask.Recipe:
  """Finds a strength for each layer of a recipe.

  Follows the gradient of the sum of the kinds' mean losses, each step on
  another pass of each kind of text, with Adam (Kingma and Ba 2015) and steps
  that shrink to zero; strengths stay between 0 and 1.

  Args:
    model: the decoder.
    params: its parameters, without a mask.
    recipe: says which channels, layers and tokens; its strengths are ignored.
    calibration: texts by kind.
    steps: of the search.
    batch: texts for `activation`.
    progress: called with (steps done, in all).

  Returns:
    The recipe with these strengths.
  """
  layers = list(recipe.layers)
  full = dataclasses.replace(recipe, strength=(1.0,) * len(layers))
  masked_LD = wemask.scale(model, params, full, batch=batch) == 0
  now = wemask.apply(model, params, full, batch=batch)
  optimiser = optax.adam(optax.cosine_decay_schedule(_RATE, steps))
  strength = jnp.full(len(layers), _START)
  state = optimiser.init(strength)
  streams = {kind: _passes(texts) for kind, texts in calibration.items()}
  for step in range(steps):
    gradient = np.zeros(len(layers))
    scale_LD = np.ones(masked_LD.shape, np.float32)
    scale_LD[layers] -= masked_LD[layers] * np.asarray(strength)[:, None]
    tree = wemask.with_scale(now, scale_LD)
    for kind, texts in calibration.items():
      _, found_LD = scoring.mean_and_gradient(
        model, tree, texts, [next(streams[kind])]
      )
      gradient -= (found_LD * masked_LD).sum(axis=1)[layers]
    update, state = optimiser.update(jnp.asarray(gradient), state)
    strength = jnp.clip(strength + cast(Any, update), 0.0, 1.0)
    if progress:
      progress(step + 1, steps)
  return dataclasses.replace(
    recipe, strength=tuple(np.round(np.asarray(strength, float), 4).tolist())
  )


def scalings(recipe: wemask.Recipe) -> dict[str, wemask.Recipe]:
  """Returns a recipe weaker and stronger, by name."""
  found: dict[str, wemask.Recipe] = {}
  for factor in _FACTORS:
    strength = np.clip(np.asarray(recipe.strength) * factor, 0, 1)
    scaled = dataclasses.replace(recipe, strength=tuple(strength.tolist()))
    # A strength of 1 cannot become stronger, none not weaker.
    if scaled not in found.values():
      found[f'{recipe.select}, by layer × {factor:g}'] = scaled
  return found


def best(trials: Sequence[Trial], budget: float) -> Trial | None:
  """Returns the trial that helps most.

  Args:
    trials: what was tried.
    budget: nats per token that plain text may lose.

  Returns:
    The one with the lowest loss on chats (on plain text where there are no
    chats) among those within the budget; None when none lowers it.
  """
  allowed = [
    trial
    for trial in ranked(trials)
    if trial.change.get(PLAIN, 0.0) <= budget and _gain(trial) > 0
  ]
  return allowed[0] if allowed else None


def ranked(trials: Sequence[Trial]) -> list[Trial]:
  """Returns trials in order, the lowest loss on chats first."""
  return sorted(trials, key=_gain, reverse=True)


def _gain(trial: Trial) -> float:
  gain = -trial.change.get(CHATS, trial.change.get(PLAIN, 0.0))
  # A sort has no place for a loss that is not a number.
  return -math.inf if math.isnan(gain) else gain


def _listed(layers: Sequence[int]) -> str:
  """Names layers that were given as a list."""
  return f'layers {"+".join(map(str, layers))}'


def _mean(
  model: decoder.Decoder, params: decoder.Params, texts: scoring.Texts
) -> float:
  """Returns the mean loss, nats per predicted token."""
  losses_BT = scoring.losses(model, params, texts)
  return float(texts.sums(losses_BT).sum() / texts.tokens_X.sum())


def _passes(texts: scoring.Texts) -> Iterator[int]:
  """Yields the first rows of passes, again and again."""
  while True:
    yield from range(0, len(texts.counted_BT), texts.rows)
