"""The figure of `find` is drawn for every verdict."""

from __future__ import annotations

import numpy as np
import pytest

import me_jax
from me_jax.plotting import figures
from me_jax.plotting import static
from tests.support import planted

CASES = planted.VERDICTS


@pytest.mark.parametrize('verdict', CASES)
def test_every_verdict_is_drawn(tmp_path, verdict):
  model, params = planted.build(CASES[verdict])
  report = me_jax.find_me_layer(model, params, planted.batch())
  assert report.verdict == verdict
  drawn = static.draw(figures.emergence(report))
  panels = drawn.axes
  assert len(panels) == 4
  # One ridge a layer, of the massive token and of its control.
  assert len(panels[0].lines) == len(panels[1].lines) == planted.LAYERS
  assert panels[0].get_zlim() == panels[1].get_zlim(), 'one scale for both'
  static.save(drawn, tmp_path / 'f.png')
  assert [p.name for p in tmp_path.iterdir()] == ['f.png']


def test_a_model_without_massive_activations_is_not_said_to_have_any():
  model, params = planted.build([])
  report = me_jax.find_me_layer(model, params, planted.batch())
  ridges, _ = figures.ridges(report)
  assert ridges.mark is None and 'first token' in ridges.title
  assert figures.norms(report).marks == ()


def test_the_control_stands_in_every_panel():
  model, params = planted.build([planted.Plant(4, 7, 9, 5000.0)])
  report = me_jax.find_me_layer(model, params, planted.batch())
  _, control = figures.ridges(report)
  np.testing.assert_array_equal(control.values, report.control.profile[1:])
  for chart in (figures.norms(report), figures.shares(report)):
    assert any(series.role == 'control' for series in chart.series)
