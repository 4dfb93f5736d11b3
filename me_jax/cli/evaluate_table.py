"""The table that `me-jax evaluate` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import console as console_lib
from rich import table as table_lib

from me_jax.plotting.sections import evaluation


def show(found: Sequence[Any], labels: dict[str, str]) -> None:
  """Prints what was measured, a line a metric; `labels` names the tasks."""
  console = console_lib.Console(highlight=False)
  if not console.is_terminal:
    console = console_lib.Console(highlight=False, width=160)
  table = table_lib.Table(box=None)
  for column in ('', 'items', 'stock', 'mitigated', 'difference', 'p', ''):
    table.add_column(column)
  for one in found:
    metric = one.metric.name
    table.add_row(
      evaluation.name(one, labels),
      str(one.items),
      evaluation.percent(one.stock, metric),
      evaluation.percent(one.mitigated, metric),
      evaluation.percent(one.difference, metric, '+.1f'),
      '' if one.p is None else f'{one.p:.3g}',
      one.verdict,
    )
  console.print(table)
