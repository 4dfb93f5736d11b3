"""Is it the word or the place that makes a token massive?

Letters: X tokens.
"""

from __future__ import annotations

from collections.abc import Callable
import math

import numpy as np

from me_jax.analysis import vocabulary_report
from me_jax.plotting import spec

_CLAIM = (
  'Massive activations belong to a place rather than to a word: the first token '
  'of a text becomes massive whatever it is, and the same token behind it does '
  'not.'
)
_MOST, _LEAST = 0.9, 0.1  # of tokens in front, of tokens behind
_MOST_ROWS = 20
_BINS = 10  # a decade of |x|, or to 1 on either side of 0
_GROUPS = ('special tokens', 'ordinary tokens', 'all tokens')

Spell = Callable[[int], str | None]


def section(
  probe: vocabulary_report.VocabularyProbe, spell: Spell | None = None
) -> spec.Section:
  """Describes which tokens spike in front, and which behind another.

  Args:
    probe: of `vocabulary.probe`, also an empty one.
    spell: names a token, for example `tokenizer.decode`.

  Returns:
    The section on the vocabulary.
  """
  empty = bool(probe.reason)
  return spec.Section(
    name='vocabulary',
    title='Which tokens can be massive',
    claim=_CLAIM,
    verdict=_verdict(probe),
    finding=probe.reason if empty else ' '.join(_finding(probe, spell)),
    control='No token was run.' if empty else _control(probe, spell),
    figures=() if empty else (_figure(probe, spell),),
    tables=() if empty else _tables(probe, spell),
    numbers=probe.to_json(),
  )


def _verdict(probe: vocabulary_report.VocabularyProbe) -> spec.Verdict:
  if probe.reason or not probe.behind:
    return 'not tested' if probe.reason else 'does not hold'
  in_front = probe.everything.share >= _MOST
  # By the token in front that holds them back least.
  behind = max(one.tally.share for one in probe.behind) <= _LEAST
  if in_front and behind:
    return 'holds'
  return 'in part' if in_front or behind else 'does not hold'


def _finding(
  probe: vocabulary_report.VocabularyProbe, spell: Spell | None
) -> list[str]:
  every, quiet = probe.everything, probe.quiet
  if probe.sampled:
    said = [
      f'Of {every.tokens:,} tokens {every.probed:,} were run alone, and '
      f'{_spike(every)}: {_interval(every)} of the vocabulary.'
    ]
  else:
    said = [
      f'Of {every.tokens:,} tokens {_spike(every)} when alone '
      f'({every.share:.2%}).'
    ]
  if probe.special.tokens:
    told = probe.special
    said.append(f'Of {told.tokens} special tokens {_spike(told)}.')
  if len(quiet):
    some = ', '.join(_name(int(i), spell) for i in quiet[:5])
    more = f', and {len(quiet) - 5:,} more' if len(quiet) > 5 else ''
    said.append(
      f'{"These do" if len(quiet) > 1 else "This one does"} not: {some}{more}.'
    )
  spiking = probe.alone.projection[probe.alone.spikes]
  if len(spiking):
    low, high = np.quantile(spiking, (0.05, 0.95))
    cosine = np.quantile(probe.alone.cosine[probe.alone.spikes], 0.05)
    said.append(
      f'Of those that do, nine in ten reach {low:.2f} to {high:.2f} of the '
      "plateau's length along it; the cosine with it is at least "
      # Rounded down: 0.99998 is no 1.
      f'{math.floor(cosine * 1e4) / 1e4:.4f} in 95%.'
    )
  return said


def _control(
  probe: vocabulary_report.VocabularyProbe, spell: Spell | None
) -> str:
  if not probe.behind:
    return 'No token spikes, so none could stand in front of another.'
  parts = [
    f'{_interval(one.tally)} behind {_name(one.front, spell)}'
    + ('' if one.front_spikes else ' (which does not spike itself)')
    for one in probe.behind
  ]
  return (
    'Tokens that spike alone, as the second of a text: of them still spike '
    f'{"; ".join(parts)}.'
  )


