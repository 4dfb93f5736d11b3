"""What do the page's figures have in common? Numbers and axes for plotly.js."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from me_jax.plotting.wording import in_plotly

_DIGITS = 5
# Names that have room below an axis, and from where on they are small.
_MOST_NAMES, _MANY_NAMES = 40, 16


def numbers(values: Any) -> list[Any]:
  """Returns numbers in few digits; None where one is missing or infinite.

  Args:
    values: `[n]`.
  """
  return [_short(value) for value in np.asarray(values, np.float64).tolist()]


def _short(value: float) -> float | int | None:
  if not math.isfinite(value):
    return None
  value = float(f'{value:.{_DIGITS}g}')
  return int(value) if value.is_integer() else value


def axis(label: str, **more: Any) -> dict[str, Any]:
  """Returns an axis.

  Args:
    label: its title.
    **more: further fields, which replace these.
  """
  return {
    'title': {'text': in_plotly(label), 'standoff': 8},
    'automargin': True,
    'gridcolor': '#e4e4e4',
    'linecolor': '#888888',
    'ticks': 'outside',
    'ticklen': 4,
    'zeroline': False,
  } | more


def names(words: tuple[str, ...], longest: int = 24) -> dict[str, Any]:
  """Returns an axis' fields that name 0, 1, ..., if there is room for that.

  Args:
    words: the names.
    longest: characters of a name; what is longer is cut.
  """
  if not words or len(words) > _MOST_NAMES:
    return {}
  cut = [w if len(w) <= longest else w[: longest - 1] + '…' for w in words]
  return {
    'tickvals': list(range(len(words))),
    'ticktext': [in_plotly(word) for word in cut],
    'ticklabeloverflow': 'allow',
    'tickfont': {'size': 11 if len(words) <= _MANY_NAMES else 7},
  }


def whole(values: np.ndarray) -> dict[str, Any]:
  """Returns an axis' fields that keep its ticks on whole numbers.

  Args:
    values: `[n]`, what stands along it. Nothing is needed where they are not
      whole themselves, or span so much that ticks are far apart.
  """
  values = values[np.isfinite(values)]
  if (
    not values.size or np.ptp(values) > 8 or np.any(values != np.round(values))
  ):
    return {}
  return {'dtick': 1}
