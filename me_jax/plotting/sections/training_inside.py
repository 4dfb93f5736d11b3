"""What became of the inside of a model while it was trained?

Looks inside write what `analysis.readings` has, and may write a user's own
readings. What matters most is drawn, each with its control; the table has all.

Letters: n points of a curve.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
from typing import NamedTuple

from me_jax.analysis import readings as readings_lib
from me_jax.plotting import prose
from me_jax.plotting import spec
from me_jax.plotting.sections import training_curves as curves
from me_jax.plotting.sections import training_rows as rows_lib

ME_LAYER = 'me_layer'
_CONTROL = '_control'
_ORDINARY = 'ordinary tokens'
_KNOWN = {field.name for field in dataclasses.fields(readings_lib.Readings)}
# What has a panel, in this order, and what its line is about.
_SHOWN = {
  ME_LAYER: 'ME Layer',
  'spike': 'largest |x|',
  'plateau_norm': 'massive token',
  'sink_rate': 'first token',
  'attention_after': 'first token',
  'rigidity': 'massive token',
  'rigidity_layers': 'massive token',
}
# Controls that are not named after what they belong to.
_BESIDE = {'attention_after': {'attention_before': 'up to the ME Layer'}}
# Whose control may be so small that only a logarithm shows both.
_FAR_APART = ('spike', 'plateau_norm')
# Others are named by their key.
_TITLES = {
  ME_LAYER: 'ME Layer',
  'massive_texts': 'texts with massive activations',
  'spike_ratio': 'spike, times the median',
  'spike_layer': 'layer of the spike',
  'attention_after': 'attention after the ME Layer',
  'attention_before': 'attention up to the ME Layer',
  'rigidity_before': 'rigidity before the plateau',
  'rigidity_attn_in': 'rigidity of what attention receives',
  'rigidity_layers': 'rigidity across layers',
}
# Not about the model.
_ASIDE = ('step', 'kind', 'seconds', 'tokens', 'gates')
# Panels of a user's own readings.
_MOST_OWN = 4


class Measured(NamedTuple):
  """Something that was looked at more than once.

  Attributes:
    title: what it is.
    curve: over steps.
  """

  title: str
  curve: rows_lib.Curve


class Shown(NamedTuple):
  """Something that has a panel.

  Attributes:
    key: of `measured`.
    line: what its line is about.
    controls: labels of its controls, by their keys of `measured`.
  """

  key: str
  line: str
  controls: dict[str, str]


def measured(run: rows_lib.Run) -> dict[str, Measured]:
  """Returns every number that looks inside wrote, by key.

  What is shown comes first, and controls after what they belong to.
  """
  keys = [k for k in rows_lib.names(run.monitor) if k not in _ASIDE]
  order = [
    key
    for shown in _SHOWN
    for key in (shown, shown + _CONTROL, *_BESIDE.get(shown, ()))
    if key in keys
  ]
  found = {}
  for key in dict.fromkeys(order + keys):
    curve = rows_lib.curve(run.monitor, key)
    if len(curve.step_n):
      found[key] = Measured(_title(key), curve)
  return found


def shown(found: Sequence[str]) -> list[Shown]:
  """Returns what has a panel, in order; a user's own readings come last.

  Args:
    found: the keys of `measured`.
  """

  def controls(key: str, label: str) -> dict[str, str]:
    labels = {key + _CONTROL: label} | _BESIDE.get(key, {})
    return {name: said for name, said in labels.items() if name in found}

  own = [
    key
    for key in found
    if key not in _KNOWN
    and not (key.endswith(_CONTROL) and key.removesuffix(_CONTROL) in found)
  ]
  return [
    Shown(key, line, controls(key, _ORDINARY))
    for key, line in _SHOWN.items()
    if key in found
  ] + [
    Shown(key, _title(key), controls(key, 'control')) for key in own[:_MOST_OWN]
  ]


def _title(key: str) -> str:
  of = key.removesuffix(_CONTROL)
  title = _TITLES.get(of, of.replace('_', ' '))
  if of == key:
    return title
  return f'{title}, {_ORDINARY if key in _KNOWN else "control"}'


def spelt(value: float) -> str:
  """Spells a number of any size."""
  if not math.isfinite(value):
    return 'no number'
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def at(run: rows_lib.Run, key: str, index: int) -> str:
  """Spells what the first or the last look says of something.

  Args:
    run: the rows.
    key: of `measured`.
    index: 0 or -1.
  """
  value = rows_lib.number(run.monitor[index].get(key))
  # Many a model has none; null is a finding there.
  if key == ME_LAYER and not math.isfinite(value):
    return 'none'
  return spelt(value)


def figure(run: rows_lib.Run) -> spec.Figure | None:
  """Draws what matters most of what looks inside measured, with controls."""
  found = measured(run)
  panels, dotted = [], set()
  for one in shown(list(found)):
    if len(found[one.key].curve.finite().y_n) > 1:
      panels.append(_panel(one, found))
      dotted |= one.controls.keys()
  if not panels:
    return None
  caption = 'What looks inside the model found during training'
  if dotted:
    caption += '; dotted are controls'
  if dotted & _KNOWN:
    caption += f', {_ORDINARY} of the same texts'
  if 'attention_before' in dotted:
    caption += ' and, of attention, also the layers up to the ME Layer'
  caption += (
    '; dashed is where each started. Look for what leaves its dashed line, and '
    'when; gaps are looks that found no number, such as no ME Layer.'
  )
  logs = [panel.title for panel in panels if panel.log_y]
  if logs:
    caption += f' Logarithmic: {prose.listed(logs)}.'
  return spec.Figure(
    name='training-inside',
    title='Inside the model',
    caption=caption,
    alt=' '.join(said(run)),
    panels=tuple(panels),
  )


def said(run: rows_lib.Run) -> list[str]:
  """Says how the inside changed, from the first look to the last."""
  found = measured(run)

  def course(key: str) -> str:
    first, last = at(run, key, 0), at(run, key, -1)
    return first if first == last else f'{first} to {last}'

  parts = []
  for one in shown(list(found)):
    text = f'{found[one.key].title} {course(one.key)}'
    beside = [f'{label} {course(key)}' for key, label in one.controls.items()]
    parts.append(f'{text} ({", ".join(beside)})' if beside else text)
  if not parts:
    return []
  first, last = run.monitor[0]['step'], run.monitor[-1]['step']
  start = (
    f'Inside the model at step {first:,}'
    if first == last
    else f'Inside the model from step {first:,} to {last:,}'
  )
  return [f'{start}: {"; ".join(parts)}.']


def _panel(one: Shown, found: dict[str, Measured]) -> spec.Chart:
  """Draws something, where it started, and its controls."""
  title, curve = found[one.key]
  start = curve.finite().y_n[0]
  lines = [
    curves.series(one.line, curve),
    curves.level('at the start', start, curve.step_n[0], curve.step_n[-1]),
  ]
  lines += [
    curves.series(label, found[key].curve, 'dotted', 'other')
    for key, label in one.controls.items()
  ]
  log = one.key in _FAR_APART or one.key not in _KNOWN
  panel = curves.low(title, '', lines, log=log)
  if one.key != ME_LAYER:
    return panel
  # From layer 0 on, so that its ticks are whole numbers.
  top = float(curve.finite().y_n.max())
  return dataclasses.replace(panel, y_range=(0.0, 1.2 * top + 1))
