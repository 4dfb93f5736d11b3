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
  content = evaluation.table(found, labels)
  table = table_lib.Table(*content.header, box=None)
  for row in content.rows:
    table.add_row(*row)
  console.print(table)
