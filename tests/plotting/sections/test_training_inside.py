"""What became of gates and of the model's inside is drawn with its controls."""

from __future__ import annotations

import numpy as np

from me_jax.plotting import interactive
from me_jax.plotting import static
from me_jax.plotting.sections import training
from tests.support import training_runs as made


def figure(name, rows):
  (found,) = [
    one
    for one in training.section(rows).figures
    if one.name == f'training-{name}'
  ]
  return {panel.title: panel for panel in found.panels}


def test_gates_are_shown_in_their_layers_before_and_after():
  rows = made.looks(count=30)
  panels = figure('gates', rows)
  before, after = panels['mean gate by layer'].series
  np.testing.assert_array_equal(after.x, np.arange(12, 30))
  np.testing.assert_allclose(after.y, rows[-1]['gates']['mean_G'])
  np.testing.assert_allclose(before.y, 1.0)
  heat = panels['share below a half over steps']
  assert heat.values.shape == (18, 20) == (18, len(heat.x_names))
  assert heat.x_names[0] == '0' and heat.x_names[-1] == '200'
  np.testing.assert_allclose(heat.values[:, -1], rows[-1]['gates']['masked_G'])
  said = training.section(rows).finding
  assert 'At step 200 the mean gate is 0.85 (1 at step 0)' in said
  assert 'Most are in layer 29: 40.0 % of its gates.' in said
  assert 'same gates on another token' in training.section(rows).control
  one = figure('gates', rows[:1])
  assert list(one) == [
    'mean gate by layer, step 0', 'share below a half by layer, step 0',
  ]  # fmt: skip


def test_maps_of_gates_begin_at_the_first_gated_layer_and_count_from_there():
  rows = made.looks(count=3)
  for row in rows:
    # One layer in between has none.
    row['gates']['layers'] = [12, *range(14, 31)]
  found = training.section(rows).figures[0]
  heat = found.panels[2]
  assert heat.y_first == 12 and len(heat.values) == 19
  assert np.isnan(heat.values[1]).all() and not np.isnan(heat.values[2]).any()
  assert 'layers without gates are blank' in found.caption
  axes = static.draw(found).axes[2]
  assert axes.get_ylim() == (11.5, 30.5)
  # 14 is on the axis where the third row is drawn.
  assert axes.images[0].get_extent()[2:] == [11.5, 30.5]
  live = interactive.draw(found)[2]
  assert live['layout']['yaxis']['range'] == [11.5, 30.5]
  assert live['data'][0]['y'] == list(range(12, 31))
  whole = training.section(made.looks(count=3)).figures[0]
  assert 'blank' not in whole.caption


def test_gates_whose_lists_do_not_fit_are_passed_over():
  rows = made.looks(count=3)
  rows[1]['gates']['layers'] = [12, 13]
  heat = figure('gates', rows)['mean gate over steps']
  assert heat.x_names == ('0', '200')


def test_the_inside_is_shown_beside_its_start():
  rows = made.looks(layers=None)
  rows[2]['me_layer'], rows[4]['me_layer'] = 14, None
  for row in rows:
    row['effective_rank'] = 3.0
  panels = figure('inside', rows)
  assert list(panels) == [
    'ME Layer', 'spike', 'sink rate', 'rigidity', 'effective rank',
  ]  # fmt: skip
  line, start = panels['spike'].series
  np.testing.assert_allclose(line.y, [row['spike'] for row in rows])
  np.testing.assert_array_equal(start.y, [23_700.0] * 2)
  assert start.style == 'level' and panels['spike'].log_y
  assert not panels['sink rate'].log_y
  assert np.isnan(panels['ME Layer'].series[0].y[4])
  section = training.section(rows)
  assert 'The ME Layer is another one first at step 80.' in section.finding
  assert 'found in 1 of 6 looks, first at step 160.' in section.finding
  assert ('spike', '23,700', '58.75') in section.tables[0].rows
  for row in rows:
    row['me_layer'] = None
  assert 'No look found an ME Layer.' in training.section(rows).finding


CONTROLS = {
  'spike_control': 84.0, 'sink_rate_control': 0.0, 'attention_after': 0.6,
  'attention_before': 0.3, 'attention_after_control': 0.01,
  'plateau_norm': 20_000.0, 'plateau_norm_control': 140.0,
}  # fmt: skip


def test_controls_stand_beside_what_they_belong_to():
  rows = made.looks(layers=None)
  for row in rows:
    row |= CONTROLS | {'massive_texts': 8, 'rigidity_attn_in_control': 0.6}
  panels = figure('inside', rows)
  assert list(panels) == [
    'ME Layer', 'spike', 'plateau norm', 'sink rate',
    'attention after the ME Layer', 'rigidity',
  ]  # fmt: skip
  seen = {
    title: {one.label: (one.y[-1], one.style) for one in panel.series[2:]}
    for title, panel in panels.items()
  }
  assert seen == {
    'ME Layer': {},
    'spike': {'ordinary tokens': (84.0, 'dotted')},
    'plateau norm': {'ordinary tokens': (140.0, 'dotted')},
    'sink rate': {'ordinary tokens': (0.0, 'dotted')},
    'attention after the ME Layer': {
      'ordinary tokens': (0.01, 'dotted'),
      'up to the ME Layer': (0.3, 'dotted'),
    },
    'rigidity': {},
  }
  logs = [title for title, panel in panels.items() if panel.log_y]
  assert logs == ['spike', 'plateau norm'], 'a share has no logarithm'
  section = training.section(rows)
  assert 'plateau norm 20,000 (ordinary tokens 140)' in section.finding
  assert 'massive' not in section.finding, 'only what is drawn'
  rows_of_table = [row[0] for row in section.tables[0].rows]
  spike = rows_of_table.index('spike')
  assert rows_of_table[spike + 1] == 'spike, ordinary tokens'
  assert 'texts with massive activations' in rows_of_table
  caption = section.figures[0].caption
  assert 'dotted are controls, ordinary tokens' in caption
  assert 'Logarithmic: spike and plateau norm.' in caption


def test_own_readings_come_last_with_their_controls_and_are_few():
  rows = made.looks(layers=None)
  for row in rows:
    own = {f'mine_{i}': i + row['step'] for i in range(6)}
    row |= {'mine_0_control': 7.0} | own | {'alone_control': 1.0}
  panels = list(figure('inside', rows).values())
  assert [panel.title for panel in panels[4:]] == [
    'mine 0', 'mine 1', 'mine 2', 'mine 3',
  ]  # fmt: skip
  assert [one.label for one in panels[4].series] == [
    'mine 0', 'at the start', 'control',
  ]  # fmt: skip
  table = training.section(rows).tables[0]
  assert ('mine 5', '5', '205') in table.rows
  assert ('alone, control', '1', '1') in table.rows
