"""What became of the gates of a model while they were trained?

Letters: L layers, S looks inside.
"""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any, NamedTuple

import numpy as np

from me_jax.plotting import spec
from me_jax.plotting.sections import training_curves as curves
from me_jax.plotting.sections import training_inside as inside_lib
from me_jax.plotting.sections import training_rows as rows_lib

# Columns of a map over steps, so that each has its name.
_COLUMNS = 20


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


def figure(run: rows_lib.Run) -> spec.Figure | None:
  """Draws gates by layer, before and after, and how they became so."""
  found = gates(run)
  if found is None:
    return None
  step_S, mean_LS, masked_LS = found
  has_gates_L = np.any(np.isfinite(mean_LS), axis=1)
  if not has_gates_L.any():
    return None
  has_gates_L |= np.any(np.isfinite(masked_LS), axis=1)
  first, last = np.flatnonzero(has_gates_L)[[0, -1]]
  caption = (
    'A gate multiplies a channel of what attention receives of the massive '
    'token: 1 changes nothing, below a half more is masked than kept. Look at '
    'which layers leave 1'
  )
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
          values=values_LS[first : last + 1, shown],
          x_label=curves.STEP,
          y_label='layer',
          value_label=title.removesuffix(' over steps'),
          x_names=tuple(str(step) for step in step_S[shown]),
          y_first=int(first),
        )
      )
    if not has_gates_L[first : last + 1].all():
      caption += '; layers without gates are blank'
  return spec.Figure(
    name='training-gates',
    title='The gates',
    caption=f'{caption}.',
    alt=' '.join(said(run)),
    panels=tuple(panels),
  )


def said(run: rows_lib.Run) -> list[str]:
  """Says what became of the gates."""
  found = gates(run)
  if found is None or not np.isfinite(found.mean_LS).any():
    return []
  step_S, mean_LS, masked_LS = found
  before = ''
  if len(step_S) > 1:
    before = (
      f' ({inside_lib.spelt(_mean(mean_LS[:, 0]))} at step {step_S[0]:,})'
    )
  said = [
    f'At step {step_S[-1]:,} the mean gate is {inside_lib.spelt(_mean(mean_LS[:, -1]))}'
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


def _by_layer_chart(
  title: str, values_LS: np.ndarray, step_S: np.ndarray, label: str
) -> spec.Chart:
  """Draws the first and the last look."""
  here_L = np.flatnonzero(np.isfinite(values_LS).any(axis=1))
  looks: dict[int, tuple[spec.Role, spec.Style]] = {
    0: ('other', 'dashed'),
    len(step_S) - 1: ('massive', 'line'),
  }
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
