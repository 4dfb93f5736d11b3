"""How does a figure look on paper? `spec.Figure` drawn with matplotlib.

No display is needed, and nothing of pyplot's global state is touched.

Letters: L layers, D model width.
"""

from __future__ import annotations

import os
import pathlib
import textwrap
from typing import Any
import warnings

from matplotlib import colors as colors_lib
from matplotlib import figure as figure_lib
from matplotlib import layout_engine
from matplotlib import patches as patches_lib
from matplotlib import rc_context
from matplotlib import ticker
from matplotlib.backends import backend_agg
from matplotlib.backends import backend_svg
import numpy as np

from me_jax import files
from me_jax.plotting import heat
from me_jax.plotting import palette
from me_jax.plotting import spec
from me_jax.plotting import static_chart
from me_jax.plotting import thinning
from me_jax.plotting.wording import in_matplotlib

# Inches; a report's page and a paper's two columns are about as wide as two.
_WIDTH, _HEIGHT, _LOW = 5.5, 4.25, 2.7
# Above and below panels that are low.
_BETWEEN = 0.08
_DPI = 150
# Characters in an inch of a title, at most.
_TITLE, _PANEL_TITLE = 11, 12
# Points of the lines of one panel in three dimensions.
_RIDGE_POINTS = 40_000
# Rows or columns whose names have room, and characters of one.
_MOST_NAMES, _NAME = 40, 14
# Characters, with one between names, that still stand upright below columns.
_UPRIGHT = 44
# The same bytes for the same figure.
_SAVED: dict[Any, Any] = {'svg.hashsalt': 'me_jax', 'svg.fonttype': 'path'}
# Suffixes that name a format.
FORMATS = ('png', 'svg', 'pdf')


