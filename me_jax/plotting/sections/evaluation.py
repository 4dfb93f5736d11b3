"""What can the model do, with the mitigation and without?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from me_jax.analysis import bootstrap
from me_jax.evaluation import compare
from me_jax.plotting import spec

_CLAIM = (
  'With the massive activations relaxed, the model follows instructions better '
  'and does more maths right, and keeps what it knows and refuses.'
)


def section(
  found: Sequence[compare.Compared],
  labels: Mapping[str, str],
  notes: Mapping[str, str],
  *,
  samples: bool,
) -> spec.Section:
  """Describes an evaluation.

  Args:
    found: what was measured, metric by metric; of two models or of one.
    labels: of the tasks.
    notes: how each task is put and graded.
    samples: whether the rows are our own samples, which give no score.
  """
  tables = (_table(found, labels), _notes(found, labels, notes))
  return spec.Section(
    name='evaluation',
    title='What the model can do',
    claim=_CLAIM,
    verdict=_verdict(found, samples),
    finding=' '.join(_finding(found, labels, samples)),
    control=(
      'Both models get the same items; the difference is taken item by item, '
      'with 95 % bootstrap intervals over items and, for what is right or '
      "wrong, McNemar's exact test. An interval that includes zero is no "
      'difference. With this many metrics, one in twenty differs by chance.'
    ),
    figures=_figures(found, labels),
    tables=tables,
    numbers={'metrics': [one.to_json() for one in found], 'samples': samples},
  )


def name(one: compare.Compared, labels: Mapping[str, str]) -> str:
  """Spells a metric with its task, whose label may say it all."""
  task = labels.get(one.task, one.task)
  said = one.metric.label in ('right', 'nats per token')
  return task if said else f'{task}, {one.metric.label}'


def percent(
  found: bootstrap.Estimate | None, metric: str, form: str = '.1f'
) -> str:
  """Spells an estimate: shares in per cent, losses as they are."""
  if found is None:
    return ''
  factor, unit = (1, '') if metric == 'loss' else (100, ' %')
  form = '+.3f' if metric == 'loss' and '+' in form else form
  form = '.3f' if metric == 'loss' and '+' not in form else form
  value, low, high = (format(factor * x, form) for x in found)
  return f'{value}{unit} ({low} to {high})'


def _verdict(found: Sequence[compare.Compared], samples: bool) -> str:
  said = [one.verdict for one in found if one.metric.better and one.verdict]
  if samples or not said:
    return 'not tested'
  if 'worse' in said:
    return 'in part' if 'better' in said else 'does not hold'
  return 'holds' if 'better' in said else 'does not hold'


def _finding(
  found: Sequence[compare.Compared], labels: Mapping[str, str], samples: bool
) -> list[str]:
  said = []
  if samples:
    said.append(
      'These are a few rows of our own, to try the command with: no scores.'
    )
  for word in ('better', 'worse', 'more', 'less'):
    names = [
      f'{name(one, labels)} ({percent(one.difference, one.metric.name, "+.1f")})'
      for one in found
      if one.verdict == word
    ]
    if names:
      said.append(f'{word.capitalize()}: {"; ".join(names)}.')
  same = [name(one, labels) for one in found if one.verdict == 'no difference']
  if same:
    said.append(f'No difference: {"; ".join(same)}.')
  return said or ['One model was measured, and none to compare it with.']


def _table(
  found: Sequence[compare.Compared], labels: Mapping[str, str]
) -> spec.Table:
  rows = []
  for one in found:
    metric = one.metric.name
    rows.append(
      (
        name(one, labels),
        str(one.items),
        percent(one.stock, metric),
        percent(one.mitigated, metric),
        percent(one.difference, metric, '+.1f'),
        '' if one.p is None else f'{one.p:.3g}',
        one.verdict,
      )
    )
  return spec.Table(
    caption='Each metric with its 95 % interval over items.',
    header=('', 'items', 'stock', 'mitigated', 'difference', 'p', ''),
    rows=tuple(rows),
  )


def _notes(
  found: Sequence[compare.Compared],
  labels: Mapping[str, str],
  notes: Mapping[str, str],
) -> spec.Table:
  tasks = dict.fromkeys(one.task for one in found)
  return spec.Table(
    caption='How each task is put and graded.',
    header=('task', 'how'),
    rows=tuple((labels.get(t, t), notes[t]) for t in tasks if t in notes),
  )


def _figures(
  found: Sequence[compare.Compared], labels: Mapping[str, str]
) -> tuple[spec.Figure, ...]:
  paired = [one for one in found if one.difference is not None]
  shares = [one for one in paired if one.metric.name != 'loss']
  losses = [one for one in paired if one.metric.name == 'loss']
  panels = []
  for title, group, factor, unit in (
    ('tasks', shares, 100, 'percentage points'),
    ('losses', losses, 1, 'nats per token'),
  ):
    if group:
      panels.append(_panel(title, group, labels, factor, unit))
  if not panels:
    return ()
  said = '; '.join(
    f'{name(one, labels)} {percent(one.difference, one.metric.name, "+.1f")}'
    for one in paired
  )
  return (
    spec.Figure(
      name='evaluation',
      title='What the mitigation changes',
      caption=(
        'Mitigated minus stock on the same items, with 95 % intervals over '
        'items. Above zero is more; a whisker that crosses zero is no '
        'difference. Of losses and refusals of safe prompts, less is better.'
      ),
      alt=f'Mitigated minus stock. {said}.',
      panels=tuple(panels),
      columns=1,
    ),
  )


def _panel(
  title: str,
  group: Sequence[compare.Compared],
  labels: Mapping[str, str],
  factor: float,
  unit: str,
) -> spec.Chart:
  value, low, high = (
    factor * np.array([getattr(one.difference, end) for one in group])
    for end in ('value', 'low', 'high')
  )
  return spec.Chart(
    title=title,
    series=(
      spec.Series(
        label='mitigated − stock',
        y=value,
        low=low,
        high=high,
        role='massive',
        style='points',
        hover=[name(one, labels) for one in group],
      ),
      spec.Series(
        label='no difference',
        y=np.zeros(len(group)),
        role='other',
        style='dashed',
      ),
    ),
    x_label='',
    y_label=unit,
    categories=tuple(name(one, labels) for one in group),
  )
