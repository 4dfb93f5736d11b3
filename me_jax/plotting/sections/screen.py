"""Can the ME Layer be told from the weights, without any text?"""

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np

from me_jax.analysis import me_report
from me_jax.analysis import screen_report
from me_jax.plotting import prose
from me_jax.plotting import spec

_CLAIM = (
  'The parameters of the ME Layer are large and aligned along one direction. So '
  'the weights alone should say which layer, channel and neuron write the '
  'massive activations, before any text is run.'
)
_MOST_ROWS = 10
_ROLES: dict[str, spec.Role] = {
  'writer': 'massive',
  'eraser': 'plain',
  'amplifier': 'other',
}
_LABELS = {
  'writer': 'does not read its channel (writer)',
  'eraser': 'takes its channel away (eraser)',
  'amplifier': 'adds to its channel (amplifier)',
}


def section(
  screen: screen_report.Screen, report: me_report.MEReport
) -> spec.Section:
  """Compares what the weights predict with what texts showed.

  Args:
    screen: of `screen.screen`.
    report: of `find_me_layer` on the same model, of any verdict.

  Returns:
    The section on the screen.
  """
  hits = agreement(screen, report)
  return spec.Section(
    name='screen',
    title='The weights alone',
    claim=_CLAIM,
    verdict=_verdict(screen, report, hits),
    finding=' '.join(_finding(screen, report, hits)),
    control=_control(screen),
    figures=(_figure(screen, report),),
    tables=tuple(t for t in _tables(screen, report) if t.rows),
    numbers=screen.to_json() | {'agrees': hits},
  )


def agreement(
  screen: screen_report.Screen, report: me_report.MEReport
) -> dict[str, bool]:
  """Says which parts of a prediction texts confirmed.

  Args:
    screen: with or without a prediction.
    report: of the same model.

  Returns:
    `layer`, `channel`, `sign` and `neuron`: whether the predicted one is the
    ME Layer, a massive channel with that sign, a dominating neuron there. Empty
    if one side names nothing.
  """
  if screen.prediction is None or report.layer is None:
    return {}
  found = screen.prediction
  entry = found.entry
  values = {c.index: c.value for c in report.channels}
  neurons = {(n.layer, n.index) for n in report.neurons}
  return {
    'layer': entry.layer == report.layer,
    'channel': entry.channel in values,
    'sign': values.get(entry.channel, 0.0) * found.sign > 0,
    'neuron': (entry.layer, entry.neuron) in neurons,
  }


def _verdict(
  screen: screen_report.Screen,
  report: me_report.MEReport,
  hits: dict[str, bool],
) -> spec.Verdict:
  clear = screen.prediction is not None and screen.prediction.clear
  if report.layer is None:
    # Nothing to name: only a clear prediction is wrong.
    return 'does not hold' if clear else 'not tested'
  if not hits or not (hits['layer'] or hits['channel']):
    return 'does not hold'
  return 'holds' if all(hits.values()) and clear else 'in part'


def _finding(
  screen: screen_report.Screen,
  report: me_report.MEReport,
  hits: dict[str, bool],
) -> list[str]:
  said = [screen.headline()]
  found = screen.prediction
  if found is not None:
    entry = found.entry
    said.append(
      f'Its gate and up rows have a cosine of {entry.cosine:+.2f} and do not '
      f'read that channel; at the state it answers most, this FFN can write '
      f'{found.sign * found.write:+,.0f} there.'
    )
    if entry.eraser_layer is not None and found.kind == 'writer and eraser':
      said.append(
        f'Where the state holds nothing but channel {entry.channel}, later FFNs '
        f'take {entry.erased:,.0f} away, most of it neuron '
        f'{entry.eraser_neuron} of layer {entry.eraser_layer}.'
      )
    if found.kind == 'writer only':
      said.append(
        'Without an eraser this is only the largest writer, and weak evidence.'
      )
  if report.layer is None:
    said.append(f'Texts name no single layer either. {report.headline()}')
  elif hits:
    right = [name for name, hit in hits.items() if hit]
    wrong = [name for name, hit in hits.items() if not hit]
    said.append(
      f'Texts confirm the predicted {prose.listed(right)}'
      + (f', not the {prose.listed(wrong)}.' if wrong else '.')
      if right
      else 'Texts confirm nothing of it.'
    )
  else:
    said.append(f'Texts name layer {report.layer}.')
  ranks = _ranks(screen.plain, report)
  if ranks:
    said.append(
      f'By the plain score |w||g||u| the observed neuron has rank {ranks[0]}.'
    )
  return said


