"""How are lines, bars and points drawn on paper? `spec.Chart` in matplotlib.

Letters: n points of a series.
"""

from __future__ import annotations

from collections.abc import Sequence
import math
import textwrap

from matplotlib import ticker
import numpy as np

from me_jax.plotting import bars as bars_lib
from me_jax.plotting import palette
from me_jax.plotting import spec
from me_jax.plotting.wording import in_matplotlib

_DASHES = {
  'solid': '-',
  'dash': '--',
  'dot': ':',
  'dashdot': '-.',
  'longdash': (0, (9, 3)),
  'longdashdot': (0, (9, 3, 2, 3)),
}
_MARKERS = {
  'circle': 'o',
  'square': 's',
  'triangle-up': '^',
  'diamond': 'D',
  'triangle-down': 'v',
  'x': 'X',
}
_HATCHES = {'/': '///', '.': '...', 'x': 'xxx', '\\': '\\\\\\', '-': '---'}
# Styles of lines without markers.
_BARE = ('steps', 'thin', 'level')
# Markers on a line, at most: more would hide it.
_MOST_MARKERS = 40
# How opaque bars are that stand before others.
_SEEN_THROUGH = 0.65
# Of the height of a chart of bars, left free above them for the legend.
_HEADROOM = 0.15
# The same where the legend is kept clear: of its edges and of each row.
_EDGE, _ROW = 0.07, 0.06
# Characters across a legend, and how many as wide as a line's picture.
_ACROSS, _HANDLE = 72, 7
# Names of a legend that stands among what is drawn; a longer one would hide it.
_MOST_INSIDE = 5
# Where the legend of a low chart begins, in its heights: below the axis' name.
_BENEATH = -0.3
# Characters of the names below an axis that still stand upright.
_UPRIGHT = 44


def draw(axes, chart: spec.Chart) -> None:
  """Draws a chart into matplotlib axes."""
  placed = iter(bars_lib.place(chart))
  bars = any(series.style == 'bars' for series in chart.series)
  for series, look in zip(chart.series, palette.looks(chart.series)):
    if series.style == 'bars':
      _bars(axes, series, look, next(placed), chart.bars == 'overlaid')
    else:
      _line(axes, series, look, chart.log_y)
  for index, mark in enumerate(chart.marks):
    axes.axvline(
      mark,
      color=palette.ORANGE,
      linewidth=1.2,
      zorder=0.5,
      label=None if index else in_matplotlib(chart.mark_label),
    )
  if chart.log_y:
    # A bar begins at zero: masked, it would vanish with its foot.
    axes.set_yscale('log', nonpositive='clip' if bars else 'mask')
  else:
    # Numbers beside which nothing is to be added in the head.
    axes.yaxis.get_major_formatter().set_useOffset(False)
  if bars and not chart.log_y:
    axes.axhline(0, color='black', linewidth=0.5)
  if chart.y_range is not None:
    axes.set_ylim(chart.y_range)
  axes.set(
    xlabel=in_matplotlib(chart.x_label), ylabel=in_matplotlib(chart.y_label)
  )
  _ticks(axes, chart)
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(axis='y', color='#e4e4e4', linewidth=0.6)
  axes.set_axisbelow(True)
  entries = len(chart.series) + bool(chart.marks)
  if entries > _MOST_INSIDE:
    axes.legend(
      fontsize=8,
      loc='upper left',
      bbox_to_anchor=(1.0, 1.0),
      borderaxespad=0.3,
      frameon=False,
    )
  elif entries > 1 and chart.low:
    # There is no room among the lines.
    axes.legend(
      fontsize=8,
      loc='upper center',
      bbox_to_anchor=(0.5, _BENEATH),
      borderaxespad=0,
      frameon=False,
      ncols=entries,
    )
  elif entries > 1:
    free = chart.y_range is None and not chart.log_y
    if free and chart.clear:
      labels = [one.label for one in chart.series]
      labels += [chart.mark_label] if chart.marks else []
      across = _across(labels)
      rows = math.ceil(entries / across)
      _raise(axes, _EDGE + rows * _ROW)
      axes.legend(fontsize=8, loc='upper center', framealpha=0.9, ncols=across)
      return
    if free and bars:
      _raise(axes, _HEADROOM)
    axes.legend(fontsize=8, framealpha=0.9)