def draw(figure: spec.Figure) -> figure_lib.Figure:
  """Draws a figure.

  Args:
    figure: what is drawn.

  Returns:
    A matplotlib figure of one axes a panel, in the panels' order; colour bars
    follow.
  """
  columns = max(1, min(figure.columns, len(figure.panels)))
  width = _WIDTH * columns if columns > 1 else _WIDTH * 1.3
  heights = [
    _LOW if all(map(_low, figure.panels[start : start + columns])) else _HEIGHT
    for start in range(0, len(figure.panels), columns)
  ]
  layout = layout_engine.ConstrainedLayoutEngine()
  drawn = figure_lib.Figure(figsize=(width, sum(heights)), layout=layout)
  if any(map(_low, figure.panels)):
    # Their legends would touch the title beneath.
    layout.set(h_pad=_BETWEEN)
  if any(isinstance(panel, spec.Ridges) for panel in figure.panels):
    # The layout does not count the label of the third axis.
    layout.set(rect=(0.0, 0.0, 0.98, 1.0))
  # All of them first: colour bars come as further axes.
  grid = drawn.add_gridspec(len(heights), columns, height_ratios=heights)
  cells = [
    grid[place // columns, place % columns]
    for place in range(len(figure.panels))
  ]
  if figure.ends_wide:
    cells[-1] = grid[-1, :]
  places = [
    drawn.add_subplot(
      cell, projection='3d' if isinstance(panel, spec.Ridges) else None
    )
    for cell, panel in zip(cells, figure.panels)
  ]
  for axes, panel in zip(places, figure.panels):
    axes.set_title(_wrapped(panel.title, width / columns * _PANEL_TITLE))
    if isinstance(panel, spec.Ridges):
      _ridges(axes, panel)
    elif isinstance(panel, spec.Heatmap):
      _heatmap(axes, panel)
    else:
      static_chart.draw(axes, panel)
  if figure.title:
    drawn.suptitle(_wrapped(figure.title, width * _TITLE))
  return drawn


def save(
  figure: figure_lib.Figure, path: str | os.PathLike[str], dpi: int = _DPI
) -> None:
  """Writes a drawn figure whole or not at all; the suffix names the format.

  Args:
    figure: as `draw` returns it.
    path: in a folder that exists.
    dpi: dots per inch of what is made of dots.

  Raises:
    MeJaxError: the file cannot be written.
    ValueError: there is no such format.
  """
  path = pathlib.Path(path)
  kind = path.suffix.lstrip('.') or 'png'
  if kind not in FORMATS:
    raise ValueError(f'{path} ends in none of {", ".join(FORMATS)}')
  figure.set_dpi(dpi)
  with (
    files.whole(path) as partial,
    rc_context(_SAVED),
    warnings.catch_warnings(),
  ):
    # Tokens come in every script; what the font lacks is drawn as a box.
    warnings.filterwarnings('ignore', 'Glyph', UserWarning)
    # Unlike savefig, which draws everything twice.
    if kind == 'png':
      # A quick compression: a third of the time, a tenth larger.
      canvas = backend_agg.FigureCanvasAgg(figure)
      canvas.print_png(partial, pil_kwargs={'compress_level': 3})
    elif kind == 'svg':
      canvas = backend_svg.FigureCanvasSVG(figure)
      canvas.print_svg(partial, metadata={'Date': None})
    else:
      from matplotlib.backends import backend_pdf

      none = {'CreationDate': None, 'ModDate': None}
      backend_pdf.FigureCanvasPdf(figure).print_pdf(partial, metadata=none)


def _low(panel: spec.Panel) -> bool:
  return isinstance(panel, spec.Chart) and panel.low


def _wrapped(text: str, characters: float) -> str:
  return textwrap.fill(in_matplotlib(text), int(characters))


def _heatmap(axes, heatmap: spec.Heatmap) -> None:
  values = np.ma.masked_invalid(np.asarray(heatmap.values, np.float64))
  norm = colors_lib.Normalize(*heat.span(heatmap), clip=True)
  if heatmap.log:
    values = np.ma.masked_less_equal(values, 0.0)
    norm = colors_lib.LogNorm(*heat.span(heatmap), clip=True)
  rows, columns = values.shape
  bottom_up = heat.edges(heatmap)[:: -1 if heatmap.origin == 'upper' else 1]
  image = axes.imshow(
    values,
    aspect='equal' if rows == columns else 'auto',
    cmap=palette.HEAT,
    interpolation='nearest',
    norm=norm,
    origin=heatmap.origin,
    extent=(-0.5, columns - 0.5, *bottom_up),
  )
  axes.figure.colorbar(
    image, ax=axes, label=in_matplotlib(heatmap.value_label), pad=0.02
  )
  axes.set(
    xlabel=in_matplotlib(heatmap.x_label), ylabel=in_matplotlib(heatmap.y_label)
  )
  _name(axes.xaxis, heatmap.x_names)
  _name(axes.yaxis, heatmap.y_names)
  frames = [((-0.5, row - 0.5), columns, 1) for row in heatmap.marks]
  frames += [((c - 0.5, -0.5), 1, rows) for c in heatmap.column_marks]
  for corner, width, height in frames:
    axes.add_patch(
      patches_lib.Rectangle(
        corner,
        width,
        height,
        fill=False,
        edgecolor=palette.ORANGE,
        linewidth=1.5,
        clip_on=False,
      )
    )


def _name(axis, names: tuple[str, ...]) -> None:
  """Names rows or columns where there is room, else counts them."""
  if not names or len(names) > _MOST_NAMES:
    steps = [1, 2, 5, 10]
    axis.set_major_locator(ticker.MaxNLocator(integer=True, steps=steps))
    return
  short = [n if len(n) <= _NAME else n[: _NAME - 1] + '…' for n in names]
  # Each has as much room as the longest needs.
  narrow = len(short) * (1 + max(map(len, short))) > _UPRIGHT
  axis.set_ticks(
    range(len(names)),
    [in_matplotlib(name) for name in short],
    fontsize=8 if len(names) <= _MOST_NAMES // 2 else 5,
    rotation=90 if axis.axis_name == 'x' and narrow else 0,
  )


def _ridges(axes, ridges: spec.Ridges) -> None:
  """Draws one line a layer over the channels, the ME Layer's in orange."""
  layers, width = ridges.values.shape
  most = max(_RIDGE_POINTS // max(layers, 1), 200)
  for layer in range(layers - 1, -1, -1):
    here = layer == ridges.mark
    shown = thinning.peaks(ridges.values[layer], most)
    axes.plot(
      shown,
      np.full(len(shown), layer),
      ridges.values[layer, shown],
      color=palette.ORANGE if here else palette.BLUE,
      linewidth=1.6 if here else 0.7,
      alpha=1.0 if here else 0.8,
    )
  axes.set(
    xlabel='channel',
    ylabel='layer',
    zlabel=in_matplotlib(ridges.value_label),
    xlim=(0, max(width - 1, 1)),
    ylim=(0, max(layers - 1, 1)),
    zlim=(0, max(ridges.top, 1e-6)),
  )
  axes.yaxis.set_major_locator(
    ticker.MaxNLocator(6, integer=True, steps=[1, 2, 5, 10])
  )
  axes.zaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,.6g}'))
  axes.tick_params(labelsize=8, pad=0)
  axes.tick_params(axis='z', pad=4)
  axes.zaxis.labelpad = 5
  axes.set_box_aspect((1.25, 1.25, 0.8), zoom=1.04)
  axes.view_init(elev=24, azim=-58)
