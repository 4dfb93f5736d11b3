"""Figures on paper: what is drawn where, and that any text can be drawn."""

from __future__ import annotations

import re
import warnings

from matplotlib import colors as colors_lib
from matplotlib.backends import backend_agg
import numpy as np
import pytest

from me_jax.plotting import palette
from me_jax.plotting import spec
from me_jax.plotting import static
from tests.support import figures as made


@pytest.mark.parametrize('figure', made.FIGURES, ids=lambda f: f.name)
@pytest.mark.parametrize('kind', ['png', 'svg', 'pdf'])
def test_every_kind_of_panel_is_written(tmp_path, figure, kind):
  drawn = static.draw(figure)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    static.save(drawn, tmp_path / f'f.{kind}', dpi=50)
  assert [p.name for p in tmp_path.iterdir()] == [f'f.{kind}']
  axes = drawn.axes[: len(figure.panels)]
  titles = [''.join(a.get_title().split()) for a in axes]
  expected = [
    ''.join(p.title.replace('$', r'\$').split()) for p in figure.panels
  ]
  assert titles == expected


def test_the_same_figure_gives_the_same_bytes(tmp_path):
  for name in 'ab':
    static.save(static.draw(made.LINES), tmp_path / f'{name}.svg')
  assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'b.svg').read_bytes()


def test_a_figure_that_cannot_be_written_leaves_nothing(tmp_path):
  with pytest.raises(ValueError):
    static.save(static.draw(made.LINES), tmp_path / 'f.nonsense')
  assert not list(tmp_path.iterdir())


def test_no_text_is_taken_for_a_formula_or_a_tag(tmp_path):
  static.save(static.draw(made.STRANGE), tmp_path / 'f.svg')
  svg = (tmp_path / 'f.svg').read_text()
  assert '<b>' not in svg and '</script>' not in svg
  labels = static.draw(made.STRANGE).axes[0].get_legend().get_texts()
  assert [label.get_text() for label in labels] == [
    text.replace('$', r'\$') for text in made.SEEN
  ]


def test_roles_have_their_colours_and_nothing_depends_on_colour():
  axes = static.draw(made.LINES).axes[0]
  colors = [colors_lib.to_hex(line.get_color()) for line in axes.lines]
  blue, green, orange = palette.BLUE, palette.GREEN, palette.ORANGE
  assert colors[:2] == [blue.lower(), green.lower()]
  assert colors[-1] == orange.lower(), 'the mark of the ME Layer'
  series = [spec.Series(label=str(i), y=np.ones(3)) for i in range(8)]
  series += [
    spec.Series(label='m', y=np.ones(3), role='massive') for _ in range(4)
  ]
  looks = palette.looks(series)
  assert len({(look.dash, look.marker) for look in looks}) == len(looks)


def test_values_that_a_logarithm_cannot_show_are_left_out():
  axes = static.draw(made.LOG).axes[0]
  assert axes.get_yscale() == 'log'
  low, high = axes.get_ylim()
  assert 0.05 < low < 1 and 100 < high < 1000


def test_bars_are_seen_on_a_logarithmic_axis():
  series = spec.Series(label='a', y=np.array([3.0, 40.0, 500.0]), style='bars')
  chart = spec.Chart(
    title='', series=(series,), x_label='', y_label='', log_y=True
  )
  figure = static.draw(
    spec.Figure(name='f', title='', caption='', alt='', panels=(chart,))
  )
  canvas = backend_agg.FigureCanvasAgg(figure)
  canvas.draw()
  pixels = np.asarray(canvas.buffer_rgba())[..., :3] / 255
  color = colors_lib.to_rgb(figure.axes[0].patches[0].get_facecolor())
  assert np.mean(np.all(np.abs(pixels - color) < 0.02, axis=-1)) > 0.05


