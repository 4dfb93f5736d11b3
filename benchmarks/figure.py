"""Draws how many times as good as PyTorch each measurement is."""

from __future__ import annotations

from collections.abc import Sequence
import json
import pathlib

from benchmarks import rows as rows_lib
from me_jax import files

# Inches: the width, of a line, and of what stands above and below.
_WIDTH, _LINE, _REST = 9.0, 0.3, 1.3
# Key of the PNG's text that says what is drawn.
KEY = 'Description'


def points(rows: Sequence[rows_lib.Row]) -> list[dict]:
  """Returns what is drawn: above one, me_jax is faster or takes less.

  Args:
    rows: with PyTorch beside them.

  Returns:
    By row its name, median, least and most, and its bar, all as factors.
  """
  found = []
  for row in rows:
    less = row.better == 'less'
    factors = [
      None if value is None else float(f'{1 / value if less else value:.4g}')
      for value in (row.ratio, *row.spread, row.bar)
    ]
    middle, *ends, bar = factors
    found.append({'what': row.what, 'factor': middle, 'spread': sorted(ends),
                  'bar': bar})  # fmt: skip
  return found


def write(rows: Sequence[rows_lib.Row], path: pathlib.Path) -> None:
  """Writes the figure as a PNG; removes it if there is nothing to draw."""
  from matplotlib import figure as figure_lib
  from matplotlib import ticker
  from matplotlib.backends import backend_agg

  from me_jax.plotting import palette

  drawn = points(rows)
  if not drawn:
    path.unlink(missing_ok=True)
    return
  figure = figure_lib.Figure(
    figsize=(_WIDTH, _REST + _LINE * len(drawn)), layout='constrained'
  )
  axes = figure.add_subplot()
  places = range(len(drawn))
  axes.axvline(1, color=palette.GREY, linewidth=1)
  axes.hlines(
    places, *zip(*(one['spread'] for one in drawn)), color=palette.BLUE,
    linewidth=2.5, alpha=palette.FAINT, label='least to most of the rounds',
  )  # fmt: skip
  axes.plot(
    [one['factor'] for one in drawn], places, 'o', color=palette.BLUE,
    label='median',
  )  # fmt: skip
  barred = [(i, one['bar']) for i, one in enumerate(drawn) if one['bar']]
  if barred:
    axes.plot(
      [bar for _, bar in barred], [i for i, _ in barred], '|', markersize=13,
      markeredgewidth=2, color=palette.ORANGE, label='bar',
    )  # fmt: skip
  axes.set_xscale('log', base=2)
  axes.xaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
  axes.set_yticks(places, [one['what'].replace('`', '') for one in drawn])
  axes.invert_yaxis()
  axes.grid(axis='x', alpha=0.3)
  axes.set_xlabel('times as fast as PyTorch, or times less memory (log scale)')
  figure.legend(loc='outside upper right', ncols=3, frameon=False)
  with files.whole(path) as partial:
    canvas = backend_agg.FigureCanvasAgg(figure)
    canvas.print_png(partial, metadata={KEY: json.dumps(drawn)})
