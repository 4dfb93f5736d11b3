"""The section on the mitigation says what was measured, and claims no more."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from me_jax.mitigation import outcome as outcome_lib
from me_jax.plotting import interactive
from me_jax.plotting import spec
from me_jax.plotting import static
from me_jax.plotting.sections import mitigation
from me_jax.plotting.sections import mitigation_tables
from me_jax.plotting.sections import mitigation_verdict
from tests.support import outcomes

CHOSEN, PAPER = outcome_lib.CHOSEN, outcome_lib.PAPER
CHATS = {'GSM8K': True, 'MATH-500': True, 'IFEval': True, 'C4': False}


def chosen(**values):
  """Returns an outcome whose chosen mask does this to the corpora of CHATS."""
  losses = dict.fromkeys(CHATS, 0.0) | {k.replace('_', '-'): v
                                        for k, v in values.items()}  # fmt: skip
  return outcomes.outcome(
    corpora=CHATS,
    changes={CHOSEN: {n: outcomes.change(x) for n, x in losses.items()}},
  )


def verdict(outcome):
  return mitigation.section(outcome).verdict


CASES = {
  'whole': (outcomes.outcome(), 'in part'),
  'none chosen': (outcomes.outcome(helps=False), 'does not hold'),
  'one corpus': (outcomes.outcome(corpora={'GSM8K': True}), 'holds'),
  'one text': (
    outcomes.outcome(texts=1, corpora={'notes': True}),
    'not tested',
  ),
  'plain only': (outcomes.outcome(corpora={'C4': False}), 'does not hold'),
  'no controls': (outcomes.outcome(controls=False), 'in part'),
  'deep': (outcomes.outcome(depth=126), 'in part'),
  'nothing tried': (
    outcomes.outcome(helps=False, count=1, corpora={'C4': False}),
    'not tested',
  ),
  'no numbers': (
    outcomes.outcome(
      corpora={'GSM8K': True},
      changes={
        mask: {'GSM8K': outcomes.nothing()}
        for mask in (CHOSEN, PAPER, *outcomes.CONTROLS)
      },
    ),
    'not tested',
  ),
}


@pytest.mark.parametrize('case', CASES)
def test_every_outcome_gives_a_whole_section(case):
  outcome, expected = CASES[case]
  section = mitigation.section(outcome, maps=outcomes.maps())
  assert section.verdict == expected
  text = [section.finding, section.control]
  for figure in section.figures:
    assert figure.alt and 'ook' in figure.caption, 'what to look at'
    text += [figure.alt, figure.caption]
    drawn = static.draw(figure)
    assert len(drawn.axes) >= len(figure.panels)
    assert interactive.draw(figure)
  for table in section.tables:
    assert table.rows
    assert all(len(row) == len(table.header) for row in table.rows)
    text += [cell for row in table.rows for cell in row]
  for words in text:
    assert words is not None and '-0.0000' not in words
    assert 'nan' not in words and 'inf ' not in words
  json.dumps(section.numbers, allow_nan=False)


@pytest.mark.parametrize(
  ('values', 'expected'),
  [
    ({'GSM8K': -0.1, 'MATH_500': -0.1}, 'holds'),
    ({'GSM8K': -0.1}, 'in part'),
    ({'GSM8K': -0.1, 'MATH_500': -0.1, 'C4': 0.1}, 'in part'),
    ({'GSM8K': -0.1, 'MATH_500': -0.1, 'IFEval': 0.1}, 'in part'),
    ({'GSM8K': -0.005}, 'does not hold'),
    ({'C4': -0.1}, 'does not hold'),
  ],
)
def test_half_of_the_chats_must_improve_and_nothing_get_worse(values, expected):
  section = mitigation.section(chosen(**values))
  assert section.verdict == expected
  assert ('worse on' in section.finding) == any(x > 0 for x in values.values())


def test_a_control_that_does_as_well_takes_the_claim_away():
  good = chosen(GSM8K=-0.1, MATH_500=-0.1)
  said = mitigation.section(good).control
  assert 'surely better than all of them' in said
  # A made-up difference of -0.1 - 0.05, and its interval.
  assert 'nearest of them, random channels: ' in said
  found = good.changes[CHOSEN] | {'IFEval': outcomes.change(0.4)}
  even = outcomes.estimate(0.0)
  rival = dataclasses.replace(
    good,
    changes={**good.changes, 'random channels': found},
    less={**good.less, 'random channels': dict.fromkeys(CHATS, even)},
  )
  section = mitigation.section(rival)
  assert section.verdict == 'in part', 'over the corpora that improve'
  assert 'not surely better than random channels' in section.control
  # Behind it on the whole, but not surely on one of the two.
  near = dict.fromkeys(CHATS, outcomes.estimate(-0.05))
  near['MATH-500'] = outcomes.estimate(-0.005)
  near = {**good.less, 'random channels': near}
  assert verdict(dataclasses.replace(good, less=near)) == 'in part'
  alone = {m: good.changes[m] for m in (CHOSEN, PAPER)}
  section = mitigation.section(dataclasses.replace(good, changes=alone))
  assert section.verdict == 'in part', 'without controls'
  assert 'no controls on held-out texts' in section.control


def test_sinks_must_weaken():
  good = chosen(GSM8K=-0.1, MATH_500=-0.1)
  inside = {**good.internals, CHOSEN: outcomes.internals(0.6)}
  section = mitigation.section(dataclasses.replace(good, internals=inside))
  assert section.verdict == 'in part'
  assert 'rises from 0.510 to 0.600' in section.finding
  assert 'as rigid as before' in section.finding
  unknown = dataclasses.replace(good, internals={})
  assert verdict(unknown) == 'in part'
  assert mitigation_verdict.judge(unknown).weaker is None


def test_a_token_that_stays_rigid_is_not_relaxed():
  good = chosen(GSM8K=-0.1, MATH_500=-0.1)
  assert verdict(good) == 'holds'
  rigid = good.internals[CHOSEN]._replace(
    rigidity=good.internals['stock'].rigidity
  )
  inside = {**good.internals, CHOSEN: rigid}
  section = mitigation.section(dataclasses.replace(good, internals=inside))
  assert section.verdict == 'in part'
  assert 'as rigid as before' in section.finding


def test_plain_texts_count_where_there_are_no_chats():
  corpora = {'C4': False, 'WikiText-2': False}
  found = {name: outcomes.change(-0.05) for name in corpora}
  outcome = outcomes.outcome(corpora=corpora, changes={CHOSEN: found})
  section = mitigation.section(outcome)
  assert section.verdict == 'holds' and 'answers' not in section.finding
  assert not any('answers' in table.caption for table in section.tables)


def test_numbers_and_intervals_are_in_the_words():
  section = mitigation.section(outcomes.outcome())
  said = section.finding
  assert '-0.0820 (-0.0920 to -0.0720) on GSM8K (better)' in said
  assert '+0.0090 (-0.0010 to +0.0190) on C4 (no difference)' in said
  assert '+0.0140 (+0.0040 to +0.0240) on WikiText-2 (worse)' in said
  assert 'worse on WikiText-2.' in said
  answers = said.split('answers alone')[1]
  assert '-0.0020 (-0.0120 to +0.0080) on GSM8K (no difference)' in answers
  assert '288 channels (largest |γ|) in layers 12-29' in said
  assert 'GSM8K and MATH-500' in section.control
  assert 'random channels +0.0525' in section.control


def test_when_nothing_helps_it_says_so_and_shows_what_was_tried():
  section = mitigation.section(outcomes.outcome(helps=False))
  assert section.finding.startswith('Nothing helps this model within the bud')
  assert 'published setting' in section.finding
  names = [figure.name for figure in section.figures]
  assert 'mitigation-dose' in names and 'mitigation-held-out' in names
  assert any(row[0] == PAPER for row in section.tables[0].rows)
  assert 'chats +0.0200' in section.control, 'random channels of the sweep'


def test_calibration_numbers_are_marked_and_the_best_come_first():
  (table,) = [
    t
    for t in mitigation.section(outcomes.outcome()).tables
    if t.caption.startswith('Calibration numbers, never the result')
  ]
  assert len(table.rows) == 10 and '10 of 40' in table.caption
  assert table.rows[0][0].endswith('(chosen)')
  assert [row[-1] for row in table.rows] == ['yes'] * 8 + ['no'] * 2
  assert all('calibration' in name for name in table.header[4:-1])


def test_strengths_are_listed_only_where_they_differ():
  deep = mitigation.section(outcomes.outcome(depth=126)).tables[-1]
  assert deep.caption.startswith('Strength')
  assert [deep.rows[0][0], deep.rows[-1][0]] == ['40-49', '120-129']
  assert sum(cell != '' for row in deep.rows for cell in row[1:]) == 126 - 44
  outcome = outcomes.outcome()
  same = outcome.chosen._replace(recipe=outcomes.recipe())
  outcome = dataclasses.replace(outcome, chosen=same)
  tables = mitigation.section(outcome).tables
  assert not any(t.caption.startswith('Strength') for t in tables)


def figure(outcome, name, maps=None):
  section = mitigation.section(outcome, maps=maps)
  (found,) = [f for f in section.figures if f.name == f'mitigation-{name}']
  return found


def test_the_sweep_ends_for_all_selections_in_the_mask_of_all_channels():
  chart = figure(outcomes.outcome(), 'dose').panels[0]
  lines = [s for s in chart.series if s.style != 'steps']
  assert 'rate' in chart.x_label and len(lines) == 4
  for line in lines:
    np.testing.assert_allclose(line.x, [0, 0.25, 0.5, 0.75, 1])
    assert line.y[0] == 0 and line.y[-1] == 3.1
  roles = {line.label: (line.role, line.style) for line in lines}
  assert roles['random channels'] == ('control', 'dashed')
  assert roles['largest |γ|'] == ('massive', 'line')
  # Of one selection nobody knows whether its widest mask is of all channels.
  alone = outcomes.outcome()
  alone = dataclasses.replace(alone, dose=alone.dose[:3])
  chart = figure(alone, 'dose').panels[0]
  assert chart.x_label == 'channels masked in a layer'
  np.testing.assert_array_equal(chart.series[0].x, [0, 144, 288, 432])


def test_a_mask_that_dwarfs_the_others_is_named_but_not_drawn():
  found = figure(outcomes.outcome(), 'held-out')
  labels = [s.label for s in found.panels[1].series]
  assert 'random channels' in labels and 'all channels' not in labels
  assert 'all channels, +1.4100 to +3.1050' in found.caption
  first = found.panels[0].series[0]
  np.testing.assert_allclose(first.y, [-0.082, -0.077, 0.009, 0.014])
  np.testing.assert_allclose(first.high - first.low, 0.02)


def test_maps_stand_in_pairs():
  maps = outcomes.maps()
  found = figure(outcomes.outcome(), 'maps', maps)
  assert [p.title for p in found.panels] == [
    'layer 12, stock model',
    'layer 12, chosen mask',
    'layer 20, stock model',
    'layer 20, chosen mask',
  ]
  assert all(isinstance(p, spec.Heatmap) for p in found.panels)
  before = maps[0].probs_CNTT[0, :, :, 0].mean()
  after = maps[1].probs_CNTT[0, :, :, 0].mean()
  assert f'{before:.3f} then {after:.3f} in layer 12' in found.alt
  section = mitigation.section(outcomes.outcome(helps=False), maps=maps)
  assert section.figures[-1].panels[1].title == f'layer 12, {PAPER} mask'
  assert section.numbers['maps']['stock'][0] == pytest.approx(before, rel=1e-5)


def test_what_costs_plain_text_too_much_comes_after_what_does_not():
  outcome = outcomes.outcome()
  costly = outcome.trials[1]._replace(
    name='costly', change={'chats': -1.0, 'plain': 0.5}
  )
  ranked = mitigation_tables.ranked(
    dataclasses.replace(outcome, trials=(costly, *outcome.trials[:9]))
  )
  assert ranked[0].name == outcome.chosen.name
  assert ranked.index(costly) > 6
