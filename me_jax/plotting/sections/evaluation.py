"""What can the model do, with the mitigation and without?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from me_jax.analysis import bootstrap
from me_jax.evaluation import compare
from me_jax.evaluation import tasks
from me_jax.plotting import spec

# Where the claim says more, and where as much.
_GAINS = ('ifeval', 'gsm8k', 'math500', 'aime24')
# Without one of these a part of the claim was not put to the model.
_WHOLE = ('gsm8k', 'ifeval', 'mmlu', 'xstest')
_CLAIM = (
  'With the massive activations relaxed, the model follows instructions better '
  'and does more maths right, and keeps what it knows and refuses.'
)


def section(
  found: Sequence[compare.Compared],
  labels: Mapping[str, str],
  notes: Mapping[str, str],
  warning: str = '',
) -> spec.Section:
  """Describes an evaluation.

  Args:
    found: what was measured, metric by metric; of two models or of one.
    labels: of the tasks.
    notes: how each task is put and graded.
    warning: why the numbers are no scores, if they are none.
  """
  tables = (table(found, labels), _notes(found, labels, notes))
  return spec.Section(
    name='evaluation',
    title='What the model can do',
    claim=_CLAIM,
    verdict=_verdict(found, warning),
    finding=' '.join(_finding(found, labels, warning)),
    control=(
      'Both models get the same items; the difference is taken item by item, '
      'with 95 % bootstrap intervals over items and, for what is right or '
      "wrong, McNemar's exact test. An interval that includes zero is no "
      'difference, and neither is one that the exact test does not see (p of 0.05 '
      'or more). With this many metrics, one in twenty differs by chance.'
    ),
    figures=_figures(found, labels),
    tables=tables,
    numbers={'metrics': [one.to_json() for one in found], 'warning': warning},
  )


def name(one: compare.Compared, labels: Mapping[str, str]) -> str:
  """Spells a metric with its task, whose label may say it all."""
  task = labels.get(one.task, one.task)
  said = one.metric.label in ('right', 'nats per token')
  return task if said else f'{task}, {one.metric.label}'


def spelt(
  found: bootstrap.Estimate | None, metric: tasks.Metric, sign: str = ''
) -> str:
  """Spells an estimate: shares in per cent, other numbers as they are.

  Args:
    found: the estimate.
    metric: that it is of.
    sign: '+' for a difference, which of shares is in percentage points.
  """
  if found is None:
    return ''
  share = metric.unit == '%'
  factor, form, unit = (100, '.1f', ' %') if share else (1, '.3f', '')
  if share and sign:
    unit = ' points'
  value, low, high = (format(factor * x, sign + form) for x in found)
  return f'{value}{unit} ({low} to {high})'


def _verdict(found: Sequence[compare.Compared], warning: str) -> spec.Verdict:
  said = {(one.task, one.metric.name): one.verdict for one in found}
  gained = [word for (task, _), word in said.items() if task in _GAINS]
  if warning or not any(gained):
    return 'not tested'
  if 'better' not in gained:
    return 'does not hold'
  worse = {'worse', 'less'} & {
    word for (task, name), word in said.items() if name != 'loss'
  }
  whole = all(any(key[0] == task for key in said) for task in _WHOLE)
  return 'holds' if whole and not worse else 'in part'


def _finding(
  found: Sequence[compare.Compared], labels: Mapping[str, str], warning: str
) -> list[str]:
  said = [warning] if warning else []
  for word in ('better', 'worse', 'more', 'less'):
    names = [
      f'{name(one, labels)} ({spelt(one.difference, one.metric, "+")})'
      for one in found
      if one.verdict == word
    ]
    if names:
      said.append(f'{word.capitalize()}: {"; ".join(names)}.')
  same = [name(one, labels) for one in found if one.verdict == 'no difference']
  if same:
    said.append(f'No difference: {"; ".join(same)}.')
  if not any(one.verdict for one in found):
    said.append('One model was measured, and none to compare it with.')
  return said


def table(
  found: Sequence[compare.Compared], labels: Mapping[str, str]
) -> spec.Table:
  """Returns a line a metric."""
  header = ('', 'items', 'stock', 'mitigated', 'difference', 'p', '')
  rows = [
    (
      name(one, labels),
      str(one.items),
      spelt(one.stock, one.metric),
      spelt(one.mitigated, one.metric),
      spelt(one.difference, one.metric, '+'),
      '' if one.p is None else f'{one.p:.3g}',
      one.verdict,
    )
    for one in found
  ]
  # Of one model alone there is nothing to compare.
  width = len(header) if any(one.mitigated for one in found) else 3
  return spec.Table(
    caption='Each metric with its 95 % interval over items.',
    header=header[:width],
    rows=tuple(row[:width] for row in rows),
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
  shares = [one for one in paired if one.metric.unit == '%']
  others = [one for one in paired if one.metric.unit != '%']
  panels = []
  for title, group, factor, unit in (
    ('tasks', shares, 100, 'percentage points'),
    ('losses', others, 1, 'nats per token'),
  ):
    if group:
      panels.append(_panel(title, group, labels, factor, unit))
  if not panels:
    return ()
  said = '; '.join(
    f'{name(one, labels)} {spelt(one.difference, one.metric, "+")}'
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
