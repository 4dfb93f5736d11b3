"""Which step is the best one, and is there hope for a better?

The best is the one with the lowest loss on task among those that keep every
limit. The start keeps them all, so there always is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from me_jax.training import settings as settings_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
  """The best step so far.

  Attributes:
    step: steps done then.
    loss: nats per token on task; None before the first evaluation.
    waited: evaluations since.
  """

  step: int = 0
  loss: float | None = None
  waited: int = 0

  def to_json(self) -> dict[str, Any]:
    """Returns it as JSON types."""
    return dataclasses.asdict(self)


def loss(
  sets: Sequence[settings_lib.HeldOut], losses: Mapping[str, float]
) -> float:
  """Returns the mean loss of the sets that are on task and may choose."""
  return float(
    np.mean([losses[s.name] for s in sets if s.on_task and not s.report])
  )


def exceeded(
  sets: Sequence[settings_lib.HeldOut],
  start: Mapping[str, float],
  now: Mapping[str, float],
) -> tuple[str, ...]:
  """Returns the names of sets whose loss has risen beyond their limit.

  One that is no number has.
  """
  return tuple(
    s.name
    for s in sets
    if not s.report and not now[s.name] <= start[s.name] + s.limit
  )


def updated(best: Best, step: int, loss: float, kept: bool) -> Best:
  """Returns the best step after another evaluation.

  Args:
    best: before.
    step: steps done.
    loss: on task; one that is not finite is no better than any.
    kept: whether every limit is.
  """
  better = best.loss is None or loss < best.loss
  if kept and better and math.isfinite(loss):
    return Best(step=step, loss=loss)
  return dataclasses.replace(best, waited=best.waited + 1)
