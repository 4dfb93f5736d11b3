"""Made-up outcomes of relaxing a model, for whatever shows them."""

from __future__ import annotations

import math

import numpy as np

from me_jax.analysis import attention_maps
from me_jax.analysis import bootstrap
from me_jax.mitigation import measure
from me_jax.mitigation import outcome as outcome_lib
from me_jax.mitigation import tune
from me_jax.mitigation import wemask

CORPORA = {'GSM8K': True, 'MATH-500': True, 'C4': False, 'WikiText-2': False}
CONTROLS = (
  'random channels',
  'smallest |γ|',
  'all channels',
  'token 5 instead',
  'layers before the span',
)
# Change of each mask on chats and on plain text.
_CHANGES = {
  outcome_lib.CHOSEN: (-0.082, -0.001),
  outcome_lib.PAPER: (-0.071, 0.024),
  'random channels': (0.05, 0.004),
  'smallest |γ|': (0.28, 0.11),
  'all channels': (3.1, 1.4),
  'token 5 instead': (0.09, 0.014),
  'layers before the span': (0.33, 0.2),
}


def recipe(
  select: str = 'weight',
  count: int = 288,
  layers: tuple[int, ...] = tuple(range(12, 30)),
  strength: tuple[float, ...] | None = None,
) -> wemask.Recipe:
  return wemask.Recipe(
    select=select,
    layers=layers,
    tokens='first',
    count=count,
    strength=strength or (1.0,) * len(layers),
    seed=0,
    me_layer=layers[0] - 1,
    after_layer=None,
    bound=0.0,
  )


def estimate(value: float, reach: float = 0.01) -> bootstrap.Estimate:
  return bootstrap.Estimate(value, value - reach, value + reach)


def change(
  value: float, reach: float = 0.01, *, answer: float | None = None
) -> measure.Change:
  return measure.Change(
    loss=estimate(value, reach),
    answer=estimate(value if answer is None else answer, reach),
    kl=estimate(abs(value) / 2 + 0.02, reach / 2),
  )


def internals(attention: float, depth: int = 30) -> measure.Internals:
  by_layer = np.where(np.arange(depth) < depth // 3 + 2, 0.1, attention)
  return measure.Internals(
    attention=attention,
    sink_rate=attention * 1.4,
    rigidity=0.995 - (0.51 - attention) / 20,
    effective_rank=31.4 + (0.51 - attention) * 9,
    attention_by_layer=by_layer + np.sin(np.arange(depth)) / 25,
    sink_rate_by_layer=np.clip(by_layer * 1.4, 0, 1),
    massive_texts=40,
  )


def dose(
  layers: tuple[int, ...] = tuple(range(12, 30)), width: int = 576
) -> tuple[tune.Trial, ...]:
  """Returns a sweep in which all channels were tried once."""
  curves = {
    'weight': (-0.03, -0.071, 0.12, 3.1),
    'me_weight': (-0.01, 0.02, 0.4),
    'random': (0.02, 0.05, 0.6),
    'weight_bottom': (0.08, 0.28, 1.1),
  }
  return tuple(
    tune.Trial(
      f'{select} {rate:g} × 1, after',
      recipe(select, int(rate * width), layers),
      {tune.CHATS: y, tune.PLAIN: abs(y) / 2},
    )
    for select, curve in curves.items()
    for rate, y in zip(tune.RATES, curve)
  )


def outcome(
  *,
  helps: bool = True,
  corpora: dict[str, bool] = CORPORA,
  texts: int = 200,
  depth: int = 30,
  changes: dict[str, dict[str, measure.Change]] | None = None,
  masks: dict[str, tuple[float, float]] = _CHANGES,
  controls: bool = True,
  count: int = 40,
) -> outcome_lib.Outcome:
  """Returns what a small model might give.

  Args:
    helps: whether a mask was chosen.
    corpora: whether each held-out corpus is of chats.
    texts: of each corpus.
    depth: layers of the model.
    changes: replaces those of some masks.
    masks: change on chats and on plain text, by mask.
    controls: whether any were measured.
    count: of trials.
  """
  layers = tuple(range(depth // 3 + 2, depth))
  strength = tuple((0.3 + 0.3 * np.sin(np.arange(len(layers)))).round(4))
  chosen = tune.Trial(
    'weight, by layer × 1.25',
    recipe('weight', 288, layers, strength),
    {tune.CHATS: -0.094, tune.PLAIN: 0.006},
  )
  if not any(corpora.values()):
    chosen = chosen._replace(change={tune.PLAIN: -0.02})
  others = tuple(
    tune.Trial(
      f'weight {i / count:g} × 0.5, after',
      recipe('weight', 10 * i, layers, (0.5,) * len(layers)),
      {k: 0.01 * i - 0.06 * helps for k in chosen.change},
    )
    for i in range(1, count)
  )
  kept = [m for m in masks if controls or m not in CONTROLS]
  kept = [m for m in kept if helps or m == outcome_lib.PAPER]
  reach = 0.01 if texts > 1 else 0.0
  found = {
    mask: {
      name: change(
        masks[mask][0 if chat else 1] + 0.005 * i,
        reach,
        answer=masks[mask][0] + 0.08 if chat else None,
      )
      for i, (name, chat) in enumerate(corpora.items())
    }
    for mask in kept
  }
  inside = dict(zip(('stock', *_CHANGES), (0.51, 0.43, 0.42, 0.46, 0.5, 0.24)))
  found |= changes or {}
  return outcome_lib.Outcome(
    tried=count,
    trials=(*((chosen,) if helps else ()), *others),
    dose=dose(layers) if any(corpora.values()) else (),
    chosen=chosen if helps else None,
    budget=0.02,
    calibration={kind: 48 for kind in chosen.change},
    stock={
      name: measure.Stock(
        chat=chat, texts=texts, tokens=texts * 150, loss=2.3, answer=0.9
      )
      for name, chat in corpora.items()
    },
    changes=found,
    less=less(found),
    internals={
      mask: internals(x, depth)
      for mask, x in inside.items()
      if mask == 'stock' or mask in found
    },
  )


def less(
  changes: dict[str, dict[str, measure.Change]],
) -> dict[str, dict[str, bootstrap.Estimate]]:
  """Returns the first mask's losses less those of the others."""
  first, *others = changes.values()
  names = list(changes)[1:]
  return {
    mask: {
      name: estimate(first[name].loss.value - one.loss.value)
      for name, one in other.items()
    }
    for mask, other in zip(names, others)
  }


def nothing() -> measure.Change:
  """Returns a change that could not be measured."""
  return measure.Change(*[bootstrap.Estimate(*[math.nan] * 3)] * 3)


def maps() -> tuple[attention_maps.AttentionMaps, attention_maps.AttentionMaps]:
  """Returns attention of one text to its first token, and less of it."""
  rng = np.random.default_rng(0)
  pair = []
  for sink in (6.0, 3.5):
    scores = rng.normal(size=(2, 4, 24, 24))
    scores[..., 0] += sink
    scores = np.where(np.tri(24, dtype=bool), scores, -np.inf)
    probs = np.exp(scores)
    probs /= probs.sum(-1, keepdims=True)
    pair.append(attention_maps.AttentionMaps((12, 20), probs, 0))
  return pair[0], pair[1]
