"""How much of the massive token may be masked? The sweep as a figure."""

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np

from me_jax.mitigation import outcome as outcome_lib
from me_jax.mitigation import tune
from me_jax.plotting import prose
from me_jax.plotting import spec
from me_jax.plotting.sections import mitigation_tables as words

CONTROLS = ('random', 'weight_bottom')


def figure(outcome: outcome_lib.Outcome) -> spec.Figure:
  """Draws how much helps, and from where on it harms."""
  kinds = list(dict.fromkeys(k for t in outcome.dose for k in t.change))
  panels, said = [], []
  for kind in kinds:
    title = 'plain text' if kind == tune.PLAIN else kind
    lines, x_label = _lines(outcome.dose, kind)
    end = max(np.asarray(series.x)[-1] for series in lines)
    values = np.concatenate([series.y for series in lines])
    values = values[np.isfinite(values)]
    low, high = values.min(), values.max()
    levels = [level('stock model', 0.0, 0.0, end)]
    reach = -low
    if kind == tune.PLAIN:
      levels.append(level('budget', outcome.budget, 0.0, end))
      reach = max(reach, outcome.budget)
    if outcome.chosen and math.isfinite(
      outcome.chosen.change.get(kind, math.nan)
    ):
      change = outcome.chosen.change[kind]
      levels.append(level('chosen mask', change, 0.0, end, 'plain'))
      reach = max(reach, abs(change))
    chart = spec.Chart(
      title=title,
      series=(*lines, *levels),
      x_label=x_label,
      y_label='change of the loss, nats per token',
    )
    panels.append(chart)
    reach = 2.0 * float(reach)
    if 0 < 2 * reach < high:
      bottom = min([0.0, *(float(np.nanmin(s.y)) for s in chart.series)])
      panels.append(
        spec.Chart(
          title=f'{title}, enlarged around the stock model',
          series=chart.series,
          x_label=x_label,
          y_label=chart.y_label,
          y_range=(bottom - reach / 8, reach),
        )
      )
    best = min(lines, key=lambda s: np.nanmin(s.y))
    at = np.asarray(best.x)[int(np.nanargmin(best.y))]
    lowest = (
      f'lowest with {best.label} at {at:g}, {prose.number(low, "+.4f")}'
      if low < 0
      else 'no mask lies below the stock model'
    )
    said.append(f'{title}: {lowest}; highest {prose.number(high, "+.4f")}.')
  return spec.Figure(
    name='mitigation-dose',
    title='How much is masked, and what it does to calibration texts',
    caption=(
      'Change of the loss on calibration texts by how many channels are masked '
      'at full strength; a line for each way to choose them, green ones are '
      'controls. Look for a dip below the grey line that the controls do not '
      'have, and for where it ends. These texts chose the mask, so the depth of '
      'the dip is no result.'
    ),
    alt=f'By {x_label}. ' + ' '.join(said),
    panels=tuple(panels),
  )


def _lines(
  dose: Sequence[tune.Trial], kind: str
) -> tuple[list[spec.Series], str]:
  """Returns a line for each selection, and what its x is."""
  widest = max(trial.recipe.count for trial in dose)
  selections = {trial.recipe.select for trial in dose}
  whole = {t.recipe.select for t in dose if t.recipe.count == widest}
  # A sweep tries a mask of all channels once: they are the same for all.
  shared = len(whole) == 1 < len(selections) and widest > 0
  groups: dict[tuple, dict[int, tune.Trial]] = {}
  for trial in dose:
    recipe = trial.recipe
    where = recipe.layers, recipe.strength
    groups.setdefault((*where, recipe.select), {})[recipe.count] = trial
  wholes = {key[:2]: g[widest] for key, g in groups.items() if widest in g}
  lines = []
  for (*where, select), group in groups.items():
    if shared and tuple(where) in wholes:
      group = {**group, widest: wholes[tuple(where)]}
    counts = sorted(group)
    label = words.SELECTIONS.get(select, select)
    if len({key[0] for key in groups}) > 1:
      label += f', {prose.layers(where[0])}'
    control = select in CONTROLS
    lines.append(
      spec.Series(
        label=label,
        x=np.array([0, *counts]) / (widest if shared else 1),
        y=np.array([0.0, *(group[c].change.get(kind, np.nan) for c in counts)]),
        role='control' if control else 'massive' if not lines else 'plain',
        style='dashed' if control else 'line',
        hover=['no mask', *(group[c].name for c in counts)],
      )
    )
  return lines, 'rate, the share of channels masked' if shared else (
    'channels masked in a layer'
  )  # fmt: skip


def level(
  label: str, y: float, start: float, stop: float, role: spec.Role = 'other'
) -> spec.Series:
  """Returns a level line from one x to another."""
  return spec.Series(
    label=label,
    x=np.array([start, stop]),
    y=np.array([y, y]),
    role=role,
    style='steps',
  )
