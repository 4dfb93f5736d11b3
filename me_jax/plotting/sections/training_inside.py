"""What became of the inside of a model while it was trained?

Letters: n points of a curve, L layers, S looks inside.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from me_jax.plotting import spec
from me_jax.plotting.sections import training_curves as curves
from me_jax.plotting.sections import training_rows as rows_lib

ME_LAYER = 'me_layer'
# What a look writes that has a name of its own; others are named by their key.
_TITLES = {
  ME_LAYER: 'ME Layer',
  'spike': 'spike',
  'sink_rate': 'sink rate',
  'rigidity': 'rigidity',
}
# Not about the model.
_ASIDE = ('step', 'kind', 'seconds', 'texts', 'tokens', 'gates')
_MOST = 12
# Columns of a map over steps, so that each has its name.
_COLUMNS = 20


class Measured(NamedTuple):
  """Something that was looked at more than once.

  Attributes:
    title: what it is.
    curve: over steps.
  """

  title: str
  curve: rows_lib.Curve


class GateMaps(NamedTuple):
  """Gates by layer and look; NaN where there are none.

  Attributes:
    step_S: `[S]`.
    mean_LS: `[L, S]`, mean gate.
    masked_LS: `[L, S]`, share of gates below a half.
  """

  step_S: np.ndarray
  mean_LS: np.ndarray
  masked_LS: np.ndarray


def measured(run: rows_lib.Run) -> dict[str, Measured]:
  """Returns every number that looks inside wrote, by key."""
  keys = [k for k in rows_lib.names(run.monitor) if k not in _ASIDE]
  known = [key for key in _TITLES if key in keys]
  found = {}
  for key in known + [key for key in keys if key not in known]:
    curve = rows_lib.curve(run.monitor, key)
    if len(curve.step_n) and len(found) < _MOST:
      title = _TITLES.get(key, key.replace('_', ' '))
      found[key] = Measured(title, curve)
  return found


def spelt(value: float) -> str:
  """Spells a number of any size."""
  if not math.isfinite(value):
    return 'no number'
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def at(run: rows_lib.Run, key: str, index: int) -> str:
  """Spells what the first or the last look says of something.

  Args:
    run: the rows.
    key: of `measured`.
    index: 0 or -1.
  """
  value = rows_lib.number(run.monitor[index].get(key))
  # Many a model has none; null is a finding there.
  if key == ME_LAYER and not math.isfinite(value):
    return 'none'
  return spelt(value)


def gates(run: rows_lib.Run) -> GateMaps | None:
  """Returns the gates of each look that described them, None without any."""
  looks = []
  for row in run.monitor:
    found = row.get('gates')
    if isinstance(found, Mapping):
      mean, masked = (_by_layer(found, key) for key in ('mean_G', 'masked_G'))
      if mean and masked:
        looks.append((row['step'], mean, masked))
  if not looks:
    return None
  depth = 1 + max(max(mean) for _, mean, _ in looks)
  shape = depth, len(looks)
  mean_LS, masked_LS = np.full(shape, np.nan), np.full(shape, np.nan)
  for look, (_, mean, masked) in enumerate(looks):
    for by_layer, into_LS in ((mean, mean_LS), (masked, masked_LS)):
      into_LS[list(by_layer), look] = list(by_layer.values())
  return GateMaps(np.array([look[0] for look in looks]), mean_LS, masked_LS)


def gates_figure(run: rows_lib.Run) -> spec.Figure | None:
  """Draws gates by layer, before and after, and how they became so."""
  found = gates(run)
  if found is None:
    return None
  step_S, mean_LS, masked_LS = found
  has_gates = np.flatnonzero(np.isfinite(mean_LS).any(axis=1))
  if not len(has_gates):
    return None
  many = len(step_S) > 1
  panels = [
    _by_layer_chart('mean gate by layer', mean_LS, step_S, 'mean gate'),
    _by_layer_chart(
      'share below a half by layer', masked_LS, step_S, 'share of channels'
    ),
  ]
  if many:
    shown = np.unique(
      np.linspace(0, len(step_S) - 1, min(_COLUMNS, len(step_S)))
      .round()
      .astype(int)
    )
    for title, values_LS in (
      ('mean gate over steps', mean_LS),
      ('share below a half over steps', masked_LS),
    ):
      panels.append(
        spec.Heatmap(
          title=title,
          values=values_LS[:, shown],
          x_label=curves.STEP,
          y_label='layer',
          value_label=title.removesuffix(' over steps'),
          x_names=tuple(str(step) for step in step_S[shown]),
        )
      )
  return spec.Figure(
    name='training-gates',
    title='The gates',
    caption=(
      'A gate multiplies a channel of what attention receives of the massive '
      'token: 1 changes nothing, below a half more is masked than kept. Look at '
      'which layers leave 1; layers without gates are blank.'
    ),
    alt=' '.join(gates_said(run)),
    panels=tuple(panels),
  )


def gates_said(run: rows_lib.Run) -> list[str]:
  """Says what became of the gates."""
  found = gates(run)
  if found is None or not np.isfinite(found.mean_LS).any():
    return []
  step_S, mean_LS, masked_LS = found
  before = ''
  if len(step_S) > 1:
    before = f' ({spelt(_mean(mean_LS[:, 0]))} at step {step_S[0]:,})'
  said = [
    f'At step {step_S[-1]:,} the mean gate is {spelt(_mean(mean_LS[:, -1]))}'
    f'{before}, and {100 * _mean(masked_LS[:, -1]):.1f} % of them are below a '
    'half.'
  ]
  last_L = masked_LS[:, -1]
  if np.nanmax(last_L, initial=0.0) > 0:
    layer = int(np.nanargmax(last_L))
    said.append(
      f'Most are in layer {layer}: {100 * last_L[layer]:.1f} % of its gates.'
    )
  return said


def figure(run: rows_lib.Run) -> spec.Figure | None:
  """Draws what looks inside the model measured, each in a panel of its own."""
  panels = []
  for key, (title, curve) in measured(run).items():
    if len(curve.finite().y_n) < 2:
      continue
    start = curve.finite().y_n[0]
    line = curves.series(title, curve)
    dashed = curves.level(
      'at the start', start, curve.step_n[0], curve.step_n[-1]
    )
    panel = curves.low(title, '', (line, dashed), log=key != ME_LAYER)
    if key == ME_LAYER:
      # From layer 0 on, so that its ticks are whole numbers.
      top = float(curve.finite().y_n.max())
      panel = dataclasses.replace(panel, y_range=(0.0, 1.2 * top + 1))
    panels.append(panel)
  if not panels:
    return None
  return spec.Figure(
    name='training-inside',
    title='Inside the model',
    caption=(
      'What looks inside the model found during training; dashed is where each '
      'started. Look for what leaves its dashed line, and when; gaps are looks '
      'that found no number, such as no ME Layer.'
    ),
    alt=' '.join(said(run)),
    panels=tuple(panels),
  )


def said(run: rows_lib.Run) -> list[str]:
  """Says how the inside changed, from the first look to the last."""
  parts = []
  for key, (title, _) in measured(run).items():
    first, last = at(run, key, 0), at(run, key, -1)
    parts.append(
      f'{title} {first}' if first == last else f'{title} {first} to {last}'
    )
  if not parts:
    return []
  first, last = run.monitor[0]['step'], run.monitor[-1]['step']
  start = (
    f'Inside the model at step {first:,}'
    if first == last
    else f'Inside the model from step {first:,} to {last:,}'
  )
  return [f'{start}: {"; ".join(parts)}.']


def _by_layer_chart(
  title: str, values_LS: np.ndarray, step_S: np.ndarray, label: str
) -> spec.Chart:
  """Draws the first and the last look."""
  here_L = np.flatnonzero(np.isfinite(values_LS).any(axis=1))
  looks = {0: ('other', 'dashed'), len(step_S) - 1: ('massive', 'line')}
  if len(looks) == 1:
    title += f', step {step_S[0]:,}'
  y_range = curves.room(values_LS[:, list(looks)].ravel())
  if y_range and y_range[0] < 0:
    y_range = 0.0, 1.0
  return spec.Chart(
    title=title,
    series=tuple(
      spec.Series(
        label=f'step {step_S[look]:,}',
        x=here_L,
        y=values_LS[here_L, look],
        role=role,
        style=style,
      )
      for look, (role, style) in looks.items()
    ),
    x_label='layer',
    y_label=label,
    y_range=y_range,
  )


def _by_layer(found: Mapping[str, Any], key: str) -> dict[int, float]:
  """Returns values by layer, of rows whose lists fit together."""
  layers, values = found.get('layers'), found.get(key)
  if not isinstance(values, list):
    return {}
  if not isinstance(layers, list):
    layers = list(range(len(values)))
  if len(layers) != len(values):
    return {}
  return {
    layer: rows_lib.number(value)
    for layer, value in zip(layers, values)
    if isinstance(layer, int) and layer >= 0
  }


def _mean(values: np.ndarray) -> float:
  values = values[np.isfinite(values)]
  return float(values.mean()) if len(values) else math.nan
