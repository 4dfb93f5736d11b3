"""How does a figure look on the page? `spec.Figure` as figures for plotly.js.

Each panel becomes a figure of its own, so that panels stand side by side or
below each other as the screen has room. They are plain dicts: plotly's Python
classes take longer to import than the page takes to write. What is sent is
bounded, however large the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from me_jax.plotting import interactive_chart
from me_jax.plotting import interactive_heatmap
from me_jax.plotting import interactive_ridges
from me_jax.plotting import palette
from me_jax.plotting import spec

_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif'


def draw(figure: spec.Figure) -> list[dict[str, Any]]:
  """Returns what plotly.js needs to draw each panel of a figure.

  Args:
    figure: what is drawn.

  Returns:
    For each panel `{'data': [...], 'layout': {...}}` of plain values that JSON
    can hold. Titles are left to the page, which can wrap them.
  """
  return [_panel(panel) for panel in figure.panels]


def _panel(panel: spec.Panel) -> dict[str, Any]:
  kinds: dict[type, Callable] = {
    spec.Chart: interactive_chart.draw,
    spec.Heatmap: interactive_heatmap.draw,
    spec.Ridges: interactive_ridges.draw,
  }
  data, layout = kinds[type(panel)](panel)
  layout = {
    'autosize': True,
    'font': {'family': _FONT, 'size': 12, 'color': palette.DARK},
    'paper_bgcolor': 'white',
    'plot_bgcolor': 'white',
    'margin': {'l': 8, 'r': 8, 't': 8, 'b': 8},
    'showlegend': False,
    # On a touch screen a finger on the figure shall scroll the page.
    'dragmode': False,
  } | layout
  return {'data': data, 'layout': layout}
