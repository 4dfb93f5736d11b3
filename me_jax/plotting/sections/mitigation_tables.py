"""Which numbers stand behind the mitigation? As tables, and as words."""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import math

from me_jax.mitigation import outcome as outcome_lib
from me_jax.mitigation import tune
from me_jax.mitigation import wemask
from me_jax.plotting import prose
from me_jax.plotting import spec

CHOSEN, STOCK = outcome_lib.CHOSEN, 'stock'
SELECTIONS = {
  'weight': 'largest |γ|',
  'me_weight': 'largest |γ| of the ME Layer',
  'activation': 'largest |h|',
  'random': 'random channels',
  'weight_bottom': 'smallest |γ|',
}
_MOST_TRIALS = 10
_ROW = 10  # layers in a row of strengths


def tables(outcome: outcome_lib.Outcome) -> tuple[spec.Table, ...]:
  """Returns what was measured, first the result, last how it was chosen."""
  names = list(outcome.stock)
  chats = [name for name in names if outcome.stock[name].chat]
  found = [
    spec.Table(
      caption=(
        'The result: change of the loss on held-out texts, nats per predicted '
        'token, with 95 % intervals over texts; below zero is better.'
      ),
      header=('mask', *(_size(outcome, name) for name in names)),
      rows=_rows(outcome, names, 'loss'),
    ),
    spec.Table(
      caption=(
        'The same for the answers alone that chats end with, which is what such '
        'a model is to write.'
      ),
      header=('mask', *chats),
      rows=_rows(outcome, chats, 'answer') if chats else (),
    ),
    spec.Table(
      caption=(
        'The first mask less each of the others, paired by text: change of the '
        'loss, nats per predicted token; below zero the first is better.'
      ),
      header=('less', *names),
      rows=tuple(
        (
          mask,
          *(
            prose.interval(found[n], '+.4f') if n in found else ''
            for n in names
          ),
        )
        for mask, found in outcome.less.items()
      ),
    ),
    spec.Table(
      caption=(
        'How far predictions move at all: divergence from the stock model on '
        'the same texts, KL(stock ‖ masked), nats per token.'
      ),
      header=('mask', *names),
      rows=_rows(outcome, names, 'kl'),
    ),
    _internals(outcome),
    _trials(outcome),
  ]
  if outcome.chosen and len(set(outcome.chosen.recipe.strength)) > 1:
    found.append(_strengths(outcome.chosen.recipe))
  return tuple(table for table in found if table.rows)


def strength(values: Sequence[float]) -> str:
  """Spells the strengths of a recipe."""
  low, high = min(values), max(values)
  if low == high:
    return f'{low:g}'
  return f'{low:.3g} to {high:.3g} by layer'


def within(trial: tune.Trial, budget: float) -> bool:
  """Whether plain text loses no more than it may."""
  return trial.change.get(tune.PLAIN, 0.0) <= budget


def ranked(outcome: outcome_lib.Outcome) -> list[tune.Trial]:
  """Returns the trials, best first; those beyond the budget come last."""

  def key(trial: tune.Trial) -> tuple[bool, float]:
    change = trial.change.get(tune.CHATS, trial.change.get(tune.PLAIN, 0.0))
    if not math.isfinite(change):
      return True, math.inf
    return not within(trial, outcome.budget), change

  return sorted(outcome.trials, key=key)


def _size(outcome: outcome_lib.Outcome, name: str) -> str:
  texts = outcome.stock[name].texts
  return f'{name}, {texts} text{"s" * (texts != 1)}'


def _rows(
  outcome: outcome_lib.Outcome, names: Sequence[str], which: str
) -> tuple[tuple[str, ...], ...]:
  """Returns a row for each mask, after the stock model's losses."""
  if not outcome.changes:
    return ()
  form = '.4f' if which == 'kl' else '+.4f'
  rows = [
    (mask, *(
      prose.interval(getattr(found[name], which), form) if name in found else ''
      for name in names
    ))
    for mask, found in outcome.changes.items()
  ]  # fmt: skip
  if which == 'kl':
    return tuple(rows)
  losses = [getattr(outcome.stock[name], which) for name in names]
  return (
    ('stock model: the loss itself', *(prose.number(x, '.4f') for x in losses)),
    *rows,
  )


def _internals(outcome: outcome_lib.Outcome) -> spec.Table:
  return spec.Table(
    caption=(
      'What changes inside, mean over layers after the emergence span: '
      'attention to the massive token, the share of layers, heads and texts in '
      'which it exceeds 0.3, the mean cosine across inputs of what attention '
      "receives of the token, and the effective rank of a text's vectors there. "
      'Last: texts that hold massive activations, which the mask leaves alone.'
    ),
    header=(
      'mask', 'attention', 'sink rate', 'rigidity', 'effective rank',
      'massive texts',
    ),
    rows=tuple(
      (
        mask,
        prose.number(found.attention, '.4f'),
        prose.number(found.sink_rate, '.4f'),
        prose.number(found.rigidity, '.4f'),
        prose.number(found.effective_rank, '.2f'),
        str(found.massive_texts),
      )
      for mask, found in outcome.internals.items()
    ),
  )  # fmt: skip


def _trials(outcome: outcome_lib.Outcome) -> spec.Table:
  best = ranked(outcome)[:_MOST_TRIALS]
  kinds = list(best[0].change) if best else []
  return spec.Table(
    caption=(
      f'Calibration numbers, never the result: {len(best)} of {outcome.tried} '
      'masks that were tried, by their change of the loss on the texts that the '
      f'choice was made on. Plain text may lose {outcome.budget:g}.'
    ),
    header=(
      'mask', 'channels', 'layers', 'strength',
      *(f'{kind} (calibration)' for kind in kinds), 'within the budget',
    ),
    rows=tuple(
      (
        trial.name
        + (' (chosen)' if outcome.chosen and trial.name == outcome.chosen.name
           else ''),
        str(trial.recipe.count),
        prose.layers(trial.recipe.layers).split(' ', 1)[1],
        strength(trial.recipe.strength),
        *(prose.number(trial.change.get(kind, math.nan), "+.4f") for kind in kinds),
        'yes' if within(trial, outcome.budget) else 'no',
      )
      for trial in best
    ),
  )  # fmt: skip


def _strengths(recipe: wemask.Recipe) -> spec.Table:
  """Lays strengths out ten layers a row: a model may have more than a hundred."""
  found = dict(zip(recipe.layers, recipe.strength))
  rows = []
  for tens, of in itertools.groupby(recipe.layers, lambda i: i // _ROW):
    masked = set(of)
    places = range(tens * _ROW, (tens + 1) * _ROW)
    rows.append(
      (
        f'{places[0]}-{places[-1]}',
        *(f'{found[i]:.3f}' if i in masked else '' for i in places),
      )
    )
  return spec.Table(
    caption=(
      'Strength of the chosen mask by layer: the part of each masked channel '
      'that is taken away. Columns are the last digit of the layer; empty '
      'cells are not masked.'
    ),
    header=('layers', *(f'…{i}' for i in range(_ROW))),
    rows=tuple(rows),
  )
