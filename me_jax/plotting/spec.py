"""What does a report say? Sections, tables and figures, before they are drawn.

A figure is described once, as data; `static` draws it with matplotlib for
papers, `interactive` with plotly for the page. Whoever builds a section needs
to know neither.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any, Literal

import numpy as np

# Who a line is about; each has one colour throughout a report.
Verdict = Literal['holds', 'in part', 'does not hold', 'not tested']
Role = Literal['massive', 'control', 'other', 'me', 'attn', 'ffn', 'plain']
Style = Literal[
  'line', 'dashed', 'dotted', 'bars', 'points', 'steps', 'thin', 'level'
]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
  """One line or set of bars.

  Attributes:
    label: in the legend.
    y: `[n]`.
    x: `[n]`; None counts from 0.
    role: chooses the colour.
    style: how it is drawn; `steps` is a line that stays level around each x,
      `thin` a faint one without markers, for raw values behind a smoothed line,
      `level` a dashed one without markers, for a limit or a start.
    low: `[n]`, lower edge of a band around `y` (an interval, a range); of bars
      and points it is the lower end of a whisker.
    high: `[n]`, its upper edge.
    hover: `[n]`, what the page says of each point, besides x and y.
  """

  label: str
  y: np.ndarray
  x: np.ndarray | None = None
  role: Role = 'plain'
  style: Style = 'line'
  low: np.ndarray | None = None
  high: np.ndarray | None = None
  hover: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
  """Series over one x axis.

  Attributes:
    title: of the panel.
    series: what is drawn.
    x_label: with the unit, if there is one.
    y_label: with the unit, if there is one.
    log_y: whether y is logarithmic; values that are not positive are left out.
    y_range: of the axis; None fits the data.
    marks: x values with a vertical line in the ME Layer's colour.
    mark_label: what the marks are, in the legend.
    categories: names of x = 0, 1, ... where x counts things without an order.
    bars: where bars at one x stand; histograms are best `overlaid`.
    low: whether it is about half as high as others, being one of many or the
      company of a panel above it.
    clear: whether what is drawn is lowered on paper to keep its legend clear of
      whiskers and bands, which the search for an empty corner does not see.
  """

  title: str
  series: tuple[Series, ...]
  x_label: str
  y_label: str
  log_y: bool = False
  y_range: tuple[float, float] | None = None
  marks: tuple[float, ...] = ()
  mark_label: str = 'ME Layer'
  categories: tuple[str, ...] = ()
  bars: Literal['beside', 'stacked', 'overlaid'] = 'beside'
  low: bool = False
  clear: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heatmap:
  """A matrix as colours.

  Attributes:
    title: of the panel.
    values: `[rows, columns]`; NaN stays blank.
    x_label: of the columns.
    y_label: of the rows.
    value_label: of the colour scale.
    value_range: of the colour scale; None fits the data.
    log: whether colours are logarithmic.
    origin: where row 0 is, `upper` (attention maps) or `lower`.
    marks: rows that are framed in the ME Layer's colour, by their number.
    column_marks: columns that are.
    x_names: of the columns, where they have names (tokens, for example).
    y_names: of the rows.
    y_first: number of the first row, where rows are counted and not named.
  """

  title: str
  values: np.ndarray
  x_label: str
  y_label: str
  value_label: str
  value_range: tuple[float, float] | None = None
  log: bool = False
  origin: Literal['upper', 'lower'] = 'lower'
  marks: tuple[float, ...] = ()
  column_marks: tuple[float, ...] = ()
  x_names: tuple[str, ...] = ()
  y_names: tuple[str, ...] = ()
  y_first: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ridges:
  """One line a layer over the channels, in three dimensions.

  Attributes:
    title: of the panel.
    values: `[layers, channels]`, not negative.
    value_label: of the vertical axis.
    top: of the vertical axis, so that panels can share a scale.
    mark: the layer drawn in the ME Layer's colour.
  """

  title: str
  values: np.ndarray
  value_label: str
  top: float
  mark: int | None = None


Panel = Chart | Heatmap | Ridges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
  """Panels side by side.

  Attributes:
    name: of its files, without a suffix; unique in a report.
    title: above the panels.
    caption: what is drawn, from what, with which control; a few sentences.
    alt: what a reader who cannot see it needs to know: the finding, with its
      numbers.
    panels: in reading order.
    columns: panels in a row, where there is room.
  """

  name: str
  title: str
  caption: str
  alt: str
  panels: tuple[Panel, ...]
  columns: int = 2

  @property
  def ends_wide(self) -> bool:
    """Whether the last panel takes a row of its own whole.

    A low one does where it would stand beside an empty place.
    """
    last, count = self.panels[-1], len(self.panels)
    alone = 1 < self.columns < count and count % self.columns == 1
    return alone and isinstance(last, Chart) and last.low


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Numbers.

  Attributes:
    caption: what they are.
    header: names of the columns.
    rows: cells as they are shown.
  """

  caption: str
  header: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
  """One claim and what was measured of it.

  Attributes:
    name: anchor in the page and key in the JSON; unique in a report.
    title: of the section.
    claim: what the paper says, in our words.
    verdict: `holds`, `in part`, `does not hold` here, or `not tested`.
    finding: what was measured, in sentences with the numbers.
    control: what the controls showed; a section without one is not finished.
    figures: to look at.
    tables: to read.
    numbers: everything measured, as plain values for the JSON.
  """

  name: str
  title: str
  claim: str
  verdict: Verdict
  finding: str
  control: str
  figures: tuple[Figure, ...] = ()
  tables: tuple[Table, ...] = ()
  numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
