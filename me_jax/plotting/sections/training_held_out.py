"""What became of held-out texts? A point a set, and a line a set over steps.

Sets of the task move by far more than others may, so that each kind has a
scale of its own: a guard would not be seen beside what was gained.
"""

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np

from me_jax.plotting import prose
from me_jax.plotting import spec
from me_jax.plotting import thinning
from me_jax.plotting.sections import training_curves as curves
from me_jax.plotting.sections import training_rows as rows_lib
from me_jax.plotting.sections import training_tables as tables_lib
from me_jax.training import compared as compared_lib

# Characters of a name in a legend, and names of sets that share a guard.
_NAME, _MOST_NAMED = 24, 2


def figure(
  run: rows_lib.Run,
  held_out: Sequence[compared_lib.HeldOut],
  chosen: int | None,
) -> spec.Figure | None:
  """Draws the change of each set, at the end and on the way there.

  Args:
    run: the rows.
    held_out: the sets before and after.
    chosen: the step whose weights were kept, if it is to be marked.
  """
  of = {one.name: one for one in held_out}
  measured = rows_lib.names(run.held_out, 'sets')
  results, courses = [], []
  panels = []
  for on_task, title in (
    (True, 'on the task'),
    (False, 'off the task'),
    (None, 'held-out texts'),
  ):
    sets = [one for one in held_out if one.on_task == on_task]
    names = [
      n for n in measured if (of[n].on_task if n in of else None) == on_task
    ]
    result = _result(title, sets)
    course = _course(title, run, names, of, chosen)
    results += [result] if result else []
    courses += [course] if course else []
    panels += [panel for panel in (result, course) if panel]
  if not panels:
    return None
  caption = (
    'Change of the loss on texts that were not trained on; less is better.'
  )
  if results:
    caption += (
      ' Before and after: to the weights that were kept, on the same texts, with'
      ' 95 % intervals over texts. Look for whiskers that lie wholly below zero'
      ' on the task, and below their guard elsewhere.'
    )
  if courses:
    kind = (
      'of the change on the same texts'
      if rows_lib.is_paired(run)
      else 'of the loss itself, wider than those of the change on the same texts'
    )
    caption += (
      f' Over steps: bands are 95 % intervals {kind}. Look at where a set of the'
      ' task stops falling, and where another crosses its guard.'
    )
  said = '; '.join(
    f'{o.name} {prose.interval(o.change, "+.4f")}' for o in held_out
  )
  return spec.Figure(
    name='training-held-out',
    title='Loss on held-out texts',
    caption=caption,
    alt=f'Change of the loss on held-out texts. {said or "See the curves"}.',
    panels=tuple(panels),
  )


def _result(
  title: str, held_out: Sequence[compared_lib.HeldOut]
) -> spec.Chart | None:
  """Draws an interval a set, and its guard."""
  held_out = [one for one in held_out if math.isfinite(one.change.value)]
  if not held_out:
    return None
  change = np.array([one.change for one in held_out], np.float64)
  series = [
    spec.Series(
      label='after',
      y=change[:, 0],
      low=change[:, 1],
      high=change[:, 2],
      role='massive',
      style='points',
      hover=[one.name for one in held_out],
    )
  ]
  guards = [(i, o.guard) for i, o in enumerate(held_out) if o.guard is not None]
  if guards:
    series.append(
      spec.Series(
        label='guard: may rise to here',
        # Cut after each, so that they are one entry of the legend.
        x=np.concatenate([[i - 0.3, i + 0.3, i + 0.3] for i, _ in guards]),
        y=np.concatenate([[y, y, math.nan] for _, y in guards]),
        role='other',
        style='level',
      )
    )
  ends = -0.5, len(held_out) - 0.5
  series.append(curves.level('before', 0.0, *ends, 'steps'))
  return spec.Chart(
    title=f'{title}: before and after',
    series=tuple(series),
    x_label='',
    y_label=f'change, {tables_lib.unit(held_out)}',
    categories=tuple(one.name for one in held_out),
    clear=True,
  )


def _course(
  title: str,
  run: rows_lib.Run,
  names: Sequence[str],
  of: dict[str, compared_lib.HeldOut],
  chosen: int | None,
) -> spec.Chart | None:
  """Draws sets over steps, with their guards."""
  found = {name: rows_lib.change(run, name) for name in names}
  found = {n: c for n, c in found.items() if len(c[0].finite().y_n) > 1}
  if not found:
    return None
  series, guards = [], {}
  for name, (curve, low, high) in found.items():
    if name in of and of[name].guard is not None:
      guards.setdefault(of[name].guard, []).append(name)
    kept = thinning.extremes(curve.y_n, curves.POINTS)
    series.append(
      spec.Series(
        label=_short(name),
        x=curve.step_n[kept],
        y=curve.y_n[kept],
        low=low[kept],
        high=high[kept],
        role='massive' if len(found) == 1 else 'plain',
      )
    )
  start = min(int(curve.finite().step_n[0]) for curve, _, _ in found.values())
  stop = max(int(curve.step_n[-1]) for curve, _, _ in found.values())
  for guard, sets in sorted(guards.items()):
    said = ', '.join(map(_short, sets))
    if len(sets) > _MOST_NAMED:
      said = f'{len(sets)} sets'
    series.append(
      curves.level(f'guard of {said}: {guard:+.3g}', guard, start, stop)
    )
  units = {of[name].unit for name in found if name in of}
  return spec.Chart(
    title=f'{title}: over steps, against step {start:,}',
    series=tuple(series),
    x_label=curves.STEP,
    y_label=f'change, {units.pop()}' if len(units) == 1 else 'change',
    marks=() if chosen is None else (float(chosen),),
    mark_label='' if chosen is None else f'kept: step {chosen:,}',
    clear=True,
  )


def _short(name: str) -> str:
  return name if len(name) <= _NAME else f'{name[: _NAME - 1]}…'
