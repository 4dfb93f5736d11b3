"""One line of the results: what was measured, beside what, and its bar."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any, Literal

import numpy as np

Better = Literal['less', 'more']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """A measurement.

  Attributes:
    what: was measured, in Markdown.
    better: which way is good.
    unit: of the two sides.
    ours: of me_jax; None where the ratio alone is measured.
    other: of the other side, if there is one.
    peer: whether the other side is PyTorch.
    ratio: ours over the other; None where there is no other.
    rounds: that the medians are of; None for what is counted.
    spread: least and largest of these rounds' ratios, or of ours without one.
    bar: that the ratio, or ours without one, has to keep; None is no bar.
  """

  what: str
  better: Better
  unit: str = ''
  ours: float | None = None
  other: float | None = None
  peer: bool = False
  ratio: float | None = None
  rounds: int | None = None
  spread: tuple[float, float] | None = None
  bar: float | None = None

  @property
  def measured(self) -> float:
    """What the bar is for."""
    return self.ours if self.ratio is None else self.ratio

  @property
  def met(self) -> bool | None:
    """Whether the bar is kept; None without one."""
    if self.bar is None:
      return None
    if self.better == 'less':
      return self.measured <= self.bar
    return self.measured >= self.bar

  def to_json(self) -> dict[str, Any]:
    """Returns the fields by name, and `met`."""
    return dataclasses.asdict(self) | {'met': self.met}

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> Row:
    """Returns the row that `to_json` made a dictionary of."""
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: values[name] for name in names})


def compared(
  what: str,
  unit: str,
  rounds: Any,
  *,
  better: Better,
  bar: float | None = None,
  peer: bool = True,
) -> Row:
  """Returns the row of two sides that took turns.

  Args:
    what: was measured.
    unit: of both sides.
    rounds: `[rounds, 2]`, ours and the other's.
    better: which way is good.
    bar: of the ratio's median.
    peer: whether the other side is PyTorch.
  """
  rounds = np.asarray(rounds, np.float64)
  ours, other = np.median(rounds, axis=0)
  found = ratios(what, rounds[:, 0] / rounds[:, 1], better=better, bar=bar)
  return dataclasses.replace(
    found, unit=unit, ours=float(ours), other=float(other), peer=peer
  )


def ratios(
  what: str,
  values: Sequence[float],
  *,
  better: Better,
  bar: float | None = None,
) -> Row:
  """Returns the row of ratios that a process measured in turns of its own."""
  return Row(
    what=what,
    better=better,
    ratio=float(np.median(values)),
    rounds=len(values),
    spread=(float(np.min(values)), float(np.max(values))),
    bar=bar,
  )


def alone(
  what: str,
  unit: str,
  values: Sequence[float],
  *,
  better: Better,
  bar: float | None = None,
) -> Row:
  """Returns the row of rounds of ours that nothing is compared with."""
  found = ratios(what, values, better=better, bar=bar)
  return dataclasses.replace(found, unit=unit, ours=found.ratio, ratio=None)


def counted(
  what: str,
  unit: str,
  ours: float,
  other: float,
  *,
  bar: float | None = None,
) -> Row:
  """Returns the row of two numbers that are the same in every round."""
  return Row(
    what=what,
    better='less',
    unit=unit,
    ours=float(ours),
    other=float(other),
    ratio=ours / other,
    bar=bar,
  )
