"""How are lines, bars and points drawn on the page? `spec.Chart` for plotly.js.

Letters: n points of a series.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from me_jax.plotting import palette
from me_jax.plotting import plotly_json
from me_jax.plotting import spec
from me_jax.plotting import thinning
from me_jax.plotting.wording import in_plotly

_LINE_POINTS = 1_500
_MOST_MARKERS = 40
_MODES = {'beside': 'group', 'stacked': 'relative', 'overlaid': 'overlay'}
_LOOKS = {
  'points': 'markers',
  'steps': 'lines',
  'thin': 'lines',
  'level': 'lines',
}
# How opaque bars are that stand before others.
_SEEN_THROUGH = 0.65


def draw(chart: spec.Chart) -> tuple[list, dict]:
  """Returns the traces and the layout of a chart."""
  data: list[dict] = []
  for index, (series, look) in enumerate(
    zip(chart.series, palette.looks(chart.series))
  ):
    data += _series(chart, series, look, f's{index}')
  bars = any(series.style == 'bars' for series in chart.series)
  x_axis = plotly_json.axis(chart.x_label) | plotly_json.whole(_all_x(chart))
  if chart.categories:
    x_axis |= plotly_json.names(chart.categories, longest=40)
  y_axis = plotly_json.axis(chart.y_label)
  if chart.log_y:
    y_axis |= {'type': 'log', 'exponentformat': 'power', 'dtick': 1}
  elif bars:
    y_axis |= {'zeroline': True, 'zerolinecolor': palette.DARK}
  if chart.y_range is not None:
    low, high = chart.y_range
    if chart.log_y:
      low, high = math.log10(low), math.log10(high)
    y_axis['range'] = [low, high]
  layout = {
    'xaxis': x_axis,
    'yaxis': y_axis,
    'hovermode': 'x unified',
    'bargap': 0.16,
    'barmode': _MODES[chart.bars],
    'showlegend': len(chart.series) + bool(chart.marks) > 1,
    'legend': {
      'orientation': 'h',
      'yref': 'container',
      'y': 0,
      'yanchor': 'bottom',
      'x': 0,
    },
    'shapes': [
      {
        'type': 'line',
        'x0': mark,
        'x1': mark,
        'y0': 0,
        'y1': 1,
        'yref': 'paper',
        'layer': 'below',
        'line': {'color': palette.ORANGE, 'width': 1.5},
        'name': in_plotly(chart.mark_label),
        'showlegend': index == 0,
      }
      for index, mark in enumerate(chart.marks)
    ],
  }
  return data, layout


def _all_x(chart: spec.Chart) -> np.ndarray:
  """Returns the x of every series, `[n]`."""
  x_of = [
    np.arange(len(s.y)) if s.x is None else np.asarray(s.x)
    for s in chart.series
  ]
  return np.concatenate([*x_of, np.zeros(0)])


def _series(
  chart: spec.Chart, series: spec.Series, look: palette.Look, group: str
) -> list[dict]:
  """Returns a series, after its band if it has one."""
  y_n = np.asarray(series.y, np.float64)
  if chart.log_y:
    y_n = np.where(y_n > 0, y_n, np.nan)
  x_n = np.arange(len(y_n)) if series.x is None else np.asarray(series.x)
  kept = thinning.peaks(np.abs(y_n), _LINE_POINTS)
  trace = {
    'name': in_plotly(series.label),
    'x': plotly_json.numbers(x_n[kept]),
    'y': plotly_json.numbers(y_n[kept]),
    'legendgroup': group,
    'hovertemplate': '%{y:,.4~r}',
  }
  if series.hover is not None:
    trace['hovertext'] = [in_plotly(series.hover[i]) for i in kept]
    trace['hovertemplate'] += ' · %{hovertext}'
  bounds = None
  if series.low is not None and series.high is not None:
    low, high = np.asarray(series.low)[kept], np.asarray(series.high)[kept]
    bounds = low, high
  if series.style in ('bars', 'points') and bounds:
    middle = y_n[kept]
    trace['error_y'] = {
      'type': 'data',
      'symmetric': False,
      'array': plotly_json.numbers(np.maximum(bounds[1] - middle, 0)),
      'arrayminus': plotly_json.numbers(np.maximum(middle - bounds[0], 0)),
      'color': palette.DARK if series.style == 'bars' else look.color,
      'thickness': 1.2,
      'width': 4,
    }
  if series.style == 'bars':
    marker = {'color': look.color}
    if look.hatch:
      marker['pattern'] = {
        'shape': look.hatch,
        'bgcolor': look.color,
        'fgcolor': 'white',
        'size': 7,
        'solidity': 0.25,
      }
    if chart.bars == 'overlaid':
      trace['opacity'] = _SEEN_THROUGH
    return [trace | {'type': 'bar', 'marker': marker}]
  steps, thin = series.style == 'steps', series.style == 'thin'
  mode = _LOOKS.get(series.style, 'lines+markers')
  trace |= {
    'type': 'scatter',
    'mode': mode,
    'line': {
      'color': look.color,
      'dash': look.dash,
      'width': 1 if thin else 1.5 if steps else 2,
      'shape': 'hvh' if steps else 'linear',
    },
    'marker': {
      'symbol': look.marker,
      'color': look.color,
      'size': 8 if series.style == 'points' else 5,
      # Of a line; 0 is no limit.
      'maxdisplayed': 0 if series.style == 'points' else _MOST_MARKERS,
    },
  }
  if thin:
    trace['opacity'] = palette.FAINT
  if series.style == 'points' or not bounds:
    return [trace]
  positive = y_n[y_n > 0]
  if chart.log_y and len(positive):
    low, high = bounds
    high = np.where(high > 0, high, np.nan)
    # A band that reaches zero reaches the lower end of the axis.
    bounds = np.maximum(low, positive.min() / 10), high
  return [_band(x_n[kept], *bounds, look.color, group), trace]


def _band(x_n, low_n, high_n, color: str, group: str) -> dict[str, Any]:
  """Returns a filled outline; where an edge is missing it is cut in two."""
  finite = np.isfinite(low_n) & np.isfinite(high_n)
  x: list[Any] = []
  y: list[Any] = []
  cuts = np.flatnonzero(np.diff(finite.astype(int))) + 1
  for run in np.split(np.arange(len(x_n)), cuts):
    if len(run) and finite[run[0]]:
      x += [
        *plotly_json.numbers(x_n[run]),
        *plotly_json.numbers(x_n[run][::-1]),
        None,
      ]
      y += [
        *plotly_json.numbers(high_n[run]),
        *plotly_json.numbers(low_n[run][::-1]),
        None,
      ]
  return {
    'type': 'scatter',
    'mode': 'lines',
    'x': x,
    'y': y,
    'fill': 'toself',
    'fillcolor': palette.faded(color, 0.2),
    'line': {'width': 0, 'color': color},
    'hoverinfo': 'skip',
    'showlegend': False,
    'legendgroup': group,
  }