def test_bars_stand_beside_on_or_before_each_other():
  def boxes(how):
    heights = [2.0, -1.0], [-3.0, -4.0], [5.0, 6.0]
    series = tuple(
      spec.Series(label=str(i), y=np.array(y), style='bars')
      for i, y in enumerate(heights)
    )
    chart = spec.Chart(
      title='', series=series, x_label='', y_label='', bars=how
    )
    figure = spec.Figure(
      name='f', title='', caption='', alt='', panels=(chart,)
    )
    patches = static.draw(figure).axes[0].patches
    return [
      (p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in patches
    ]

  left, _, middle, _, right, _ = boxes('beside')
  assert left[0] + left[2] == pytest.approx(middle[0])
  assert middle[0] + middle[2] == pytest.approx(right[0])
  one, two, three, four, five, six = boxes('stacked')
  assert one[0] == three[0] == five[0]
  # Up from zero and down from zero, each on its own kind.
  assert [(b[1], b[3]) for b in (one, three, five)] == [(0, 2), (0, -3), (2, 5)]
  assert [(b[1], b[3]) for b in (two, four, six)] == [(0, -1), (-1, -4), (0, 6)]
  one, _, three, _, _, _ = boxes('overlaid')
  assert one[:3] == three[:3]


def test_intervals_reach_from_low_to_high():
  axes = static.draw(made.BARS).axes[0]
  (whiskers,) = [
    c for c in axes.containers if c.__class__.__name__ == 'ErrorbarContainer'
  ]
  segments = whiskers.lines[2][0].get_segments()
  np.testing.assert_allclose([s[:, 1] for s in segments], made.INTERVALS)
  band = static.draw(made.LINES).axes[0].collections[0]
  heights = band.get_paths()[0].vertices[:, 1]
  assert heights.min() == pytest.approx(0.5) and heights.max() == pytest.approx(
    4
  )


def test_a_matrix_keeps_its_blanks_its_range_and_its_origin():
  drawn = static.draw(made.MATRICES)
  image = drawn.axes[0].images[0]
  np.testing.assert_array_equal(
    image.get_array().mask, np.isnan(made.MATRICES.panels[0].values)
  )
  assert image.get_clim() == (0.0, 1.0)
  assert image.cmap.name == palette.HEAT
  assert drawn.axes[0].get_ylim() == (11.5, -0.5), 'upper'
  assert drawn.axes[1].get_ylim() == (-0.5, 29.5), 'lower'
  assert len(drawn.axes[1].patches) == 2, (
    'a frame for the row, one for the column'
  )


@pytest.mark.parametrize(
  ('names', 'rotation'),
  [(('0', '30', '60'), 0), ((), 0), (('a long name',) * 12, 90)],
)
def test_names_of_columns_lie_across_where_there_is_room(names, rotation):
  matrix = spec.Heatmap(
    title='', values=np.ones((3, len(names) or 3)), x_label='', y_label='',
    value_label='', x_names=names,
  )  # fmt: skip
  figure = spec.Figure(name='f', title='', caption='', alt='', panels=(matrix,))
  labels = static.draw(figure).axes[0].get_xticklabels()
  assert {label.get_rotation() for label in labels} == {rotation}


def test_rows_count_from_the_first_whichever_is_on_top():
  def limits(origin, **more):
    matrix = spec.Heatmap(
      title='', values=np.ones((5, 2)), x_label='', y_label='',
      value_label='', y_first=7, origin=origin, **more,
    )  # fmt: skip
    figure = spec.Figure(
      name='f', title='', caption='', alt='', panels=(matrix,)
    )
    return static.draw(figure).axes[0].get_ylim()

  assert limits('lower') == (6.5, 11.5)
  assert limits('upper') == (11.5, 6.5)
  assert limits('lower', y_names=tuple('abcde')) == (-0.5, 4.5)


def test_a_low_panel_left_over_takes_its_row_whole():
  def width(count, low=True):
    panel = spec.Chart(
      title='', series=made.LINES.panels[0].series, x_label='', y_label='',
      low=low,
    )  # fmt: skip
    figure = spec.Figure(
      name='f', title='', caption='', alt='', panels=(panel,) * count
    )
    cell = static.draw(figure).axes[-1].get_subplotspec()
    return len(cell.colspan)

  assert [width(count) for count in (1, 2, 3, 4, 5)] == [1, 1, 2, 1, 2]
  assert width(3, low=False) == 1


def test_ridges_keep_the_peaks_of_a_wide_model():
  lines = static.draw(made.WIDE).axes[0].lines
  values = made.WIDE.panels[0].values
  assert len(lines) == len(values)
  # Lines are drawn from the back to the front.
  for line, layer in zip(lines[::-1], values):
    _, _, height = line.get_data_3d()
    assert height.max() == layer.max()
  assert sum(len(line.get_data_3d()[0]) for line in lines) <= 45_000


def test_files_hold_no_outside_reference(tmp_path):
  static.save(static.draw(made.MATRICES), tmp_path / 'f.svg')
  svg = (tmp_path / 'f.svg').read_text()
  assert not re.search(r'href="(?!#|data:)', svg)


def test_a_long_legend_stands_beside_what_is_drawn():
  for count, beside in ((5, False), (6, True)):
    lines = [spec.Series(label=f'line {i}', y=np.ones(9) * i) for i in range(6)]
    chart = spec.Chart(
      title='', series=tuple(lines[:count]), x_label='x', y_label='y'
    )
    drawn = static.draw(
      spec.Figure(name='f', title='', caption='', alt='', panels=(chart,))
    )
    drawn.draw_without_rendering()
    (axes,) = drawn.axes
    legend = axes.get_legend().get_window_extent()
    assert (legend.x0 >= axes.bbox.x1) == beside
    assert legend.x1 <= drawn.bbox.x1, 'on the paper'


def test_low_panels_are_low_and_keep_their_legend_out_of_the_way():
  lines = tuple(
    spec.Series(label=f'a line {i}', y=np.arange(3.0)) for i in range(2)
  )
  high, low = (
    spec.Chart(title='', series=lines, x_label='step', y_label='', low=is_low)
    for is_low in (False, True)
  )
  drawn = static.draw(
    spec.Figure(
      name='f', title='', caption='', alt='', panels=(high, low), columns=1
    )
  )
  drawn.draw_without_rendering()
  boxes = [axes.get_window_extent() for axes in drawn.axes]
  assert boxes[1].height < 0.7 * boxes[0].height
  legend = drawn.axes[1].get_legend().get_window_extent()
  names = drawn.axes[1].xaxis.get_label().get_window_extent()
  assert 0 <= legend.y0 and legend.y1 < names.y0
  beside = static.draw(
    spec.Figure(name='f', title='', caption='', alt='', panels=(high, low))
  )
  assert beside.get_figheight() < drawn.get_figheight()


def test_thin_and_level_lines_have_no_markers():
  series = tuple(
    spec.Series(label=style, y=np.arange(3.0), style=style)
    for style in ('thin', 'level', 'line')
  )
  chart = spec.Chart(title='', series=series, x_label='', y_label='')
  figure = spec.Figure(name='f', title='', caption='', alt='', panels=(chart,))
  thin, level, line = static.draw(figure).axes[0].lines
  assert thin.get_marker() == level.get_marker() == 'None'
  assert line.get_marker() != 'None'
  assert thin.get_alpha() < 1 and level.get_linestyle() == '--'


def test_numbers_that_hardly_differ_are_written_out():
  series = spec.Series(label='', y=np.array([5.000001, 5.000002]))
  chart = spec.Chart(title='', series=(series,), x_label='', y_label='')
  figure = spec.Figure(name='f', title='', caption='', alt='', panels=(chart,))
  drawn = static.draw(figure)
  drawn.draw_without_rendering()
  axis = drawn.axes[0].yaxis
  assert not axis.get_offset_text().get_text()