def _figure(
  probe: vocabulary_report.VocabularyProbe, spell: Spell | None
) -> spec.Figure:
  alone = probe.alone
  groups: list[tuple[str, spec.Role, vocabulary_report.Readings]] = [
    ('alone, in front', 'massive', alone)
  ]
  for one in probe.behind:
    label = f'control: behind {_name(one.front, spell)}'
    groups.append((label, 'control', one.readings))
  log = [np.log10(np.maximum(r.peak, 1e-3)) for _, _, r in groups]
  return spec.Figure(
    name='vocabulary-peaks',
    title='Every token in front, and behind another',
    caption=(
      f'Tokens by their state after layer {probe.layers - 1}: its largest |x|, '
      'and its cosine with the mean plateau. Blue: each token alone. Green, the '
      'control: the same tokens as the second of a text. A token spikes to the '
      'right of both lines.'
    ),
    alt=(
      f'Alone, the median token reaches |x| = {np.median(alone.peak):,.0f} and '
      f'{probe.everything.share:.2%} spike; the line stands at '
      f'{probe.bound:,.0f}. '
      + ' '.join(
        f'Behind {_name(one.front, spell)} the median is '
        f'{np.median(one.readings.peak):,.0f} and {one.tally.share:.2%} spike.'
        for one in probe.behind
        if len(one.readings.ids)
      )
    ).strip(),
    panels=(
      _histogram(
        'largest |x|', 'log10 of the largest |x|', groups, log,
        math.log10(probe.bound), 'massive',
      ),
      _histogram(
        'direction', 'cosine with the plateau', groups,
        [r.cosine for _, _, r in groups], vocabulary_report.COSINE,
        'along the plateau',
      ),
    ),
  )  # fmt: skip


def _histogram(
  title: str,
  x_label: str,
  groups: list[tuple[str, spec.Role, vocabulary_report.Readings]],
  values: list[np.ndarray],
  mark: float,
  mark_label: str,
) -> spec.Chart:
  """Draws the share of each group's tokens by bins that all share."""
  whole = np.concatenate(values)
  low = math.floor(whole.min() * _BINS)
  high = max(math.ceil(whole.max() * _BINS), low + 1)
  edges = np.arange(low, high + 1) / _BINS
  return spec.Chart(
    title=title,
    series=tuple(
      spec.Series(
        label=label,
        x=(edges[:-1] + edges[1:]) / 2,
        y=np.histogram(value, edges)[0] / len(value),
        role=role,
        style='bars',
      )
      for (label, role, _), value in zip(groups, values)
      if len(value)
    ),
    x_label=x_label,
    y_label='share of the tokens',
    # One in a thousand is what there is to see.
    log_y=True,
    marks=(mark,),
    mark_label=mark_label,
    bars='overlaid',
  )


def _tables(
  probe: vocabulary_report.VocabularyProbe, spell: Spell | None
) -> tuple[spec.Table, ...]:
  tallies = list(
    zip(_GROUPS, (probe.special, probe.ordinary, probe.everything))
  )
  if not probe.special.tokens:
    tallies = tallies[2:]
  tallies += [
    (f'control: spiking tokens behind {_name(one.front, spell)}', one.tally)
    for one in probe.behind
  ]
  rows = [
    (name, f'{t.tokens:,}', f'{t.probed:,}', f'{t.spikes:,}', _interval(t))
    for name, t in tallies
  ]
  where = {int(i): x for x, i in enumerate(probe.alone.ids)}
  quiet = [
    (_name(i, spell), str(i), f'{probe.alone.peak[where[i]]:,.1f}',
     f'{probe.alone.projection[where[i]]:+.4f}',
     f'{probe.alone.cosine[where[i]]:+.3f}')
    for i in map(int, probe.quiet[:_MOST_ROWS])
  ]  # fmt: skip
  first = f', the first {_MOST_ROWS} of {len(probe.quiet):,}'
  tables = [
    spec.Table(
      caption='Tokens that spike',
      header=('group', 'tokens', 'run', 'spike', 'share'),
      rows=tuple(rows),
    ),
    spec.Table(
      caption='Tokens that do not spike in front'
      + (first if len(probe.quiet) > _MOST_ROWS else ''),
      header=('token', 'id', 'largest |x|', 'part of the plateau', 'cosine'),
      rows=tuple(quiet),
    ),
  ]
  return tuple(table for table in tables if table.rows)


def _interval(tally: vocabulary_report.Tally) -> str:
  """Spells a share, with its interval where it has one."""
  if tally.low == tally.high:
    return f'{tally.share:.2%}'
  return f'{tally.share:.2%} ({tally.low:.2%} to {tally.high:.2%})'


def _spike(tally: vocabulary_report.Tally) -> str:
  return f'{tally.spikes:,} spike{"s" if tally.spikes == 1 else ""}'


def _name(token: int, spell: Spell | None) -> str:
  # A model's vocabulary may be longer than its tokenizer's.
  spelled = spell(token) if spell is not None else None
  return f'token {token}' if spelled is None else repr(spelled)
