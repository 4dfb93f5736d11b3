"""How is a noisy curve shown? Smoothed, and without what dwarfs the rest.

Letters: n points of a curve.
"""

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np

from me_jax.plotting import spec
from me_jax.plotting import thinning
from me_jax.plotting.sections import training_rows as rows_lib

STEP = 'step'
# A running median is of a part of the rows, and of so many at least and most.
_PART, _LEAST, _MOST = 10, 5, 501
# Fewer rows than this are drawn as they are.
_FEW = 12
_CENTRES = 1_000
# Points of a curve; the page would thin more, and without the lows.
POINTS = 1_200
# How many times the least the most is, where an axis becomes logarithmic.
_WIDE = 50
# Of its size; what moves by less is as good as level.
_LEVEL = 1e-6


def window(count: int) -> int:
  """Returns how many rows a running median is of; 0 if there are too few."""
  if count < _FEW:
    return 0
  return min(max(count // _PART, _LEAST), _MOST) | 1


def smooth(given: rows_lib.Curve) -> rows_lib.Curve:
  """Returns the running median, which a single spike does not move.

  Towards the ends there are fewer rows to take it of.

  Args:
    given: the curve; gaps are passed over.
  """
  step_n, y_n = given.finite()
  half = window(len(y_n)) // 2
  if not half:
    return rows_lib.Curve(step_n, y_n)
  last = len(y_n) - 1
  middles = np.unique(
    np.linspace(0, last, min(_CENTRES, last + 1)).round().astype(int)
  )
  medians = [
    np.median(y_n[max(0, middle - half) : middle + half + 1])
    for middle in middles
  ]
  return rows_lib.Curve(step_n[middles], np.array(medians))


def ends(given: rows_lib.Curve) -> tuple[float, float]:
  """Returns where a curve starts and ends, smoothed; NaN without numbers."""
  y_n = smooth(given).y_n
  return (float(y_n[0]), float(y_n[-1])) if len(y_n) else (math.nan, math.nan)


def within_sight(given: rows_lib.Curve) -> tuple[float, float] | None:
  """Returns a range of y without what would dwarf everything else.

  Args:
    given: a noisy curve.

  Returns:
    Where most points are, however steep the curve; None if all of them can be
    shown.
  """
  step_n, y_n = given.finite()
  if not window(len(y_n)):
    return None
  smoothed = smooth(given)
  away_n = np.abs(y_n - np.interp(step_n, smoothed.step_n, smoothed.y_n))
  usual_n = y_n[away_n <= 8 * np.quantile(away_n, 0.75)]
  low, high = usual_n.min(), usual_n.max()
  if low == high or np.ptp(y_n) <= 3 * (high - low):
    return None
  room = 0.06 * (high - low)
  return float(low - room), float(high + room)


def off_the_scale(
  given: rows_lib.Curve, sight: tuple[float, float]
) -> tuple[int, int, float]:
  """Returns how many points are out of sight, and the farthest of them.

  Args:
    given: the curve.
    sight: of `within_sight`.

  Returns:
    How many there are, and the step and the value of the farthest.
  """
  step_n, y_n = given.finite()
  beyond_n = np.maximum(sight[0] - y_n, y_n - sight[1])
  farthest = int(beyond_n.argmax())
  return int((beyond_n > 0).sum()), int(step_n[farthest]), float(y_n[farthest])


def series(
  label: str,
  given: rows_lib.Curve,
  style: spec.Style = 'line',
  role: spec.Role = 'massive',
) -> spec.Series:
  """Returns a curve to draw, thinned if it is long."""
  kept = thinning.extremes(given.y_n, POINTS)
  return spec.Series(
    label=label,
    x=given.step_n[kept],
    y=given.y_n[kept],
    style=style,
    role=role,
  )


def noisy(label: str, given: rows_lib.Curve) -> tuple[spec.Series, ...]:
  """Returns a curve, as it is and smoothed if there are many rows.

  Args:
    label: of it where there are few.
    given: the curve.
  """
  size = window(len(given.finite().y_n))
  if not size:
    return (series(label, given),)
  return (
    series('as written', given, 'thin', 'other'),
    series(f'running median of {size} rows', smooth(given)),
  )


def level(
  label: str,
  y: float,
  start: float,
  stop: float,
  style: spec.Style = 'level',
) -> spec.Series:
  """Returns a level line from one x to another."""
  return spec.Series(
    label=label,
    x=np.array([start, stop]),
    y=np.array([y, y]),
    role='other',
    style=style,
  )


def low(
  title: str, unit: str, lines: Sequence[spec.Series], log: bool = False
) -> spec.Chart:
  """Returns a low panel over steps.

  Args:
    title: of the panel.
    unit: of y.
    lines: to draw.
    log: whether y may be logarithmic, where values are far apart.
  """
  y_n = np.concatenate([one.y for one in lines])
  log = log and is_wide(y_n)
  return spec.Chart(
    title=title,
    series=tuple(lines),
    x_label=STEP,
    y_label=unit,
    log_y=log,
    y_range=None if log else room(y_n),
    low=True,
  )


def is_wide(y_n: np.ndarray) -> bool:
  """Whether values are all positive and far apart."""
  y_n = y_n[np.isfinite(y_n)]
  return bool(len(y_n) and y_n.min() > 0 and y_n.max() > _WIDE * y_n.min())


def room(y_n: np.ndarray) -> tuple[float, float] | None:
  """Returns a range of y that does not magnify what is as good as level."""
  y_n = y_n[np.isfinite(y_n)]
  if not len(y_n):
    return None
  middle, size = (y_n.min() + y_n.max()) / 2, np.abs(y_n).max()
  if np.ptp(y_n) > _LEVEL * size:
    return None
  size = size or 1.0
  return float(middle - 0.05 * size), float(middle + 0.05 * size)
