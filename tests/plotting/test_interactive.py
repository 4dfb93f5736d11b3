"""Figures for the page: plain, small, and free of what plotly would interpret."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from me_jax.plotting import interactive
from me_jax.plotting import palette
from me_jax.plotting import plotly_json
from me_jax.plotting import spec
from me_jax.plotting import thinning
from me_jax.plotting import wording
from tests.support import figures as made


@pytest.mark.parametrize('figure', made.FIGURES, ids=lambda f: f.name)
def test_every_panel_becomes_plain_json(figure):
  drawn = interactive.draw(figure)
  assert len(drawn) == len(figure.panels)
  text = json.dumps(drawn, allow_nan=False)
  assert json.loads(text) == drawn, 'nothing but lists, strings and numbers'
  assert all(set(panel) == {'data', 'layout'} for panel in drawn)


def test_lines_keep_their_numbers_colours_and_bands():
  (panel,) = interactive.draw(made.LINES)
  band, massive, control, median, steps = panel['data']
  assert band['fill'] == 'toself' and band['hoverinfo'] == 'skip'
  assert band['y'] == [2, 3, 4, 2, 1, 0.5, None], (
    'up along high, back along low'
  )
  assert massive['y'] == [1, 2, 3] and massive['x'] == [0, 1, 2]
  assert massive['hovertext'] == ['a', 'b', 'c']
  assert massive['line']['color'] == palette.BLUE
  assert control['line']['color'] == palette.GREEN
  assert median['line']['dash'] == 'dash'
  assert steps['line']['shape'] == 'hvh'
  dashes = [trace['line']['dash'] for trace in panel['data'][1:]]
  marks = [trace['marker']['symbol'] for trace in panel['data'][1:]]
  assert len(set(zip(dashes, marks))) == 4, 'told apart without colour'
  (mark,) = panel['layout']['shapes']
  assert mark['x0'] == 1.0 and mark['line']['color'] == palette.ORANGE
  assert mark['name'] == 'ME Layer' and mark['showlegend']


def test_a_logarithmic_axis_gets_no_value_that_it_cannot_show():
  (panel,) = interactive.draw(made.LOG)
  band, line = panel['data']
  assert line['y'] == [None, 1, 100, None, None]
  assert panel['layout']['yaxis']['type'] == 'log'
  assert min(y for y in band['y'] if y is not None) == pytest.approx(0.1)


def test_bars_have_whiskers_names_and_hatches():
  bars, points, both = interactive.draw(made.BARS)
  spike, control = bars['data']
  assert spike['error_y']['array'] == [1, 1, 0]
  assert spike['error_y']['arrayminus'] == [1, 0.5, 0]
  assert 'pattern' not in spike['marker'] and control['marker']['pattern']
  # A name that is too long for its place is cut.
  assert bars['layout']['xaxis']['ticktext'] == [
    'stock', 'norm made flat everywhere, and in all o…', 'both factors removed',
  ]  # fmt: skip
  assert points['data'][0]['mode'] == 'markers'
  assert points['data'][0]['error_y']['array'] == [1, 1]
  assert both['layout']['barmode'] == 'overlay'
  assert all(trace['opacity'] < 1 for trace in both['data'])


def test_matrices_keep_blanks_ranges_and_origin():
  attention, heads = interactive.draw(made.MATRICES)
  (trace,) = attention['data']
  values = made.MATRICES.panels[0].values
  assert trace['z'][0][1:] == [None] * 11
  np.testing.assert_allclose(trace['z'][11], values[11], rtol=1e-4)
  assert (trace['zmin'], trace['zmax']) == (0.0, 1.0)
  low, high = attention['layout']['yaxis']['range']
  assert low > high, 'row 0 on top'
  (trace,) = heads['data']
  assert (trace['zmin'], trace['zmax']) == (-3, 2)
  original = made.MATRICES.panels[1].values
  np.testing.assert_allclose(trace['customdata'], original, rtol=1e-4)
  np.testing.assert_allclose(trace['z'], np.log10(original), atol=1e-4)
  assert trace['colorbar']['ticktext'][0] == '10<sup>-3</sup>'
  assert len(heads['layout']['shapes']) == 2


def test_what_is_sent_does_not_grow_with_the_model():
  panel, _ = interactive.draw(made.WIDE)
  ridges = made.WIDE.panels[0]
  assert len(json.dumps(panel)) < 300_000
  others, marked = panel['data']
  assert set(marked['y']) == {ridges.mark, None}
  assert marked['line']['color'] == palette.ORANGE
  assert marked['line']['width'] > others['line']['width']
  # The peak of every layer is there, exactly, beside its neighbours.
  points = set()
  for trace in panel['data']:
    points |= set(zip(trace['x'], trace['y'], trace['z']))
  for layer, values in enumerate(ridges.values):
    peak = int(values.argmax())
    assert (peak, layer, values[peak]) in points
    around = {x for x, y, _ in points if y == layer}
    assert {peak - 1, peak + 1} & set(range(8192)) <= around
  matrix = spec.Heatmap(
    title='', values=np.random.default_rng(0).random((2000, 2000)),
    x_label='', y_label='', value_label='',
  )  # fmt: skip
  figure = spec.Figure(name='f', title='', caption='', alt='', panels=(matrix,))
  assert len(json.dumps(interactive.draw(figure))) < 400_000


def test_text_from_tokenizers_is_neither_tag_nor_variable():
  chart, matrix = interactive.draw(made.STRANGE)
  names = [trace['name'] for trace in chart['data']]
  assert names[0] == '&lt;/script&gt;&lt;b&gt;bold&lt;/b&gt;'
  assert names[2].startswith('%&#123;y} &amp;lt; &lt;a')
  assert names[4] == '\\x00\\x1b[31m\\n'
  labels = names + matrix['layout']['yaxis']['ticktext']
  labels += [trace['hovertext'][0] for trace in chart['data']]
  labels.append(matrix['data'][0]['hovertemplate'].replace('<br>', '').replace(
    '<extra></extra>', ''))  # fmt: skip
  for label in labels[:-1]:
    assert not set('<$') & set(label) and '%{' not in label
  assert '<' not in labels[-1] and labels[-1].count('%{') == 3


def test_peaks_are_few_ascending_and_hold_ends_and_tallest():
  random = np.random.default_rng(0)
  for count in (1, 8, 9, 50, 100, 8191, 50_000):
    for most in (8, 40, 200):
      values = random.normal(0, 1, count)
      kept = thinning.peaks(values, most)
      assert len(kept) <= max(most, 8) and np.all(np.diff(kept) > 0)
      assert {0, count - 1, int(values.argmax())} <= set(kept.tolist())
      if count <= most:
        assert len(kept) == count
  assert len(thinning.peaks(np.full(100, np.nan), 10)) <= 10


def test_numbers_are_short_and_never_nan():
  numbers = plotly_json.numbers([1.0, 1 / 3, np.nan, np.inf, -2e-9, 123456.7])
  assert numbers == [1, 0.33333, None, None, -2e-09, 123460]


def test_visible_text_shows_what_hides():
  for text, seen in zip(made.TOKENS, made.SEEN):
    assert wording.visible(text) == seen
  # Joined emoji and words of scripts that join letters stay whole.
  for text in ('👩\u200d💻', 'می\u200cخواهم', 'a b', 'a\u00a0b', 'Ġthe'):
    assert wording.visible(text) == text


def test_plotly_is_never_imported():
  code = (
    'import sys; from me_jax.plotting import interactive, page;'
    'page.plotly_js(); assert "plotly" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_thin_and_level_lines_are_drawn_without_markers():
  series = tuple(
    spec.Series(label=style, y=np.arange(3.0), style=style)
    for style in ('thin', 'level')
  )
  chart = spec.Chart(title='', series=series, x_label='', y_label='')
  figure = spec.Figure(name='f', title='', caption='', alt='', panels=(chart,))
  (panel,) = interactive.draw(figure)
  thin, level = panel['data']
  assert thin['mode'] == level['mode'] == 'lines'
  assert thin['opacity'] < 1 and level['line']['dash'] == 'dash'


def test_extremes_keep_lows_highs_ends_and_gaps():
  value = np.sin(np.arange(5_000.0))
  value[1_234], value[4_321], value[2_000:3_000] = 9.0, -9.0, np.nan
  kept = thinning.extremes(value, 200)
  assert len(kept) <= 200 and (np.diff(kept) > 0).all()
  assert {0, 1_234, 4_321, 4_999} <= set(kept.tolist())
  assert np.isnan(value[kept]).any(), 'the gap is seen'
  np.testing.assert_array_equal(
    thinning.extremes(value[:50], 200), np.arange(50)
  )
