"""Figures are drawn for every verdict, and written whole or not at all."""

from __future__ import annotations

import pytest

import me_jax
from me_jax.plotting import figures
from tests.support import planted
from tests.support.planted import Plant

CASES = {
  'single': [Plant(4, 7, 9, 5000.0)],
  'multi-step': [Plant(3, 7, 9, 2000.0), Plant(4, 2, 9, 3000.0, read=9)],
  'gradual': [Plant(1, 7, 9, 800.0)]
  + [Plant(i, 7, 9, 800.0, read=9) for i in range(2, 7)],
  'none': [],
}


@pytest.mark.parametrize('verdict', CASES)
def test_every_verdict_is_drawn(tmp_path, verdict):
  model, params = planted.build(CASES[verdict])
  report = me_jax.find_me_layer(model, params, planted.batch())
  assert report.verdict == verdict
  figure = figures.emergence(report)
  panels = [axes for axes in figure.axes]
  assert len(panels) == 4
  # One ridge a layer, of the massive token and of its control.
  assert len(panels[0].lines) == len(panels[1].lines) == planted.LAYERS
  assert panels[0].get_zlim() == panels[1].get_zlim(), 'one scale for both'
  figures.save(figure, tmp_path / 'f.png')
  assert [p.name for p in tmp_path.iterdir()] == ['f.png']


def test_a_figure_that_cannot_be_written_leaves_nothing(tmp_path):
  model, params = planted.build([])
  report = me_jax.find_me_layer(model, params, planted.batch())
  with pytest.raises(ValueError):
    figures.save(figures.emergence(report), tmp_path / 'f.nonsense')
  assert not list(tmp_path.iterdir())
