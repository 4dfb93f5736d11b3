"""The section on a training run shows the rows that count, and all of them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from me_jax.plotting import interactive
from me_jax.plotting import spec
from me_jax.plotting import static
from me_jax.plotting.sections import training
from me_jax.plotting.sections import training_curves
from me_jax.plotting.sections import training_rows
from tests.support import training_runs as made

LONG = 10_000


def extras(**keys):
  """Returns rows in which each key is the part of the run done, times this."""
  return made.train(
    60, **{k: lambda done, _, by=by: by * done for k, by in keys.items()}
  )


def strange():
  """Returns rows of a run that went wrong, and what is no row at all."""
  rows = made.train(40) + made.evaluations(40, 5) + made.looks(40, 5)
  rows[3] |= {'loss': None, 'lr': float('nan'), 'grad_norm': float('inf')}
  rows[20]['loss'] = 61.3
  rows[21] |= {'loss': 'NaN', 'grad_norm': True}
  rows[41]['sets']['C4'] = None
  rows[42]['sets'] = {'GSM8K': {'loss': None}}
  rows[-1] |= {'me_layer': None, 'spike': None, 'gates': {'mean_G': [1.0]}}
  rows[-2]['gates'] |= {'layers': [1, 2]}
  rows[-3]['gates']['mean_G'][0] = None
  nothing = [None, 7, [], {}, {'step': 1}, {'step': 'x', 'kind': 'train'}]
  nothing += [{'step': -1, 'kind': 'train'}, {'step': 3, 'kind': ['held_out']}]
  return rows + nothing + [{'step': 2.5, 'kind': 'train', 'loss': 1e9}]


DIVERGED = made.held_out(change=math.nan)
CASES = {
  'whole': (made.train() + made.evaluations() + made.looks(), 160),
  'nothing': ([], None),
  'two rows': (made.train(2), None),
  'one evaluation': (made.train(2) + made.evaluations()[:1], 0),
  'one look': (made.looks()[:1], None),
  'strange': (strange(), 40),
  'no numbers': (
    [{'kind': 'train', 'step': i, 'loss': None, 'lr': None} for i in range(9)],
    None,
  ),
  'constant': (
    [{'kind': 'train', 'step': i, 'loss': 0, 'lr': 0} for i in range(30)],
    None,
  ),
}
SETS = {
  'none': (),
  'both': (made.held_out(), made.kept()),
  'diverged': (DIVERGED, made.kept(change=math.nan)),
  'one text': (made.held_out(texts=1, wide=0.0),),
}


@pytest.mark.parametrize('sets', SETS)
@pytest.mark.parametrize('case', CASES)
def test_every_run_gives_a_whole_section(case, sets):
  rows, chosen = CASES[case]
  section = training.section(rows, SETS[sets], chosen=chosen)
  text = [section.finding, section.control]
  for figure in section.figures:
    assert figure.alt and 'ook' in figure.caption, 'what to look at'
    assert figure.panels
    text += [figure.alt, figure.caption]
    for panel in figure.panels:
      values = (
        [panel.values]
        if isinstance(panel, spec.Heatmap)
        else [s.y for s in panel.series]
      )
      assert all(np.isfinite(y).any() for y in values), 'no empty panel'
    json.dumps(interactive.draw(figure), allow_nan=False)
    # Every picture is drawn once; the rest differ in what is beside them.
    if sets == 'both':
      assert len(static.draw(figure).axes) >= len(figure.panels)
  for table in section.tables:
    assert table.rows
    assert all(len(row) == len(table.header) for row in table.rows)
    text += [cell for row in table.rows for cell in row]
  for words in text:
    assert 'nan' not in words and 'inf ' not in words and 'None' not in words
  json.dumps(section.numbers, allow_nan=False)


BETTER, SAME = made.held_out(), made.held_out(change=0.0)


@pytest.mark.parametrize(
  ('held_out', 'verdict'),
  [
    ([BETTER, made.kept()], 'holds'),
    # Worse, but surely by less than it may be.
    ([BETTER, made.kept(0.2, change=0.1)], 'holds'),
    ([BETTER, made.kept(guard=None)], 'holds'),
    ([BETTER, made.kept(guard=None, change=0.1)], 'in part'),
    # By less than it may be, but not surely.
    ([BETTER, made.kept(0.005, change=0.0)], 'in part'),
    ([BETTER, made.kept(0.05, change=0.1)], 'in part'),
    ([BETTER, made.kept(change=math.nan)], 'in part'),
    ([BETTER, made.kept(guard=None, change=math.nan)], 'in part'),
    ([BETTER, made.held_out(change=0.0), made.kept()], 'in part'),
    # What it costs elsewhere was not measured.
    ([BETTER], 'in part'),
    ([SAME, made.kept()], 'does not hold'),
    ([made.held_out(change=0.1), made.kept()], 'does not hold'),
    ([DIVERGED, made.kept()], 'does not hold'),
    ([made.held_out(texts=1, wide=0.0), made.kept()], 'not tested'),
    ([made.kept(change=-1.0)], 'not tested'),
    ([], 'not tested'),
  ],
)
def test_the_verdict_needs_a_better_task_and_kept_guards(held_out, verdict):
  assert training.section([], held_out).verdict == verdict


def figure(name, rows, held_out=(), chosen=None):
  section = training.section(rows, held_out, chosen=chosen)
  (found,) = [f for f in section.figures if f.name == f'training-{name}']
  return {panel.title: panel for panel in found.panels}


def names(rows, held_out=()):
  section = training.section(rows, held_out)
  return [f.name.removeprefix('training-') for f in section.figures]


def test_numbers_and_guards_are_in_the_words_and_in_the_table():
  held_out = [made.held_out(), made.kept(), made.kept(0.001, wide=0.001)]
  section = training.section([], held_out)
  assert (
    '-0.3000 (-0.3100 to -0.2900) nats per token on GSM8K, from 2.1000 to'
    ' 1.8000 (better)'
  ) in section.finding
  assert '(no difference; guard of 0.02: kept)' in section.finding
  assert 'guard of 0.001: not kept' in section.finding
  task, kept, broken = section.tables[0].rows
  assert task[:4] == ('GSM8K', 'on the task', '100', '9,000')
  assert task[6:] == ('-0.3000 (-0.3100 to -0.2900)', 'better', 'none', '')
  assert kept[1] == 'off the task' and kept[8:] == ('0.02', 'kept')
  assert broken[7:] == ('worse', '0.001', 'not kept')
  (unsure,) = training.section([], [made.kept(0.005)]).tables[0].rows
  assert unsure[9] == 'kept, the interval reaches beyond'
  assert len(training.section([], [SAME]).tables[0].header) == 8, 'no guard'
  assert section.numbers['held_out'][0]['change']['low'] == -0.31
  assert [o['guard_kept'] for o in section.numbers['held_out']] == [
    None, True, False,
  ]  # fmt: skip


def test_panels_without_data_are_left_out():
  assert names([]) == []
  assert names(made.train()) == ['loss']
  assert names(made.evaluations()[:1]) == [], 'one evaluation is no change'
  assert names([], [SAME]) == ['held-out']
  assert names(made.looks(layers=None)) == ['inside']
  assert names(made.looks()[:1]) == ['gates'], 'one look is no course'
  assert set(figure('loss', [{'kind': 'train', 'step': 1, 'loss': 2.0}])) == {
    'training loss'
  }
  assert set(figure('loss', made.train(9))) == {
    'training loss', 'learning rate', 'gradient norm',
  }  # fmt: skip


def test_few_rows_are_drawn_as_they_are():
  rows = made.train(5, every=1)
  (line,) = figure('loss', rows)['training loss'].series
  np.testing.assert_array_equal(line.x, [1, 2, 3, 4, 5])
  np.testing.assert_array_equal(line.y, [row['loss'] for row in rows])
  rate = figure('loss', rows)['learning rate'].series[0]
  np.testing.assert_array_equal(rate.y, [row['lr'] for row in rows])
  assert figure('loss', rows)['learning rate'].low


def test_a_long_curve_is_thinned_but_keeps_its_ends_and_its_spikes():
  rows = made.train(LONG)
  rows[6_000]['loss'], rows[7_000]['loss'] = 61.3, -4.0
  raw, smooth = figure('loss', rows)['training loss'].series
  assert raw.style == 'thin' and len(raw.x) <= 1_500 >= len(smooth.x)
  assert raw.x[0] == smooth.x[0] == 1 and raw.x[-1] == smooth.x[-1] == LONG
  assert raw.y.max() == 61.3 and raw.y.min() == -4.0
  for x, y in zip(raw.x, raw.y):
    assert rows[x - 1]['loss'] == y
  near = np.abs(smooth.x - 6_001).argmin()
  assert smooth.y[near] == pytest.approx(1.8, abs=0.05), 'not moved by a spike'


def test_one_spike_does_not_flatten_the_rest_and_is_named():
  rows = made.train()
  rows[99]['loss'] = 61.3
  section = training.section(rows)
  panel = section.figures[0].panels[0]
  low, high = panel.y_range
  usual = [row['loss'] for row in rows if row['loss'] < 61]
  assert low < min(usual) and max(usual) < high < 5
  assert 'Off the scale: 1 of 200 rows, farthest 61.3 at step 100.' in (
    section.figures[0].caption
  )
  assert 'its highest is 61.3000 at step 100' in section.finding
  # What rises and stays there is the finding, and is shown.
  for row in rows[100:]:
    row['loss'] += 20
  assert training.section(rows).figures[0].panels[0].y_range is None


def test_rows_without_a_number_are_gaps_and_are_counted():
  rows = made.train(40)
  rows[4]['loss'], rows[9]['loss'] = None, float('nan')
  section = training.section(rows)
  assert 'In 2 of 40 rows the loss is no number, first at step 5.' in (
    section.finding
  )
  raw, smooth = section.figures[0].panels[0].series
  np.testing.assert_array_equal(raw.x[np.isnan(raw.y)], [5, 10])
  assert np.isfinite(smooth.y).all()


def test_what_a_resumed_run_did_again_counts_once():
  before, after = made.train(60, seed=1), made.train(60, seed=2)[40:]
  late = [{'kind': 'monitor', 'step': 55, 'spike': 1.0}]
  resumed = {'kind': 'resumed', 'step': 40}
  run = training_rows.read([*before, *late, resumed, *after[:10]])
  assert [row['step'] for row in run.train] == list(range(1, 51))
  losses = [row['loss'] for row in before[:40] + after[:10]]
  assert [row['loss'] for row in run.train] == losses
  assert not run.monitor and run.last == 50
  said = training.section([*before, resumed, *after]).finding
  assert 'taken up again from step 40' in said


def test_held_out_lines_are_the_change_since_the_first_evaluation():
  rows = made.evaluations(200, 11)
  held_out = [made.held_out(), made.kept()]
  panels = figure('held-out', rows, held_out, chosen=160)
  task = panels['on the task: over steps, against step 0']
  (line,) = task.series
  losses = np.array([row['sets']['GSM8K']['loss'] for row in rows])
  np.testing.assert_allclose(line.y, losses - losses[0])
  np.testing.assert_allclose(line.high - line.low, 0.06)
  assert task.marks == (160.0,) and task.mark_label == 'kept: step 160'
  line, guard = panels['off the task: over steps, against step 0'].series
  assert line.label == 'C4' and guard.style == 'level'
  assert guard.label == 'guard of C4: +0.02'
  np.testing.assert_array_equal(guard.y, [made.GUARD] * 2)
  np.testing.assert_array_equal(guard.x, [0, 200])
  after, guard, zero = panels['off the task: before and after'].series
  np.testing.assert_allclose([after.y, after.low, after.high], [
    [0.005], [-0.005], [0.015],
  ])  # fmt: skip
  np.testing.assert_array_equal(guard.y[:2], [made.GUARD] * 2)
  assert not zero.y.any()


def test_paired_intervals_are_taken_where_rows_have_them():
  rows = made.evaluations(count=3)
  caption = training.section(rows).figures[0].caption
  assert 'of the loss itself, wider' in caption
  for row in rows:
    row['sets']['GSM8K'] |= {
      'change': -0.5, 'change_low': -0.6, 'change_high': -0.4,
    }  # fmt: skip
  section = training.section(rows, [made.held_out()])
  (line,) = section.figures[0].panels[1].series
  np.testing.assert_allclose([line.y, line.low, line.high], [
    [-0.5] * 3, [-0.6] * 3, [-0.4] * 3,
  ])  # fmt: skip
  assert 'of the change on the same texts' in section.figures[0].caption


def test_paired_changes_start_at_zero_and_set_the_scale_of_their_guard():
  rows = made.evaluations(count=3)
  for row in rows[1:]:
    row['sets']['C4'] |= {
      'change': 0.004, 'change_low': 0.001, 'change_high': 0.007,
    }  # fmt: skip
  for row in rows:
    row['sets']['C4'] |= {'low': 0.0, 'high': 4.0}
  held_out = [made.held_out(), made.kept()]
  found = training.section(rows, held_out).figures[0]
  panels = {panel.title: panel for panel in found.panels}
  line = panels['off the task: over steps, against step 0'].series[0]
  np.testing.assert_array_equal(line.x, [0, 100, 200])
  np.testing.assert_array_equal(
    [line.y, line.low, line.high],
    [[0, 0.004, 0.004], [0, 0.001, 0.001], [0, 0.007, 0.007]],
  )
  low, high = static.draw(found).axes[3].get_ylim()
  assert -0.01 < low < 0 and made.GUARD < high < 2 * made.GUARD
  # A set without pairs has no band: it would be of another kind.
  other = panels['on the task: over steps, against step 0'].series[0]
  assert np.isnan(other.low).all() and np.isnan(other.high).all()
  assert other.y[0] == 0 and other.y[-1] < -0.2


def test_legends_of_held_out_sets_hide_nothing():
  rows = made.evaluations()
  held_out = [made.held_out(), made.kept()]
  found = training.section(rows, held_out, chosen=160).figures[0]
  drawn = static.draw(found)
  drawn.draw_without_rendering()
  for axes, panel in zip(drawn.axes, found.panels):
    to_data = axes.transData.inverted()
    ((_, bottom), _) = to_data.transform(axes.get_legend().get_window_extent())
    tops = [one.y if one.high is None else one.high for one in panel.series]
    assert bottom > max(np.nanmax(top) for top in tops), panel.title


def test_a_set_that_comes_later_or_is_not_described_is_drawn_too():
  rows = made.evaluations(count=4)
  del rows[0]['sets']['C4']
  (panel,) = figure('held-out', rows).values()
  lines = {line.label: line for line in panel.series}
  assert list(lines['C4'].x) == [67, 133, 200] and lines['C4'].y[0] == 0
  assert panel.title == 'held-out texts: over steps, against step 0'


@pytest.mark.parametrize('value', [None, True, '2.0', [2.0], math.inf, 10**400])
def test_what_is_no_finite_number_is_a_gap(value):
  assert math.isnan(training_rows.number(value))


def test_what_a_method_writes_is_shown_where_it_is_written():
  grpo = extras(reward=2.0, reward_format=1.0, kl=0.1, clipped=0.2, length=50.0)
  panels = figure('method', grpo)
  assert list(panels) == [
    'reward and its parts', 'divergence from the start (KL)', 'clipped',
    'length of answers',
  ]  # fmt: skip
  labels = [line.label for line in panels['reward and its parts'].series]
  assert labels == ['reward', 'reward format']
  dpo = extras(margin=3.0, correct=1.0)
  assert list(figure('method', dpo)) == [
    'margin of the preferred answer', 'pairs in the right order',
  ]  # fmt: skip
  raw = figure('method', dpo)['margin of the preferred answer'].series[0]
  np.testing.assert_allclose(raw.y, [row['margin'] for row in dpo])
  said = training.section(dpo).finding
  assert 'pairs in the right order 0.04167 to 0.975' in said
  parts = [
    {'kind': 'train', 'step': i, 'reward': i, 'rewards': {'right': 2 * i}}
    for i in range(4)
  ]
  (panel,) = figure('method', parts).values()
  np.testing.assert_array_equal(panel.series[1].y, [0, 2, 4, 6])
  pairs = made.evaluations(count=3)
  for row in pairs:
    row['sets']['GSM8K']['correct'] = 0.5
  (panel,) = figure('method', pairs).values()
  assert panel.title == 'held-out pairs in the right order'
  assert [line.label for line in panel.series] == ['GSM8K']


def test_the_running_median_follows_a_trend_and_no_spike():
  steps = np.arange(200)
  values = steps / 100.0
  values[57] = 1e6
  smooth = training_curves.smooth(training_rows.Curve(steps, values))
  inside = smooth.y_n[20:-20]
  np.testing.assert_allclose(inside, steps[20:-20] / 100, atol=0.02)


def test_what_is_level_is_not_magnified():
  tiny = 1.0 + 1e-9 * np.arange(5)
  low, high = training_curves.room(tiny)
  assert low < 0.96 and high > 1.04
  assert training_curves.room(np.array([1.0, 1.01])) is None
  assert training_curves.room(np.zeros(3)) is not None
