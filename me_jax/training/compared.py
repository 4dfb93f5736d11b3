"""What became of a held-out set, from before training to after it?

The same texts are measured twice, so that the change is one of pairs: its
interval is far narrower than the two intervals of the losses would suggest.
"""

from __future__ import annotations

import dataclasses

from me_jax.analysis import bootstrap


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
  """A held-out set before and after training.

  Attributes:
    name: of the set.
    on_task: whether it is of the kind that was trained on; the others are there
      to see what training costs elsewhere.
    before: the loss before training, with its 95 % interval over texts.
    after: of the weights that were kept.
    change: after minus before, text by text.
    texts: how many.
    tokens: that were predicted in them.
    guard: by how much the loss may rise; None is not guarded.
    unit: of the loss.
  """

  name: str
  on_task: bool
  before: bootstrap.Estimate
  after: bootstrap.Estimate
  change: bootstrap.Estimate
  texts: int
  tokens: int
  guard: float | None = None
  unit: str = 'nats per token'

  @property
  def kept(self) -> bool | None:
    """Whether the loss rose by no more than it may; None if not guarded.

    Of a loss that is no number, it did not.
    """
    return None if self.guard is None else self.change.value <= self.guard

  @property
  def surely_kept(self) -> bool | None:
    """The same of the whole interval."""
    return None if self.guard is None else self.change.high <= self.guard
