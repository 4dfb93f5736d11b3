"""Do two models differ, item by item?

Letters: X items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from me_jax.analysis import bootstrap
from me_jax.evaluation import tasks as tasks_lib

_LEVEL = 0.05  # of McNemar's test


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
  """A metric of one model, or of two, on the same items.

  Attributes:
    task: name of the task.
    metric: what is measured.
    items: X.
    stock: mean with its interval.
    mitigated: the same of the other model; None without one.
    difference: mitigated minus stock, paired; None without one.
    p: of McNemar's exact test, two-sided, on items that one model alone gets;
      None where the metric is not yes or no.
  """

  task: str
  metric: tasks_lib.Metric
  items: int
  stock: bootstrap.Estimate
  mitigated: bootstrap.Estimate | None
  difference: bootstrap.Estimate | None
  p: float | None

  @property
  def verdict(self) -> str:
    """Says in words which model has more, if that is sure.

    Sure is what the interval says and, of yes and no, the exact test too.
    """
    if self.difference is None:
      return ''
    if self.difference.low <= 0 <= self.difference.high:
      return 'no difference'
    # Drawing again from a few items is surer than they are.
    if self.p is not None and self.p >= _LEVEL:
      return 'no difference'
    more = self.difference.value > 0
    if not self.metric.better:
      return 'more' if more else 'less'
    return 'better' if more == (self.metric.better > 0) else 'worse'

  def to_json(self) -> dict[str, Any]:
    """Returns it as JSON types."""
    return dataclasses.asdict(self) | {
      'metric': self.metric.name,
      'verdict': self.verdict,
      **{
        name: value and value._asdict()
        for name, value in (
          ('stock', self.stock),
          ('mitigated', self.mitigated),
          ('difference', self.difference),
        )
      },
    }


def compare(
  task: str,
  metric: tasks_lib.Metric,
  stock: Mapping[Any, Any],
  mitigated: Mapping[Any, Any] | None,
  *,
  seed: int = 0,
) -> Compared | None:
  """Compares two models on the items that both have.

  Args:
    task: name of the task.
    metric: what the values are.
    stock: an item's value by item: a number, or a list of them that count alike.
    mitigated: the same of the other model.
    seed: of the bootstrap over items.

  Returns:
    The comparison; None without items.
  """
  items = [item for item in stock if mitigated is None or item in mitigated]
  if not items:
    return None
  first_X, weight_X = _means(stock, items)
  second = difference = p = None
  if mitigated is not None:
    second_X, _ = _means(mitigated, items)
    second = _level(second_X, weight_X, seed)
    difference = bootstrap.weighted_mean(
      second_X - first_X, weight_X, seed=seed
    )
    p = _mcnemar(first_X, second_X)
  return Compared(
    task=task,
    metric=metric,
    items=len(items),
    stock=_level(first_X, weight_X, seed),
    mitigated=second,
    difference=difference,
    p=p,
  )


def _means(
  values: Mapping[Any, Any], items: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns each item's mean and how many numbers it is of."""
  lists = [np.atleast_1d(np.asarray(values[i], np.float64)) for i in items]
  return np.array([x.mean() for x in lists]), np.array([len(x) for x in lists])


def _level(
  values_X: np.ndarray, weight_X: np.ndarray, seed: int
) -> bootstrap.Estimate:
  """Returns a model's mean; of yes and no with Wilson's interval."""
  if _yes_or_no(values_X) and (weight_X == 1).all():
    hits, tries = int(values_X.sum()), len(values_X)
    # Drawing from items that are all alike would be sure of what it is not.
    return bootstrap.Estimate(hits / tries, *bootstrap.wilson(hits, tries))
  return bootstrap.weighted_mean(values_X, weight_X, seed=seed)


def _yes_or_no(values_X: np.ndarray) -> bool:
  return bool(np.isin(values_X, (0.0, 1.0)).all())


def _mcnemar(first_X: np.ndarray, second_X: np.ndarray) -> float | None:
  """Returns the two-sided p of the exact test (McNemar 1947)."""
  from scipy import stats

  if not (_yes_or_no(first_X) and _yes_or_no(second_X)):
    return None
  gained = int(((first_X == 0) & (second_X == 1)).sum())
  lost = int(((first_X == 1) & (second_X == 0)).sum())
  if not gained + lost:
    return 1.0
  return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)
