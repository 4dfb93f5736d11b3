"""What do a heatmap's colours and rows span? The same on paper and on the page."""

from __future__ import annotations

import numpy as np

from me_jax.plotting import spec

# Powers of ten that a logarithmic scale spans, at most, below its top.
_DECADES = 6


def span(heatmap: spec.Heatmap) -> tuple[float, float]:
  """Returns the lowest and the highest value that get a colour of their own.

  Args:
    heatmap: with a `value_range`, or one that fits its data.

  Returns:
    Two values, the first smaller; positive ones where colours are logarithmic.
  """
  if heatmap.value_range is not None:
    return heatmap.value_range
  values = np.asarray(heatmap.values, np.float64)
  values = values[np.isfinite(values)]
  if heatmap.log:
    values = values[values > 0]
  if not values.size:
    return (0.1, 1.0) if heatmap.log else (0.0, 1.0)
  low, high = float(values.min()), float(values.max())
  if heatmap.log:
    low = max(low, high / 10**_DECADES)
    return (low, high) if low < high else (low / 10, high * 10)
  return (low, high) if low < high else (low - 0.5, high + 0.5)


def edges(heatmap: spec.Heatmap) -> tuple[float, float]:
  """Returns where the first row begins and the last ends, as rows are counted.

  Args:
    heatmap: its rows count from `y_first` unless they have names.
  """
  first = 0 if heatmap.y_names else heatmap.y_first
  return first - 0.5, first + len(heatmap.values) - 0.5
