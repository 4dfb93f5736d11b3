"""How sure is a mean over texts?

Letters: X texts (or prefixes), R draws.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

DRAWS = 2000
_LEVEL = 0.95
_Z95 = 1.959964  # two-sided 95 % of the normal distribution


class Estimate(NamedTuple):
  """A mean with its 95 % interval.

  Attributes:
    value: the mean.
    low: lower end of the interval.
    high: upper end; of one text both ends are the value itself.
  """

  value: float
  low: float
  high: float


def weighted_mean(
  values_X: np.ndarray,
  weights_X: np.ndarray | None = None,
  *,
  seed: int = 0,
  draws: int = DRAWS,
) -> Estimate:
  """Returns a mean and its bootstrap interval.

  Texts are drawn with replacement, each with its weight (its number of tokens,
  say); the interval holds the middle 95 % of the means (the percentile
  bootstrap, Efron and Tibshirani 1993, chapter 13). Values that are differences
  within a text make it a paired one. The same seed draws the same texts.

  Args:
    values_X: one value a text.
    weights_X: of the texts; None weighs all the same.
    seed: of the draws.
    draws: how often.

  Returns:
    The estimate; NaN where there is no text.
  """
  values_X = np.asarray(values_X, np.float64)
  if weights_X is None:
    weights_X = np.ones_like(values_X)
  count = len(values_X)
  if not count or not weights_X.sum():
    return Estimate(np.nan, np.nan, np.nan)
  times_RX = np.random.default_rng(seed).multinomial(
    count, np.full(count, 1 / count), size=draws
  )
  weights_RX = times_RX * weights_X
  total_R = weights_RX.sum(axis=1)
  # A draw of texts without weight has no mean.
  usable_R = total_R > 0
  means_R = (weights_RX @ values_X)[usable_R] / total_R[usable_R]
  low, high = np.quantile(means_R, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
  value = float(values_X @ weights_X / weights_X.sum())
  return Estimate(value, float(low), float(high))


def wilson(hits: int, tries: int) -> tuple[float, float]:
  """Returns Wilson's 95 % interval of a share (Wilson 1927, JASA 22, 209)."""
  if not tries:
    return 0.0, 1.0
  share, z2 = hits / tries, _Z95**2 / tries
  middle = share + z2 / 2
  half = math.sqrt(z2 * share * (1 - share) + z2 * z2 / 4)
  # Without the clip rounding would put an end beside 0 or 1.
  low, high = (middle - half) / (1 + z2), (middle + half) / (1 + z2)
  return min(max(low, 0.0), share), max(min(high, 1.0), share)
