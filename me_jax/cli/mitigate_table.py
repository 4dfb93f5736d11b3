"""The tables that `me-jax mitigate` prints."""

from __future__ import annotations

from collections.abc import Callable
import math

from rich import console as console_lib
from rich import table as table_lib

from me_jax.analysis import bootstrap
from me_jax.mitigation import measure
from me_jax.mitigation import outcome as outcome_lib

_WIDTH = 160
_SHOWN_TRIALS = 8


def show(outcome: outcome_lib.Outcome) -> None:
  """Prints the outcome to standard output."""
  console = console_lib.Console(highlight=False)
  if not console.is_terminal:
    console = console_lib.Console(highlight=False, width=_WIDTH)
  console.print(_trials(outcome))
  console.print()
  chats = [name for name, stock in outcome.stock.items() if stock.chat]
  console.print(_changes(outcome, 'loss of all tokens', list(outcome.stock),
                         lambda change: change.loss,
                         lambda stock: stock.loss))  # fmt: skip
  if chats:
    console.print()
    console.print(_changes(outcome, 'loss of the answers alone', chats,
                           lambda change: change.answer,
                           lambda stock: stock.answer))  # fmt: skip
  console.print()
  console.print(_internals(outcome))
  console.print()
  console.print(headline(outcome), style='bold', soft_wrap=True)


def headline(outcome: outcome_lib.Outcome) -> str:
  """Says in a sentence what came of it."""
  if outcome.chosen is None:
    return (
      'No mask lowers the loss of the calibration texts within the budget of'
      f' {outcome.budget:g} nats per token on plain text: nothing helps here.'
    )
  helped, hurt, single = outcome.helped(), outcome.hurt(), outcome.single()
  same = [n for n in outcome.stock if n not in (*helped, *hurt, *single)]
  said = [
    f'{word} on {" and ".join(names)}'
    for word, names in (
      ('better', helped), ('worse', hurt), ('no difference', same),
      ('one text, which says nothing,', single),
    )
    if names
  ]  # fmt: skip
  return f'Chosen: {outcome.chosen.name}. On held-out texts: {"; ".join(said)}.'


def _trials(outcome: outcome_lib.Outcome) -> table_lib.Table:
  """Returns what was tried, the best first."""
  kinds = list(outcome.calibration)
  counts = ', '.join(f'{n} {kind}' for kind, n in outcome.calibration.items())
  table = table_lib.Table(
    box=None, pad_edge=False, title_justify='left',
    title=f'Choosing: change of loss on {counts} for calibration, nats per'
    ' token',
  )  # fmt: skip
  table.add_column('setting: channels, rate × strength, layers')
  for kind in kinds:
    table.add_column(kind, justify='right')
  table.add_column('')
  for trial in outcome.trials[:_SHOWN_TRIALS]:
    mark = '<- chosen' if trial is outcome.chosen else ''
    table.add_row(
      trial.name, *(f'{trial.change[kind]:+.4f}' for kind in kinds), mark
    )
  return table


def _changes(
  outcome: outcome_lib.Outcome,
  what: str,
  corpora: list[str],
  pick: Callable[[measure.Change], bootstrap.Estimate],
  before: Callable[[measure.Stock], float],
) -> table_lib.Table:
  """Returns what every mask does to some corpora."""
  table = table_lib.Table(
    box=None, pad_edge=False, title_justify='left',
    title=f'Held-out texts: {what}, nats per token, change with 95 % interval',
  )  # fmt: skip
  table.add_column('mask')
  for name in corpora:
    table.add_column(
      f'{name} ({outcome.stock[name].texts} texts)', justify='right'
    )
  table.add_row(
    'stock', *(f'{before(outcome.stock[name]):.3f}' for name in corpora)
  )
  rows = dict(outcome.changes)
  if outcome.baked is not None:
    rows = {
      outcome_lib.CHOSEN: rows.pop(outcome_lib.CHOSEN),
      'the same, baked': outcome.baked,
      **rows,
    }
  for mask, changes in rows.items():
    table.add_row(mask, *(_spell(pick(changes[name])) for name in corpora))
  return table


def _internals(outcome: outcome_lib.Outcome) -> table_lib.Table:
  """Returns what every mask does inside the model."""
  table = table_lib.Table(
    box=None, pad_edge=False, title_justify='left',
    title='Inside, layers after the span',
  )  # fmt: skip
  for name in ('mask', 'attention to the massive token', 'sink rate',
               'rigidity', 'effective rank', 'KL to stock'):  # fmt: skip
    table.add_column(name, justify='left' if name == 'mask' else 'right')
  for name, inside in outcome.internals.items():
    changes = outcome.changes.get(name, {})
    divergence = ' / '.join(f'{c.kl.value:.3f}' for c in changes.values())
    table.add_row(
      name, f'{inside.attention:.3f}', f'{inside.sink_rate:.3f}',
      f'{inside.rigidity:.4f}', f'{inside.effective_rank:.1f}', divergence,
    )  # fmt: skip
  return table


def _spell(estimate: bootstrap.Estimate) -> str:
  if math.isnan(estimate.value):
    return '-'
  return f'{estimate.value:+.4f} ({estimate.low:+.4f} to {estimate.high:+.4f})'
