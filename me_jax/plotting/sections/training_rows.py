"""What did a run write down? The rows of its `metrics.jsonl`, as curves.

A run that was stopped and resumed goes back to its last checkpoint, so that
some steps stand in the file twice: what was done again counts. Values that are
missing, null or no number are gaps, never zeros.

Letters: n points of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

_KINDS = ('train', 'held_out', 'monitor')
# What a row does not have, unlike what it has as null.
_MISSING = object()
Row = Mapping[str, Any]


class Curve(NamedTuple):
  """Something over steps.

  Attributes:
    step_n: `[n]`, ascending integers.
    y_n: `[n]`, NaN where there is no number.
  """

  step_n: np.ndarray
  y_n: np.ndarray

  def finite(self) -> Curve:
    """Returns the points that are numbers."""
    there_n = np.isfinite(self.y_n)
    return Curve(self.step_n[there_n], self.y_n[there_n])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """The rows that count, by kind, in the order of their steps.

  Attributes:
    train: of steps.
    held_out: of evaluations.
    monitor: of looks inside the model.
    resumed: the steps that the run was taken up from.
  """

  train: tuple[Row, ...]
  held_out: tuple[Row, ...]
  monitor: tuple[Row, ...]
  resumed: tuple[int, ...]

  @property
  def last(self) -> int:
    """The last step of any row; 0 without rows."""
    groups = self.train, self.held_out, self.monitor
    return max((rows[-1]['step'] for rows in groups if rows), default=0)


def read(rows: Sequence[Any]) -> Run:
  """Sorts rows by kind and step.

  Args:
    rows: of `metrics.jsonl`, in the file's order. What has no step or is of no
      known kind is passed over.
  """
  found: dict[str, dict[int, Row]] = {kind: {} for kind in _KINDS}
  resumed = []
  for row in rows:
    step = _step(row)
    if step is None:
      continue
    kind = row.get('kind')
    if kind == 'resumed':
      resumed.append(step)
      for of_kind in found.values():
        for late in [s for s in of_kind if s > step]:
          del of_kind[late]
    elif kind in _KINDS:
      found[kind][step] = {**row, 'step': step}
  by_step = {
    kind: tuple(of_kind[step] for step in sorted(of_kind))
    for kind, of_kind in found.items()
  }
  return Run(**by_step, resumed=tuple(resumed))


def number(value: Any) -> float:
  """Returns a value as a float; NaN if it is not a finite number."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return math.nan
  try:
    value = float(value)
  except OverflowError:
    return math.nan
  return value if math.isfinite(value) else math.nan


def curve(rows: Sequence[Row], *path: str) -> Curve:
  """Returns what rows say of something.

  Args:
    rows: in order.
    *path: keys, one inside the other.

  Returns:
    A point for each row that has it; none if no row has a number.
  """
  steps, values = [], []
  for row in rows:
    value: Any = row
    for key in path:
      there = isinstance(value, Mapping) and key in value
      value = value[key] if there else _MISSING
    if value is not _MISSING:
      steps.append(row['step'])
      values.append(number(value))
  if not np.isfinite(values).any():
    steps, values = [], []
  return Curve(np.array(steps, np.int64), np.array(values, np.float64))


def names(rows: Sequence[Row], *path: str) -> list[str]:
  """Returns the keys that rows have there, in order of appearance."""
  found: dict[str, None] = {}
  for row in rows:
    value: Any = row
    for key in path:
      value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):
      found |= dict.fromkeys(str(key) for key in value)
  return list(found)


def change(run: Run, name: str) -> tuple[Curve, np.ndarray, np.ndarray]:
  """Returns how the loss of a held-out set moved since it was first measured.

  Args:
    run: the rows.
    name: of the set.

  Returns:
    The change, and the ends of its interval, `[n]`. Rows may hold the change of
    the same texts as `change`, `change_low` and `change_high`, which the first
    need not; without them in any set the interval is the loss' own, moved by as
    much.
  """
  loss = curve(run.held_out, 'sets', name, 'loss')
  paired = curve(run.held_out, 'sets', name, 'change')
  if len(paired.step_n):
    ends = ('change_low', 'change_high')
    low, high = (
      _at(curve(run.held_out, 'sets', name, end), paired) for end in ends
    )
    first_n = loss.finite().step_n[:1]
    if len(first_n) and first_n[0] < paired.step_n[0]:
      # Against itself nothing has changed.
      paired = Curve(
        *(np.r_[zero, n] for zero, n in zip((first_n, 0.0), paired))
      )
      low, high = np.r_[0.0, low], np.r_[0.0, high]
    return paired, low, high
  low, high = (curve(run.held_out, 'sets', name, e) for e in ('low', 'high'))
  start = loss.finite().y_n[:1].sum()
  if is_paired(run):
    # One far wider than the others would hide them.
    none_n = np.full(len(loss.y_n), math.nan)
    return Curve(loss.step_n, loss.y_n - start), none_n, none_n
  return (
    Curve(loss.step_n, loss.y_n - start),
    _at(low, loss) - start,
    _at(high, loss) - start,
  )


def is_paired(run: Run) -> bool:
  """Whether the rows hold the intervals of paired changes."""
  return any(
    len(curve(run.held_out, 'sets', name, 'change').step_n)
    for name in names(run.held_out, 'sets')
  )


def _step(row: Any) -> int | None:
  if not isinstance(row, Mapping):
    return None
  step = number(row.get('step'))
  return int(step) if step >= 0 and step == math.floor(step) else None


def _at(given: Curve, other: Curve) -> np.ndarray:
  """Returns a curve's values at another's steps, NaN where it has none."""
  found = dict(zip(given.step_n.tolist(), given.y_n.tolist()))
  return np.array([found.get(s, math.nan) for s in other.step_n.tolist()])
