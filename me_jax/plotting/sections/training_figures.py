"""What does a training run look like? Its held-out sets, its loss, its method.

Letters: n points of a curve.
"""

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np

from me_jax.plotting import spec
from me_jax.plotting import thinning
from me_jax.plotting.sections import mitigation_tables as words
from me_jax.plotting.sections import training_curves as curves
from me_jax.plotting.sections import training_inside as inside_lib
from me_jax.plotting.sections import training_rows as rows_lib
from me_jax.plotting.sections import training_tables as tables_lib
from me_jax.training import held_out as held_out_lib

_POINTS = 1_200
REWARD = 'reward'
# What a method writes of its steps, besides the loss and the reward.
EXTRAS = {
  'kl': ('divergence from the start (KL)', 'nats per token'),
  'clipped': ('clipped', 'share of tokens'),
  'margin': ('margin of the preferred answer', 'nats'),
  'correct': ('pairs in the right order', 'share'),
  'length': ('length of answers', 'tokens'),
}
_MOST_PARTS = 8


def figures(
  run: rows_lib.Run,
  held_out: Sequence[held_out_lib.HeldOut],
  chosen: int | None,
) -> tuple[spec.Figure, ...]:
  """Returns what there is to see; what was not measured is left out.

  Args:
    run: the rows.
    held_out: the sets before and after.
    chosen: the step whose weights were kept, if it is to be marked.
  """
  found = (
    _held_out(run, held_out, chosen),
    _loss(run),
    _method(run),
    inside_lib.gates_figure(run),
    inside_lib.figure(run),
  )
  return tuple(figure for figure in found if figure is not None)


def extras(run: rows_lib.Run) -> dict[str, rows_lib.Curve]:
  """Returns what the method wrote, by name; parts of the reward after it.

  Parts are keys that start with `reward_`, or stand under `rewards`.
  """
  keys = rows_lib.names(run.train)
  paths = {key: (key,) for key in (REWARD,) if key in keys}
  paths |= {k: (k,) for k in keys if k.startswith(f'{REWARD}_')}
  paths |= {
    f'{REWARD}: {part}': ('rewards', part)
    for part in rows_lib.names(run.train, 'rewards')
  }
  paths = dict(list(paths.items())[: 1 + _MOST_PARTS])
  paths |= {key: (key,) for key in EXTRAS if key in keys}
  found = {name: rows_lib.curve(run.train, *p) for name, p in paths.items()}
  return {name: curve for name, curve in found.items() if len(curve.y_n)}


def _held_out(
  run: rows_lib.Run,
  held_out: Sequence[held_out_lib.HeldOut],
  chosen: int | None,
) -> spec.Figure | None:
  result, course = _result(held_out), _course(run, held_out, chosen)
  if result is None and course is None:
    return None
  caption = (
    'Change of the loss on texts that were not trained on; less is better.'
  )
  if result is not None:
    caption += (
      ' Before and after: to the weights that were kept, on the same texts, with'
      ' 95 % intervals over texts. Look for whiskers that lie wholly below zero'
      ' on the task, and below their guard elsewhere.'
    )
  if course is not None:
    kind = (
      'of the change on the same texts'
      if rows_lib.is_paired(run)
      else 'of the loss itself, wider than those of the change on the same texts'
    )
    caption += (
      f' Over steps: bands are 95 % intervals {kind}. Look at where a set of the'
      ' task stops falling, and where another crosses its guard.'
    )
  said = '; '.join(f'{o.name} {words.interval(o.change)}' for o in held_out)
  return spec.Figure(
    name='training-held-out',
    title='Loss on held-out texts',
    caption=caption,
    alt=f'Change of the loss on held-out texts. {said or "See the curves"}.',
    panels=tuple(panel for panel in (result, course) if panel is not None),
    columns=1,
  )


def _result(held_out: Sequence[held_out_lib.HeldOut]) -> spec.Chart | None:
  """Draws an interval a set, and its guard."""
  held_out = [one for one in held_out if math.isfinite(one.change.value)]
  if not held_out:
    return None
  series = []
  for on_task in (True, False):
    at = [i for i, one in enumerate(held_out) if one.on_task == on_task]
    if not at:
      continue
    change = np.array([held_out[i].change for i in at], np.float64)
    series.append(
      spec.Series(
        label='on the task' if on_task else 'off the task',
        x=np.array(at),
        y=change[:, 0],
        low=change[:, 1],
        high=change[:, 2],
        role='massive' if on_task else 'plain',
        style='points',
        hover=[held_out[i].name for i in at],
      )
    )
  guards = [(i, o.guard) for i, o in enumerate(held_out) if o.guard is not None]
  if guards:
    series.append(
      spec.Series(
        label='guard: may rise to here',
        # Cut after each, so that they are one entry of the legend.
        x=np.concatenate([[i - 0.3, i + 0.3, i + 0.3] for i, _ in guards]),
        y=np.concatenate([[y, y, math.nan] for _, y in guards]),
        role='me',
        style='dashed',
      )
    )
  ends = -0.5, len(held_out) - 0.5
  series.append(curves.level('before training', 0.0, *ends, 'steps'))
  return spec.Chart(
    title='before and after',
    series=tuple(series),
    x_label='',
    y_label=f'change, {tables_lib.unit(held_out)}',
    categories=tuple(one.name for one in held_out),
  )


