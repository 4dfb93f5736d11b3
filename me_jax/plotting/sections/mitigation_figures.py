"""What does a mask do? Held-out losses and attention, as figures.

Letters: L layers, C captured layers, N heads, T time.
"""

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np

from me_jax.analysis import attention_maps
from me_jax.mitigation import measure
from me_jax.mitigation import outcome as outcome_lib
from me_jax.plotting import prose
from me_jax.plotting import spec
from me_jax.plotting.sections import maps as maps_lib
from me_jax.plotting.sections import mitigation_dose
from me_jax.plotting.sections import mitigation_tables as words

CHOSEN, PAPER, STOCK = words.CHOSEN, outcome_lib.PAPER, words.STOCK
# A mask that does this many times what the others do gets no room beside them.
_BEYOND = 10
# Corpora beside which there is room for a second panel.
_MOST_BESIDE = 5
_BEST = (CHOSEN, PAPER)


def figures(
  outcome: outcome_lib.Outcome,
  maps: tuple[attention_maps.AttentionMaps, attention_maps.AttentionMaps]
  | None,
) -> tuple[spec.Figure, ...]:
  """Returns what there is to see: result, dose, attention, maps."""
  found = []
  if outcome.changes and outcome.stock:
    found.append(_held_out(outcome))
  if outcome.dose:
    found.append(mitigation_dose.figure(outcome))
  if STOCK in outcome.internals:
    found.append(_attention(outcome))
  if maps is not None:
    found.append(_maps(outcome, *maps))
  return tuple(found)


def shown(outcome: outcome_lib.Outcome) -> str:
  """Returns the mask that is compared with stock: chosen, else published."""
  return PAPER if outcome.chosen is None else CHOSEN


def _role(outcome: outcome_lib.Outcome, mask: str) -> spec.Role:
  """Returns whose colour a mask has."""
  if mask == shown(outcome):
    return 'massive'
  roles: dict[str, spec.Role] = {STOCK: 'other', PAPER: 'plain'}
  return roles.get(mask, 'control')


def _held_out(outcome: outcome_lib.Outcome) -> spec.Figure:
  """Draws the result: an interval for each corpus and mask."""
  masks = [mask for mask in _BEST if mask in outcome.changes]
  names = list(outcome.stock)
  chats = [name for name in names if outcome.stock[name].chat]
  beside = _within_sight(outcome)
  left_out = [mask for mask in outcome.changes if mask not in beside]
  panels = [_points('all tokens', outcome, masks, names, 'loss')]
  if len(beside) > len(masks):
    panels.append(
      _points('all tokens, with the controls', outcome, beside, names, 'loss')
    )
  if chats:
    panels.append(
      _points('answers alone', outcome, masks, chats, 'answer')
    )  # fmt: skip
    if len(beside) > len(masks):
      panels.append(
        _points(
          'answers alone, with the controls', outcome, beside, chats, 'answer'
        )
      )
  said = [
    f'{mask}: '
    + '; '.join(
      f'{name} {prose.interval(found.loss, "+.4f")}'
      for name, found in outcome.changes[mask].items()
    )
    + '.'
    for mask in masks
  ]
  said += [
    f'{mask}: {_extent(outcome, mask)}.'
    for mask in outcome.changes
    if mask not in masks
  ]
  caption = (
    'Change of the loss on texts that had no say in the choice; whiskers are '
    '95 % bootstrap intervals over texts. Look for whiskers that lie wholly '
    'below the grey line, which is the stock model: there the mask helps. '
    'Whiskers that cross it show no difference.'
  )
  if len(beside) > len(masks):
    caption += ' Green: the controls, on a scale of their own.'
  for mask in left_out:
    caption += (
      f' Off the scale and in the table only: {mask}, {_extent(outcome, mask)}.'
    )
  return spec.Figure(
    name='mitigation-held-out',
    title='Loss on held-out texts with a mask',
    caption=caption,
    alt='Change of the loss. ' + ' '.join(said),
    panels=tuple(panels),
    columns=2 if len(names) <= _MOST_BESIDE else 1,
  )


def _extent(outcome: outcome_lib.Outcome, mask: str) -> str:
  """Spells what a mask does at least and at most."""
  values = [found.loss.value for found in outcome.changes[mask].values()]
  values = [value for value in values if math.isfinite(value)]
  if not values:
    return 'no number'
  low, high = (
    prose.number(min(values), '+.4f'),
    prose.number(max(values), '+.4f'),
  )
  return low if low == high else f'{low} to {high}'


