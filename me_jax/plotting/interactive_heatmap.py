"""How is a matrix drawn on the page? `spec.Heatmap` for plotly.js."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from me_jax.plotting import heat
from me_jax.plotting import palette
from me_jax.plotting import plotly_json
from me_jax.plotting import spec
from me_jax.plotting import thinning
from me_jax.plotting.wording import in_plotly

# Rows and columns that are sent, at most.
_SIDE = 180
_NAME = 14  # characters of one


def draw(heatmap: spec.Heatmap) -> tuple[list, dict]:
  """Returns the traces and the layout of a matrix."""
  values = np.asarray(heatmap.values, np.float64)
  height = np.where(np.isfinite(values), np.abs(values), 0.0)
  rows = thinning.peaks(height.max(axis=1, initial=0.0), _SIDE)
  columns = thinning.peaks(height.max(axis=0, initial=0.0), _SIDE)
  values = values[np.ix_(rows, columns)]
  low, high = heat.span(heatmap)
  edges = heat.edges(heatmap)
  rows = rows + round(edges[0] + 0.5)
  hover = [
    f'{in_plotly(heatmap.x_label)} %{{x}}',
    f'{in_plotly(heatmap.y_label)} %{{y}}',
    f'{in_plotly(heatmap.value_label)} %{{z:,.4~r}}<extra></extra>',
  ]
  trace: dict[str, Any] = {
    'type': 'heatmap',
    'x': columns.tolist(),
    'y': rows.tolist(),
    'z': [plotly_json.numbers(row) for row in values],
    'colorscale': palette.HEAT.title(),
    'hoverongaps': False,
  }
  bar: dict[str, Any] = {
    'title': {'text': in_plotly(heatmap.value_label), 'side': 'right'},
    'thickness': 12,
    'outlinewidth': 0,
  }
  if heatmap.log:
    # plotly has no logarithmic colours: send logarithms, and label them.
    positive = np.where(values > 0, values, np.nan)
    trace['customdata'] = trace['z']
    hover[2] = hover[2].replace('%{z:', '%{customdata:')
    logs = np.log10(positive)
    trace['z'] = [plotly_json.numbers(row) for row in logs]
    low, high = math.log10(low), math.log10(high)
    decades = list(range(math.ceil(low), math.floor(high) + 1))
    bar |= {
      'tickvals': decades,
      'ticktext': [f'10<sup>{decade}</sup>' for decade in decades],
    }
  trace |= {'zmin': low, 'zmax': high}
  trace |= {'colorbar': bar, 'hovertemplate': '<br>'.join(hover)}
  upper = heatmap.origin == 'upper'
  all_columns = np.shape(heatmap.values)[1]
  layout = {
    'xaxis': plotly_json.axis(heatmap.x_label, showgrid=False)
    | plotly_json.whole(columns)
    | plotly_json.names(heatmap.x_names, _NAME)
    | {'range': [-0.5, all_columns - 0.5]},
    'yaxis': plotly_json.axis(heatmap.y_label, showgrid=False)
    | plotly_json.whole(rows)
    | plotly_json.names(heatmap.y_names, _NAME)
    | {'range': list(edges)[:: -1 if upper else 1]},
    'hovermode': 'closest',
    'shapes': [
      _frame(x0=0, x1=1, xref='paper', y0=row - 0.5, y1=row + 0.5)
      for row in heatmap.marks
    ]
    + [
      _frame(x0=column - 0.5, x1=column + 0.5, y0=0, y1=1, yref='paper')
      for column in heatmap.column_marks
    ],
  }
  return [trace], layout


def _frame(**corners: Any) -> dict[str, Any]:
  line = {'color': palette.ORANGE, 'width': 2}
  return {'type': 'rect', 'line': line} | corners