def _course(
  run: rows_lib.Run,
  held_out: Sequence[held_out_lib.HeldOut],
  chosen: int | None,
) -> spec.Chart | None:
  """Draws the held-out sets over steps, with their guards."""
  of = {one.name: one for one in held_out}
  series, starts, guards = [], [], {}
  for name in rows_lib.names(run.held_out, 'sets'):
    curve, low, high = rows_lib.change(run, name)
    if len(curve.finite().step_n) < 2:
      continue
    starts.append(int(curve.finite().step_n[0]))
    label = name
    if name in of:
      label += f' ({"on" if of[name].on_task else "off"} the task)'
      if of[name].guard is not None:
        guards.setdefault(of[name].guard, []).append(name)
    kept = thinning.extremes(curve.y_n, _POINTS)
    series.append(
      spec.Series(
        label=label,
        x=curve.step_n[kept],
        y=curve.y_n[kept],
        low=low[kept],
        high=high[kept],
      )
    )
  if not series:
    return None
  ends = min(starts), max(one.x[-1] for one in series)
  for guard, sets in sorted(guards.items()):
    label = f'guard of {", ".join(sets)}: {guard:+.3g}'
    series.append(curves.level(label, guard, *ends))
  return spec.Chart(
    title=f'over steps, against step {min(starts):,}',
    series=tuple(series),
    x_label=curves.STEP,
    y_label=f'change, {tables_lib.unit(held_out)}',
    marks=() if chosen is None else (float(chosen),),
    mark_label='' if chosen is None else f'kept: step {chosen:,}',
  )


def _loss(run: rows_lib.Run) -> spec.Figure | None:
  """Draws the training loss, and beneath it what drives it."""
  raw = rows_lib.curve(run.train, 'loss')
  if not len(raw.y_n):
    return None
  sight = curves.within_sight(raw)
  caption = 'The loss of what was trained on'
  if curves.window(len(raw.finite().y_n)):
    caption += ': grey as written, blue smoothed'
  if sight:
    count, step, value = curves.off_the_scale(raw, sight)
    caption += (
      f'. Off the scale: {count:,} of {len(raw.y_n):,} rows, farthest '
      f'{inside_lib.spelt(value)} at step {step:,}'
    )
  panels = [
    spec.Chart(
      title='training loss',
      series=curves.noisy('loss', raw),
      x_label=curves.STEP,
      y_label='loss',
      y_range=sight or curves.room(raw.y_n),
    )
  ]
  for key, title in (('lr', 'learning rate'), ('grad_norm', 'gradient norm')):
    curve = rows_lib.curve(run.train, key)
    if len(curve.y_n):
      line = curves.series(title, curve)
      panels.append(curves.low(title, '', (line,), log=key != 'lr'))
  beneath = ' and '.join(panel.title for panel in panels[1:])
  if beneath:
    caption += f'; beneath, {beneath}'
  first, last = (inside_lib.spelt(y) for y in curves.ends(raw))
  return spec.Figure(
    name='training-loss',
    title='Training loss',
    caption=f'{caption}. Look for jumps, and for where the line becomes level.',
    alt=f'The training loss goes from {first} to {last}.',
    panels=tuple(panels),
    columns=1,
  )


def _method(run: rows_lib.Run) -> spec.Figure | None:
  """Draws what only some methods write."""
  found = extras(run)
  panels = []
  reward = {n: c for n, c in found.items() if n.startswith(REWARD)}
  if reward:
    lines = [
      curves.series(
        name.replace('_', ' '),
        curves.smooth(curve),
        role='massive' if name == REWARD else 'plain',
      )
      for name, curve in reward.items()
    ]
    panels.append(curves.low('reward and its parts', 'reward', lines))
  for key, (title, unit) in EXTRAS.items():
    if key in found:
      panels.append(
        curves.low(title, unit, curves.noisy(title, found[key]), key == 'kl')
      )
  pairs = {
    name: rows_lib.curve(run.held_out, 'sets', name, 'correct')
    for name in rows_lib.names(run.held_out, 'sets')
  }
  lines = [
    curves.series(name, curve, role='plain')
    for name, curve in pairs.items()
    if len(curve.finite().y_n) > 1
  ]
  if lines:
    title = 'held-out pairs in the right order'
    panels.append(curves.low(title, 'share', lines))
  if not panels:
    return None
  moves = [
    f'{name.replace("_", " ")} from {inside_lib.spelt(curves.ends(curve)[0])} '
    f'to {inside_lib.spelt(curves.ends(curve)[1])}'
    for name, curve in found.items()
  ]
  return spec.Figure(
    name='training-method',
    title='What the method works with',
    caption=(
      'What was written of the steps besides the loss; smoothed by a running '
      'median where there are many rows. Look for a reward that rises by one of '
      'its parts alone, and for answers that only become longer.'
    ),
    alt=f'Over the run: {"; ".join(moves) or "see the curves"}.',
    panels=tuple(panels),
  )