def _control(screen: screen_report.Screen) -> str:
  found = screen.prediction
  best = _best(screen.control_pairs)
  said = (
    "The same rule on the same weights with each layer's neurons shuffled, so "
    'that gate, up and down rows no longer belong together, reaches '
    f'{prose.size(best)}'
  )
  if found is None:
    return f'{said}; the weights as they are reach {prose.size(_best(screen.pairs))}.'
  said += (
    f'; the prediction has {prose.size(found.entry.score)}'
    if found.kind == 'writer and eraser'
    else ''
  )
  if math.isnan(found.muted):
    return said + '.'
  return (
    f'{said}. Apart from the rule: of the norms before the FFNs that follow, up '
    f'to the eraser, {found.muted:.1%} have a weight below a tenth of their '
    f'median in this channel; in the mean channel {found.muted_usual:.1%} do.'
  )


def _figure(
  screen: screen_report.Screen, report: me_report.MEReport
) -> spec.Figure:
  plain = _ranks(screen.plain, report)
  pairs = _ranks(screen.pairs, report)

  shown = len(screen.plain)

  def at(ranks: Sequence[int]) -> str:
    return f'at rank {ranks[0]}' if ranks else f'not among the first {shown}'

  return spec.Figure(
    name='screen-ranks',
    title='What the weights rank first',
    caption=(
      'Entries (layer, channel, neuron) by two scores, on logarithmic axes. '
      'First the plain score |w||g||u|, which is large for writers and erasers '
      'alike. Then the geometric mean of what an entry can write and of what '
      'later layers take away from that channel, with the same rule on shuffled '
      'weights as control. Orange: the neurons that texts name.'
    ),
    alt=(
      f'By the plain score the first observed neuron is {at(plain)}, by the '
      f'second score {at(pairs)}. The second score falls from '
      f'{prose.size(_best(screen.pairs))}; that of shuffled weights starts at '
      f'{prose.size(_best(screen.control_pairs))}.'
    ),
    panels=(
      _chart('plain score', screen.plain, report),
      _chart(
        'written × erased', screen.pairs, report, control=screen.control_pairs
      ),
    ),
  )


def _chart(
  title: str,
  entries: Sequence[screen_report.Entry],
  report: me_report.MEReport,
  control: Sequence[screen_report.Entry] = (),
) -> spec.Chart:
  """Draws scores over ranks, a series a role."""
  groups: dict[str, list[int]] = {}
  for rank, entry in enumerate(entries, 1):
    name = 'observed' if _observed(entry, report) else entry.role
    groups.setdefault(name, []).append(rank)

  def series(name: str, ranks: Sequence[int]) -> spec.Series:
    some = [entries[rank - 1] for rank in ranks]
    return spec.Series(
      label=_LABELS.get(name, 'observed in texts'),
      x=np.array(ranks),
      y=np.array([entry.score for entry in some]),
      role=_ROLES.get(name, 'me'),
      style='points',
      hover=[_where(entry) for entry in some],
    )

  drawn = [
    series(name, groups[name])
    for name in (*_LABELS, 'observed')
    if name in groups
  ]
  if control:
    drawn.append(
      spec.Series(
        label='control: shuffled weights',
        x=np.arange(1, len(control) + 1),
        y=np.array([entry.score for entry in control]),
        role='control',
        style='points',
        hover=[_where(entry) for entry in control],
      )
    )
  return spec.Chart(
    title=title,
    series=tuple(drawn),
    x_label='rank',
    y_label='score',
    log_y=True,
  )


