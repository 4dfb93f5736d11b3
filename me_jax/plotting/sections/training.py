"""What did a training run do, to its task, to other texts and inside?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from me_jax.analysis import me_report
from me_jax.plotting import prose
from me_jax.plotting import spec
from me_jax.plotting.sections import training_curves as curves
from me_jax.plotting.sections import training_figures as figures_lib
from me_jax.plotting.sections import training_gates as gates_lib
from me_jax.plotting.sections import training_inside as inside_lib
from me_jax.plotting.sections import training_rows as rows_lib
from me_jax.plotting.sections import training_tables as tables_lib
from me_jax.training import compared as compared_lib

_CLAIM = (
  'Training makes the model better on held-out texts of its task, and costs '
  'other texts no more than their guard allows.'
)


def section(
  rows: Sequence[Mapping[str, Any]],
  held_out: Sequence[compared_lib.HeldOut] = (),
  *,
  chosen: int | None = None,
) -> spec.Section:
  """Describes a training run.

  Args:
    rows: of its `metrics.jsonl`, in the file's order; it may have been stopped
      and resumed.
    held_out: the held-out sets, before and with the weights that were kept.
    chosen: the step whose weights were kept; None says nothing about it.
  """
  run = rows_lib.read(rows)
  return spec.Section(
    name='training',
    title='The training run',
    claim=_CLAIM,
    verdict=verdict(held_out),
    finding=' '.join(_finding(run, held_out, chosen)),
    control=' '.join(_control(run, held_out, chosen)),
    figures=figures_lib.figures(run, held_out, chosen),
    tables=tables_lib.tables(run, held_out),
    numbers=_numbers(run, held_out, chosen),
  )


def verdict(held_out: Sequence[compared_lib.HeldOut]) -> spec.Verdict:
  """Returns what held-out texts say about the claim.

  Args:
    held_out: the sets. The claim holds if every set of the task is better by
      its whole interval, others were measured, each guard is kept by the whole
      interval, and no other text without a guard is worse.
  """
  task = [
    one
    for one in held_out
    if one.on_task and one.texts > 1 and math.isfinite(one.before.value)
  ]
  if not task:
    return 'not tested'
  better = [
    one for one in task if prose.judged(one.change, one.texts) == 'better'
  ]
  if not better:
    return 'does not hold'
  others = [one for one in held_out if not one.on_task]
  unguarded = [one for one in others if one.guard is None]
  whole = (
    len(better) == len(task)
    and others
    and all(one.surely_kept for one in held_out if one.guard is not None)
    and not {'worse', 'no number'}
    & {prose.judged(o.change, o.texts) for o in unguarded}
  )
  return 'holds' if whole else 'in part'


def _finding(
  run: rows_lib.Run,
  held_out: Sequence[compared_lib.HeldOut],
  chosen: int | None,
) -> list[str]:
  """Says what was measured, a sentence at a time."""
  said = [_extent(run, chosen)]
  for on_task, start in (
    (True, 'On held-out texts of the task'),
    (False, 'On other texts'),
  ):
    sets = [one for one in held_out if one.on_task == on_task]
    if sets:
      said.append(
        f'{start} the loss changes by {"; ".join(map(_change, sets))}.'
      )
  broken = [one for one in held_out if one.kept is False]
  if broken:
    said.append(
      'Not kept: the guard of '
      + '; '.join(
        f'{one.name}, whose loss may rise by {one.guard:.4g}' for one in broken
      )
      + '.'
    )
  said += _training(run)
  said += figures_lib.method_said(run)
  said += gates_lib.said(run)
  said += inside_lib.said(run)
  said += _me_layer(run)
  return said


def _change(one: compared_lib.HeldOut) -> str:
  verdict_of_set = prose.judged(one.change, one.texts)
  if one.guard is not None:
    guard = tables_lib.guarded(one)
    verdict_of_set += f'; guard of {one.guard:.4g}: {guard}'
  return (
    f'{prose.interval(one.change, "+.4f")} {one.unit} on {one.name}, from '
    f'{prose.number(one.before.value, ".4f")} to '
    f'{prose.number(one.after.value, ".4f")} ({verdict_of_set})'
  )


def _extent(run: rows_lib.Run, chosen: int | None) -> str:
  said = f'The run went to step {run.last:,}'
  speed = rows_lib.curve(run.train, 'tokens_per_s').finite().y_n
  if not run.train:
    said = 'Of the steps of this run nothing was written'
  if chosen is not None:
    said += f'; the weights of step {chosen:,} were kept'
  said += '.'
  if run.resumed:
    steps = ', '.join(f'{step:,}' for step in run.resumed)
    said += (
      f' It was taken up again from step {steps}; what had been done beyond was '
      'done again and is shown once.'
    )
  if len(speed):
    said += f' Its median speed is {np.median(speed):,.0f} tokens/s.'
  return said


def _training(run: rows_lib.Run) -> list[str]:
  """Says what the training loss did."""
  raw = rows_lib.curve(run.train, 'loss')
  written = [row for row in run.train if 'loss' in row]
  missing = [
    row['step']
    for row in written
    if not math.isfinite(rows_lib.number(row['loss']))
  ]
  said = []
  finite = raw.finite()
  if len(finite.y_n):
    first, last = (prose.number(y, '.4f') for y in curves.ends(raw))
    top = int(finite.y_n.argmax())
    said.append(
      f'The training loss goes from {first} to {last}'
      + (' (running median)' if curves.window(len(finite.y_n)) else '')
      + f'; its highest is {prose.number(finite.y_n[top], ".4f")} at step '
      f'{finite.step_n[top]:,}.'
    )
  if missing:
    said.append(
      f'In {len(missing):,} of {len(written):,} rows the loss is no number, '
      f'first at step {missing[0]:,}.'
    )
  return said


def _me_layer(run: rows_lib.Run) -> list[str]:
  """Says when the ME Layer moved or was not found."""
  looks = [row for row in run.monitor if inside_lib.ME_LAYER in row]
  curve = rows_lib.curve(looks, inside_lib.ME_LAYER)
  if looks and not len(curve.y_n):
    return ['No look found an ME Layer.']
  if not looks:
    return []
  none = curve.step_n[~np.isfinite(curve.y_n)]
  step_n, y_n = curve.finite()
  moved = step_n[y_n != y_n[0]]
  said = []
  if len(moved):
    said.append(f'The ME Layer is another one first at step {moved[0]:,}.')
  if len(none):
    said.append(
      f'No ME Layer was found in {len(none):,} of {len(curve.y_n):,} looks, '
      f'first at step {none[0]:,}.'
    )
  return said


def _control(
  run: rows_lib.Run,
  held_out: Sequence[compared_lib.HeldOut],
  chosen: int | None,
) -> list[str]:
  others = [one.name for one in held_out if not one.on_task]
  said = [
    'The same texts are measured before and after; intervals are of the change, '
    'text by text. One that includes zero is no difference.'
  ]
  if others:
    said.append(
      f'Texts off the task ({", ".join(others)}) show what training costs '
      'elsewhere.'
    )
  else:
    said.append(
      'No text off the task was measured, so what training costs elsewhere is '
      'not known.'
    )
  looks = len(run.held_out)
  if chosen is not None and looks > 2:
    said.append(
      f'If the step was chosen among {looks:,} evaluations by one of these sets, '
      'the change of that set is the best of them, and a little too good.'
    )
  if gates_lib.gates(run) is not None:
    said.append(
      'That gates help does not say that massive activations matter: the control '
      'is a run with the same gates on another token or in other layers.'
    )
  return said


def _numbers(
  run: rows_lib.Run,
  held_out: Sequence[compared_lib.HeldOut],
  chosen: int | None,
) -> dict[str, Any]:
  raw = rows_lib.curve(run.train, 'loss')
  first, last = curves.ends(raw)
  return me_report.plain({
    'held_out': [
      dataclasses.asdict(one)
      | {'verdict': prose.judged(one.change, one.texts), 'guard_kept': one.kept}
      for one in held_out
    ],
    'last_step': run.last,
    'chosen_step': chosen,
    'resumed': list(run.resumed),
    'loss': {'rows': len(run.train), 'first': first, 'last': last},
    'evaluations': [dict(row) for row in run.held_out],
    'monitor': [dict(row) for row in run.monitor],
    'method': {
      name: curves.ends(curve) for name, curve in figures_lib.extras(run).items()
    },
  })  # fmt: skip