def _raise(axes, part: float) -> None:
  """Leaves a part of what the axis spans free above it."""
  low, high = axes.get_ylim()
  axes.set_ylim(low, high + part * (high - low))


def _across(labels: Sequence[str]) -> int:
  """Returns how many columns of a legend have room within a panel."""
  widths = sorted((_HANDLE + len(label) for label in labels), reverse=True)
  fits = [n for n in range(1, len(widths) + 1) if sum(widths[:n]) <= _ACROSS]
  return max(fits, default=1)


def _bars(
  axes, series: spec.Series, look, placed: bars_lib.Placed, overlaid: bool
) -> None:
  axes.bar(
    placed.x,
    series.y,
    placed.width,
    bottom=placed.base,
    color=look.color,
    alpha=_SEEN_THROUGH if overlaid else 1.0,
    edgecolor='white',
    linewidth=0.4,
    hatch=_HATCHES.get(look.hatch),
    label=in_matplotlib(series.label),
  )
  if series.low is not None:
    _whiskers(axes, placed.x, series, palette.DARK, placed.base)


def _line(axes, series: spec.Series, look, log_y: bool) -> None:
  y = np.asarray(series.y, np.float64)
  x = np.arange(len(y)) if series.x is None else np.asarray(series.x)
  points, steps = series.style == 'points', series.style == 'steps'
  thin = series.style == 'thin'
  if series.low is not None and not points:
    low, high = series.low, series.high
    if log_y and np.any(y > 0):
      # A band that reaches zero reaches the lower end of the axis.
      low = np.maximum(low, np.nanmin(y[y > 0]) / 10)
    axes.fill_between(
      x,
      low,
      high,
      color=look.color,
      alpha=0.2,
      linewidth=0,
      step='mid' if steps else None,
    )
  axes.plot(
    x,
    y,
    color=look.color,
    linestyle='none' if points else _DASHES[look.dash],
    linewidth=0.6 if thin else 1.2 if steps else 1.6,
    alpha=palette.FAINT if thin else 1.0,
    marker=None if series.style in _BARE else _MARKERS[look.marker],
    markersize=5 if points else 3.5,
    markevery=None if points else max(1, math.ceil(len(x) / _MOST_MARKERS)),
    drawstyle='steps-mid' if steps else 'default',
    # A start or a limit goes under what lies on it.
    zorder=1.9 if series.style == 'level' else 2,
    label=in_matplotlib(series.label),
  )
  if series.low is not None and points:
    _whiskers(axes, x, series, look.color, 0.0)


def _whiskers(axes, x, series: spec.Series, color: str, base) -> None:
  assert series.low is not None and series.high is not None
  y = np.asarray(series.y, np.float64)
  reach = np.stack([y - series.low, series.high - y])
  axes.errorbar(
    x,
    y + base,
    yerr=np.where(reach > 0, reach, 0.0),
    fmt='none',
    ecolor=color,
    elinewidth=1,
    capsize=3,
  )


def _ticks(axes, chart: spec.Chart) -> None:
  """Names what x counts, or keeps its ticks whole numbers where it is."""
  if chart.categories:
    names = [
      textwrap.fill(in_matplotlib(name), 18) for name in chart.categories
    ]
    slanted = sum(map(len, chart.categories)) > _UPRIGHT
    axes.set_xticks(
      range(len(names)),
      names,
      rotation=35 if slanted else 0,
      ha='right' if slanted else 'center',
      rotation_mode='anchor' if slanted else None,
      fontsize=8 if slanted else None,
    )
    return
  given = [s.x for s in chart.series if s.x is not None]
  if all(np.all(np.asarray(x) == np.round(x)) for x in given):
    axes.xaxis.set_major_locator(
      ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10])
    )