def _within_sight(outcome: outcome_lib.Outcome) -> list[str]:
  """Returns the masks without those that dwarf all others."""
  sizes = {}
  for mask, found in outcome.changes.items():
    values = [
      abs(part.value) for c in found.values() for part in (c.loss, c.answer)
    ]
    sizes[mask] = max((v for v in values if math.isfinite(v)), default=0.0)
  limit = _BEYOND * float(np.median(list(sizes.values())))
  return [m for m, size in sizes.items() if size <= limit or m in _BEST]


def _points(
  title: str,
  outcome: outcome_lib.Outcome,
  masks: Sequence[str],
  names: Sequence[str],
  which: str,
) -> spec.Chart:
  """Draws intervals, the masks of one corpus side by side."""
  nowhere = (math.nan,) * 3
  apart = min(0.8 / len(masks), 0.2)
  series = []
  for index, mask in enumerate(masks):
    found = outcome.changes[mask]
    rows = np.array(
      [getattr(found[n], which) if n in found else nowhere for n in names]
    )
    series.append(
      spec.Series(
        label=mask,
        x=np.arange(len(names)) + (index - (len(masks) - 1) / 2) * apart,
        y=rows[:, 0],
        low=rows[:, 1],
        high=rows[:, 2],
        role=_role(outcome, mask),
        style='points',
        hover=[f'{mask}, {name}' for name in names],
      )
    )
  series.append(
    mitigation_dose.level('stock model', 0.0, -0.5, len(names) - 0.5)
  )
  return spec.Chart(
    title=title,
    series=tuple(series),
    x_label='',
    y_label='change of the loss, nats per token',
    categories=tuple(names),
  )


def _attention(outcome: outcome_lib.Outcome) -> spec.Figure:
  """Draws who attends to the massive token, layer by layer."""
  masks = [m for m in (STOCK, CHOSEN, PAPER) if m in outcome.internals]
  others = [m for m in outcome.internals if m not in masks]
  masks += [m for m in others if m == 'random channels']
  layer = next((t.recipe.me_layer for t in outcome.trials), None)

  def chart(title: str, name: str, label: str) -> spec.Chart:
    return spec.Chart(
      title=title,
      series=tuple(
        spec.Series(
          label='stock model' if mask == STOCK else mask,
          y=getattr(outcome.internals[mask], name),
          role=_role(outcome, mask),
          style='line' if mask in (STOCK, shown(outcome)) else 'dashed',
        )
        for mask in masks
      ),
      x_label='layer',
      y_label=label,
      y_range=(0.0, 1.02),
      marks=() if layer is None else (float(layer),),
    )

  return spec.Figure(
    name='mitigation-attention',
    title='Attention to the massive token',
    caption=(
      'First: mean attention that the massive token receives, over heads and '
      'texts. Second: share of heads and texts in which it exceeds 0.3 (sink '
      'rate). Look at how far the blue line lies below the grey one after the '
      'ME Layer: a mask is to weaken sinks, not to remove them. Layers before '
      'the mask are the same by construction.'
    ),
    alt='Mean over layers after the span: '
    + '; '.join(_seen(mask, outcome.internals[mask]) for mask in masks)
    + '.',
    panels=(
      chart('mean attention', 'attention_by_layer', 'attention'),
      chart('sink rate', 'sink_rate_by_layer', 'share'),
    ),
  )


def _seen(mask: str, found: measure.Internals) -> str:
  return (
    f'{mask} attention {prose.number(found.attention, ".3f")}, sink rate '
    f'{prose.number(found.sink_rate, ".3f")}'
  )


def _maps(
  outcome: outcome_lib.Outcome,
  before: attention_maps.AttentionMaps,
  after: attention_maps.AttentionMaps,
) -> spec.Figure:
  """Draws maps in pairs, without and with the mask."""
  mask = shown(outcome)
  panels = []
  for layer, *pair in zip(before.layers, before.probs_CNTT, after.probs_CNTT):
    for name, probs_NTT in zip(('stock model', f'{mask} mask'), pair):
      panels.append(maps_lib.panel(f'layer {layer}, {name}', probs_NTT))
  pairs = zip(
    before.layers, maps_lib.received(before), maps_lib.received(after)
  )
  return spec.Figure(
    name='mitigation-maps',
    title='Attention maps without and with the mask',
    caption=(
      f'One text, a layer in each row: left the stock model, right {mask}. '
      'Mean over heads; rows are queries, columns keys, colours logarithmic '
      'from 0.001. Look at the bright column of the massive token '
      f'(key {before.position}): it is to be fainter on the right.'
    ),
    alt='The massive token receives on average '
    + ', '.join(f'{a:.3f} then {b:.3f} in layer {x}' for x, a, b in pairs)
    + '.',
    panels=tuple(panels),
    columns=2,
  )