def _tables(
  screen: screen_report.Screen, report: me_report.MEReport
) -> list[spec.Table]:
  return [
    spec.Table(
      caption='Predicted from weights, observed in texts',
      header=('', 'predicted', 'observed'),
      rows=_compared(screen, report),
    ),
    spec.Table(
      caption='First by the plain score, a row a neuron',
      header=('rank', 'layer', 'channel', 'neuron', 'score', 'cosine of gate '
              'and up', 'adds to a lone channel', 'role'),
      rows=tuple(
        (str(rank), str(e.layer), str(e.channel), str(e.neuron),
         prose.size(e.score), f'{e.cosine:+.2f}', f'{e.answer:+,.0f}', e.role)
        for rank, e in _each_neuron(screen.plain)
      ),
    ),
    spec.Table(
      caption='First by what is written and later erased, a row a neuron',
      header=('rank', 'layer', 'channel', 'neuron', 'score', 'can write',
              'erased later', 'most by layer'),
      rows=tuple(
        (str(rank), str(e.layer), str(e.channel), str(e.neuron),
         prose.size(e.score), f'{e.amount:+,.0f}', prose.size(e.erased),
         '-' if e.eraser_layer is None else str(e.eraser_layer))
        for rank, e in _each_neuron(screen.pairs)
      ),
    ),
  ]  # fmt: skip


def _compared(
  screen: screen_report.Screen, report: me_report.MEReport
) -> tuple[tuple[str, ...], ...]:
  found = screen.prediction
  if found is None and report.layer is None:
    return ()
  predicted, observed = ['-'] * 4, ['-'] * 4
  if found is not None:
    predicted = [
      str(found.entry.layer),
      str(found.entry.channel),
      f'{found.sign * found.write:+,.0f} at most',
      ', '.join(f'{n.index} ({n.share:.2f})' for n in found.neurons),
    ]
  if report.layer is not None:
    here = [n for n in report.neurons if n.layer == report.layer]
    whole = max(report.shares.ffn[report.layer], 1e-9)
    values = [f'{c.value:+,.0f}' for c in report.channels[:4]]
    observed = [
      str(report.layer),
      ', '.join(str(c.index) for c in report.channels[:4]) or '-',
      ', '.join(values) or '-',
      ', '.join(f'{n.index} ({n.share / whole:.2f})' for n in here) or '-',
    ]
  names = ('layer', 'channel', 'value', "neurons (part of the FFN's write)")
  return tuple(zip(names, predicted, observed))


def _each_neuron(
  entries: Sequence[screen_report.Entry],
) -> list[tuple[int, screen_report.Entry]]:
  """Returns the first entry of each neuron with its rank among all."""
  first: dict[tuple[int, int], tuple[int, screen_report.Entry]] = {}
  for rank, entry in enumerate(entries, 1):
    first.setdefault((entry.layer, entry.neuron), (rank, entry))
  return list(first.values())[:_MOST_ROWS]


def _observed(entry: screen_report.Entry, report: me_report.MEReport) -> bool:
  channels = {c.index for c in report.channels}
  neurons = {(n.layer, n.index) for n in report.neurons}
  return entry.channel in channels and (entry.layer, entry.neuron) in neurons


def _ranks(
  entries: Sequence[screen_report.Entry], report: me_report.MEReport
) -> list[int]:
  return [i for i, e in enumerate(entries, 1) if _observed(e, report)]


def _best(entries: Sequence[screen_report.Entry]) -> float:
  return entries[0].score if entries else 0.0


def _where(entry: screen_report.Entry) -> str:
  return f'layer {entry.layer}, channel {entry.channel}, neuron {entry.neuron}'
