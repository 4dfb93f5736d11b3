"""Where do the bars of a chart stand on paper?

plotly.js places its own.

Letters: n bars of a series.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from me_jax.plotting import spec

# Of the room between two x values that bars fill.
_FILLED = 0.84


class Placed(NamedTuple):
  """Where the bars of one series stand.

  Attributes:
    x: `[n]`, their middles.
    width: of each.
    base: `[n]`, what they stand on.
  """

  x: np.ndarray
  width: float
  base: np.ndarray


def place(chart: spec.Chart) -> list[Placed]:
  """Returns a place for each series of bars, in the chart's order."""
  bars = [series for series in chart.series if series.style == 'bars']
  x_of = [
    np.arange(len(s.y), dtype=np.float64)
    if s.x is None
    else np.asarray(s.x, np.float64)
    for s in bars
  ]
  apart = np.diff(np.unique(np.concatenate(x_of))) if bars else np.ones(1)
  room = _FILLED * (apart.min() if len(apart) else 1.0)
  # What was stacked so far, by x; bars below zero hang from each other.
  up: dict[float, float] = {}
  down: dict[float, float] = {}
  placed = []
  for index, (series, x) in enumerate(zip(bars, x_of)):
    base = np.zeros(len(x))
    if chart.bars != 'stacked':
      width = room / len(bars) if chart.bars == 'beside' else room
      shift = (index - (len(bars) - 1) / 2) * width
      placed.append(
        Placed(x + (shift if chart.bars == 'beside' else 0), width, base)
      )
      continue
    for i, (at, value) in enumerate(zip(x.tolist(), series.y)):
      pile = down if value < 0 else up
      base[i] = pile.get(at, 0.0)
      if np.isfinite(value):
        pile[at] = base[i] + float(value)
    placed.append(Placed(x, room, base))
  return placed
