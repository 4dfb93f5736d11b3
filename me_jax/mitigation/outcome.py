"""What came of relaxing a model: the choice, the result and its controls."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

from me_jax.analysis import bootstrap
from me_jax.mitigation import measure
from me_jax.mitigation import tune

CHOSEN = 'chosen'
PAPER = 'WeMask 0.5'  # weight, all layers after the span, as published


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """Everything that `me-jax mitigate` found; nats per token.

  Attributes:
    tried: how many settings were scored on calibration texts.
    trials: those of them that all calibration texts have scored, best first.
    dose: selections × rates at full strength on calibration texts, controls
      among them: the dose-response curve.
    chosen: the best trial; None when none helped within the budget.
    budget: what plain text may lose on calibration texts.
    calibration: texts by kind that the choice was made on.
    stock: the stock model on held-out texts, by corpus.
    changes: by mask (`CHOSEN` first if there is one, `PAPER`, then the controls
      of the chosen one) and corpus.
    less: the loss with the first mask of `changes` less that with each of the
      others, by mask and corpus, paired by text.
    internals: by mask, `stock` included.
    baked: what the weights with the mask baked in do, by corpus; None when they
      were not asked for.
    baked_kl: divergence of the baked weights from the exact mask, by corpus.
  """

  tried: int
  trials: tuple[tune.Trial, ...]
  dose: tuple[tune.Trial, ...]
  chosen: tune.Trial | None
  budget: float
  calibration: Mapping[str, int]
  stock: Mapping[str, measure.Stock]
  changes: Mapping[str, Mapping[str, measure.Change]]
  less: Mapping[str, Mapping[str, bootstrap.Estimate]]
  internals: Mapping[str, measure.Internals]
  baked: Mapping[str, measure.Change] | None = None
  baked_kl: Mapping[str, float] | None = None

  def helped(self) -> list[str]:
    """Returns the corpora whose interval is below zero; one text has none."""
    return [n for n, change in self._counting().items() if change.loss.high < 0]

  def hurt(self) -> list[str]:
    """Returns the corpora whose interval is above zero; one text has none."""
    return [n for n, change in self._counting().items() if change.loss.low > 0]

  def single(self) -> list[str]:
    """Returns the corpora of one text, which says nothing about others."""
    return [name for name, stock in self.stock.items() if stock.texts < 2]

  def _counting(self) -> dict[str, measure.Change]:
    """Returns what the chosen mask does to the corpora of two texts or more."""
    changes, single = self.changes.get(CHOSEN, {}), self.single()
    return {n: change for n, change in changes.items() if n not in single}

  def to_json(self) -> dict[str, Any]:
    """Returns it as JSON types."""
    return {
      field.name: measure.to_json(getattr(self, field.name))
      for field in dataclasses.fields(self)
    }
