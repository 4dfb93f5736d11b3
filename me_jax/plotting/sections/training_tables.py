"""Which numbers stand behind a training run? As tables, and as words."""

from __future__ import annotations

from collections.abc import Sequence

from me_jax.plotting import prose
from me_jax.plotting import spec
from me_jax.plotting.sections import training_inside as inside_lib
from me_jax.plotting.sections import training_rows as rows_lib
from me_jax.training import compared as compared_lib


def tables(
  run: rows_lib.Run, held_out: Sequence[compared_lib.HeldOut]
) -> tuple[spec.Table, ...]:
  """Returns what was measured, first the result."""
  found = (_held_out(held_out), _inside(run))
  return tuple(table for table in found if table.rows)


def unit(held_out: Sequence[compared_lib.HeldOut]) -> str:
  """Returns what losses are measured in, if it is the same for all."""
  units = {one.unit for one in held_out}
  return units.pop() if len(units) == 1 else 'each in its unit'


def guarded(one: compared_lib.HeldOut) -> str:
  """Says whether a guard was kept."""
  if one.guard is None:
    return ''
  if not one.kept:
    return 'not kept'
  return 'kept' if one.surely_kept else 'kept, the interval reaches beyond'


def _held_out(held_out: Sequence[compared_lib.HeldOut]) -> spec.Table:
  header = (
    'held-out set', '', 'texts', 'tokens', 'before', 'after', 'change', '',
    'guard: may rise by', '',
  )  # fmt: skip
  rows = [
    (
      one.name,
      'on the task' if one.on_task else 'off the task',
      f'{one.texts:,}',
      f'{one.tokens:,}',
      prose.interval(one.before, '.4f'),
      prose.interval(one.after, '.4f'),
      prose.interval(one.change, '+.4f'),
      prose.judged(one.change, one.texts),
      'none' if one.guard is None else f'{one.guard:.4g}',
      guarded(one),
    )
    for one in held_out
  ]
  # Without a guard there is nothing to say of one.
  width = 10 if any(one.guard is not None for one in held_out) else 8
  return spec.Table(
    caption=(
      f'The result: loss on held-out texts, {unit(held_out)}, before training '
      'and with the weights that were kept; the change is that of the same '
      'texts. With 95 % intervals over texts; below zero is better.'
    ),
    header=header[:width],
    rows=tuple(row[:width] for row in rows),
  )


def _inside(run: rows_lib.Run) -> spec.Table:
  # A single look is the first and the last.
  looks = sorted({0, len(run.monitor) - 1}) if run.monitor else []
  steps = [run.monitor[look]['step'] for look in looks]
  return spec.Table(
    caption='Inside the model, at the first and at the last look.',
    header=('', *(f'step {step:,}' for step in steps)),
    rows=tuple(
      (title, *(inside_lib.at(run, key, look) for look in looks))
      for key, (title, _) in inside_lib.measured(run).items()
    ),
  )
