"""Does a mask keep what the paper promises? The rule behind the verdict."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

from me_jax.mitigation import outcome as outcome_lib
from me_jax.plotting import prose
from me_jax.plotting import spec
from me_jax.plotting.sections import mitigation_tables as words

CHOSEN, PAPER, STOCK = words.CHOSEN, outcome_lib.PAPER, words.STOCK


class Judged(NamedTuple):
  """What the verdict rests on.

  Attributes:
    corpora: that count: chats, or plain texts where there are no chats; of two
      texts or more, because one says nothing about others.
    helped: those of them whose interval is below zero.
    hurt: all corpora whose interval is above zero.
    over: the helped ones, else all that count, else all there are.
    change: mean over these corpora of what the chosen mask does.
    controls: the same of its controls, by name.
    rivals: controls that the chosen mask does not surely beat on all of them.
    weaker: whether attention to the massive token falls; None if unknown.
    looser: whether what attention receives of the token gets less alike across
      inputs; None if unknown.
  """

  corpora: list[str]
  helped: list[str]
  hurt: list[str]
  over: list[str]
  change: float
  controls: dict[str, float]
  rivals: list[str]
  weaker: bool | None
  looser: bool | None


def judge(outcome: outcome_lib.Outcome) -> Judged:
  """Counts for which corpora a mask helps, and what its controls do there."""
  changes = outcome.changes.get(CHOSEN, {})
  chats = any(stock.chat for stock in outcome.stock.values())
  measured = [
    name
    for name, stock in outcome.stock.items()
    if stock.texts > 1
    and name in changes
    and math.isfinite(changes[name].loss.value)
  ]
  corpora = [name for name in measured if outcome.stock[name].chat == chats]
  helped = [name for name in corpora if changes[name].loss.high < 0]
  over = helped or corpora or list(changes)
  change = _mean(outcome, CHOSEN, over)
  controls = {
    mask: _mean(outcome, mask, over)
    for mask in outcome.changes
    if mask not in (CHOSEN, PAPER)
  }
  controls = {m: x for m, x in controls.items() if math.isfinite(x)}
  return Judged(
    corpora=corpora,
    helped=helped,
    hurt=[name for name in measured if changes[name].loss.low > 0],
    over=over,
    change=change,
    controls=controls,
    rivals=[mask for mask in controls if not _beaten(outcome, mask, helped)],
    weaker=_falls(outcome, 'attention'),
    looser=_falls(outcome, 'rigidity'),
  )


def _beaten(
  outcome: outcome_lib.Outcome, mask: str, corpora: Sequence[str]
) -> bool:
  """Whether a control stays behind on every corpus, by the whole interval."""
  less = outcome.less.get(mask, {})
  return all(name in less and less[name].high < 0 for name in corpora)


def _falls(outcome: outcome_lib.Outcome, name: str) -> bool | None:
  """Says whether the chosen mask lowers what is measured inside the model."""
  found = [
    getattr(outcome.internals[mask], name)
    for mask in (STOCK, CHOSEN)
    if mask in outcome.internals
  ]
  if len(found) < 2 or not np.isfinite(found).all():
    return None
  return bool(found[1] < found[0])


def _mean(
  outcome: outcome_lib.Outcome, mask: str, names: Sequence[str]
) -> float:
  """Returns what a mask does to corpora, each weighing the same."""
  found = outcome.changes.get(mask, {})
  values = [found[name].loss.value for name in names if name in found]
  return float(np.mean(values)) if values else math.nan


def verdict(outcome: outcome_lib.Outcome, judged: Judged) -> spec.Verdict:
  """Returns what is left of the claim.

  It holds where at least half of the corpora that count improve, none gets
  worse, attention to the massive token falls and what it receives of the token
  gets less rigid, and every control stays behind where it improves, by the
  whole interval of the difference, paired by text.
  """
  if not outcome.trials:
    return 'not tested'
  if outcome.chosen is None:
    return 'does not hold'
  if not judged.corpora:
    return 'not tested'
  if not judged.helped:
    return 'does not hold'
  return 'in part' if lacking(judged) else 'holds'


def lacking(judged: Judged) -> list[str]:
  """Says what keeps the claim from holding, where a mask helps at all."""
  # Without a control any mask might have done the same.
  said = {
    'less than half of the corpora improve': (
      2 * len(judged.helped) < len(judged.corpora)
    ),
    f'{prose.listed(judged.hurt)} get worse': judged.hurt,
    'attention to the token does not fall': not judged.weaker,
    'its rigidity does not fall': not judged.looser,
    'no control was measured': not judged.controls,
    f'not surely behind: {prose.listed(judged.rivals)}': judged.rivals,
  }
  return [what for what, so in said.items() if so]
