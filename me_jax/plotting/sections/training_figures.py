"""What does a training run look like? Its held-out sets, its loss, its method."""

from __future__ import annotations

from collections.abc import Sequence

from me_jax.plotting import spec
from me_jax.plotting.sections import training_curves as curves
from me_jax.plotting.sections import training_gates as gates_lib
from me_jax.plotting.sections import training_held_out as held_out_lib
from me_jax.plotting.sections import training_inside as inside_lib
from me_jax.plotting.sections import training_rows as rows_lib
from me_jax.training import compared as compared_lib

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
  held_out: Sequence[compared_lib.HeldOut],
  chosen: int | None,
) -> tuple[spec.Figure, ...]:
  """Returns what there is to see; what was not measured is left out.

  Args:
    run: the rows.
    held_out: the sets before and after.
    chosen: the step whose weights were kept, if it is to be marked.
  """
  found = (
    held_out_lib.figure(run, held_out, chosen),
    _loss(run),
    _method(run),
    gates_lib.figure(run),
    inside_lib.figure(run),
  )
  return tuple(figure for figure in found if figure is not None)


def extras(run: rows_lib.Run) -> dict[str, rows_lib.Curve]:
  """Returns what the method wrote, by name; parts of the reward after it.

  Parts are keys that start with `reward_`, or stand under `rewards`.
  """
  keys = rows_lib.names(run.train)
  paths: dict[str, tuple[str, ...]] = {
    key: (key,) for key in (REWARD,) if key in keys
  }
  paths |= {k: (k,) for k in keys if k.startswith(f'{REWARD}_')}
  paths |= {
    f'{REWARD}: {part}': ('rewards', part)
    for part in rows_lib.names(run.train, 'rewards')
  }
  paths = dict(list(paths.items())[: 1 + _MOST_PARTS])
  paths |= {key: (key,) for key in EXTRAS if key in keys}
  found = {name: rows_lib.curve(run.train, *p) for name, p in paths.items()}
  return {name: curve for name, curve in found.items() if len(curve.y_n)}


def method_said(run: rows_lib.Run) -> list[str]:
  """Says where what the method wrote started and ended."""
  parts = []
  for name, curve in extras(run).items():
    first, last = (inside_lib.spelt(y) for y in curves.ends(curve))
    parts.append(f'{_spoken(name)} {first} to {last}')
  if not parts:
    return []
  return [f'From the first steps to the last: {"; ".join(parts)}.']


def _spoken(name: str) -> str:
  return EXTRAS[name][0] if name in EXTRAS else name.replace('_', ' ')


def _loss(run: rows_lib.Run) -> spec.Figure | None:
  """Draws the training loss, and beneath it what drives it."""
  raw = rows_lib.curve(run.train, 'loss')
  if not len(raw.y_n):
    return None
  sight = curves.within_sight(raw)
  caption = 'The loss of what was trained on'
  if curves.window(len(raw.finite().y_n)):
    caption += ', as written and smoothed'
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
    if not len(curve.y_n):
      continue
    # A learning rate has no noise.
    lines = (
      (curves.series(title, curve),)
      if key == 'lr'
      else curves.noisy(title, curve)
    )
    panels.append(curves.low(title, '', lines, log=key != 'lr'))
  beneath = ' and '.join(panel.title for panel in panels[1:])
  if beneath:
    caption += f'; beneath, {beneath}'
  caption += '. Look for jumps, and for where the line becomes level.'
  if sight:
    count, step, value = curves.off_the_scale(raw, sight)
    caption += (
      f' Off the scale: {count:,} of {len(raw.y_n):,} rows, farthest '
      f'{inside_lib.spelt(value)} at step {step:,}.'
    )
  first, last = (inside_lib.spelt(y) for y in curves.ends(raw))
  return spec.Figure(
    name='training-loss',
    title='Training loss',
    caption=caption,
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
        _spoken(name),
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
  return spec.Figure(
    name='training-method',
    title='What the method works with',
    caption=(
      'What was written of the steps besides the loss; smoothed by a running '
      'median where there are many rows. Look for a reward that rises by one of '
      'its parts alone, and for answers that only become longer.'
    ),
    alt=' '.join(method_said(run)) or 'Held-out pairs in the right order.',
    panels=tuple(panels),
  )
