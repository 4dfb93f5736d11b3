"""How are ridges drawn on the page? `spec.Ridges` for plotly.js, to rotate.

Letters: L layers, D model width.
"""

from __future__ import annotations

from typing import Any

from me_jax.plotting import palette
from me_jax.plotting import plotly_json
from me_jax.plotting import spec
from me_jax.plotting import thinning
from me_jax.plotting.wording import in_plotly

# Of a panel, all layers together.
_POINTS = 9_000


def draw(ridges: spec.Ridges) -> tuple[list, dict]:
  """Returns all layers as one line with gaps, and the ME Layer's as another."""
  layers, width = ridges.values.shape
  most = max(_POINTS // max(layers, 1), 40)
  lines = {False: ([], [], []), True: ([], [], [])}
  for layer, value_D in enumerate(ridges.values):
    x, y, z = lines[layer == ridges.mark]
    shown = thinning.peaks(value_D, most)
    x += [*shown.tolist(), None]
    y += [layer] * len(shown) + [None]
    z += [*plotly_json.numbers(value_D[shown]), None]
  hover = (
    'channel %{x}<br>layer %{y}<br>'
    f'{in_plotly(ridges.value_label)} %{{z:,.4~r}}'
  )
  data = [
    {
      'type': 'scatter3d',
      'mode': 'lines',
      'name': 'ME Layer' if marked else 'layers',
      'x': x,
      'y': y,
      'z': z,
      'line': {
        'color': palette.ORANGE if marked else palette.BLUE,
        'width': 5 if marked else 2,
      },
      'hovertemplate': hover + '<extra></extra>',
    }
    for marked, (x, y, z) in lines.items()
    if x
  ]
  small = {'size': 10}

  def axis(label: str, top: float) -> dict[str, Any]:
    return {
      'title': {'text': in_plotly(label), 'font': {'size': 11}},
      'range': [0, top],
      'tickfont': small,
      'gridcolor': '#cccccc',
      'backgroundcolor': '#f7f7f7',
      'showbackground': True,
      'showspikes': False,
    }

  layout = {
    'margin': {'l': 0, 'r': 0, 't': 0, 'b': 0},
    'hovermode': 'closest',
    'scene': {
      'xaxis': axis('channel', max(width - 1, 1)),
      'yaxis': axis('layer', max(layers - 1, 1)),
      'zaxis': axis(ridges.value_label, max(ridges.top, 1e-6)),
      'aspectmode': 'manual',
      'aspectratio': {'x': 1.2, 'y': 1.2, 'z': 0.8},
      'camera': {
        'eye': {'x': 1.1, 'y': -1.8, 'z': 0.95},
        'center': {'x': 0, 'y': 0, 'z': -0.2},
      },
      'dragmode': 'turntable',
    },
  }
  return data, layout
