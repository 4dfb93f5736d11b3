"""The sections on cause and interventions, for every verdict and family."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import me_jax
from me_jax.analysis import attribution
from me_jax.analysis import bootstrap
from me_jax.analysis import factorial
from me_jax.analysis import interventions
from me_jax.analysis import prefixes
from me_jax.analysis import token_states
from me_jax.plotting import spec
from me_jax.plotting.sections import cause
from me_jax.plotting.sections import interventions as interventions_section
from tests.support import planted
from tests.support.planted import Plant

CASES = {
  'single': [Plant(4, 7, 9, 3500.0), Plant(4, 2, 9, 1500.0)],
  'multi-step': [Plant(3, 7, 9, 2000.0), Plant(4, 2, 9, 3000.0, read=9)],
  'gradual': [Plant(1, 7, 9, 800.0)]
  + [Plant(i, 7, 9, 800.0, read=9) for i in range(2, 7)],
  'embedding': [],
  'none': [],
}
GEMMA = dict(
  norm_placement='sandwich', norm_offset=1.0, norm_in_float32=True,
  hidden_act='gelu_pytorch_tanh', embedding_scale=4.0, qk_norm='head',
  attn_logit_softcapping=20.0, final_logit_softcapping=30.0,
  sliding_window=6, layer_windowed=(True, False) * 4, tie_word_embeddings=True,
)  # fmt: skip
OLMO = dict(norm_placement='post', qk_norm='projection')


def analyse(plants, **fields):
  model, params = planted.build(plants, **fields)
  if 'norm_placement' in fields:
    planted.let_through(params, plants)
  batch = planted.batch()
  report = me_jax.find_me_layer(model, params, batch)
  chosen = prefixes.select(batch, report)
  states = token_states.capture(model, params, chosen, report)
  seen = attribution.attribute(model, params, report, states)
  tried = factorial.run(model, params, report, states)
  taken = interventions.run(model, params, batch, report)
  return report, seen, tried, taken


def check(section):
  """A section is whole: it says something, draws it, and fits into JSON."""
  assert section.finding and section.control and section.claim
  json.dumps(section.numbers, allow_nan=False)
  said = [section.finding, section.control]
  for figure in section.figures:
    said += [figure.caption, figure.alt, figure.title]
    for panel in figure.panels:
      assert isinstance(panel, spec.Chart) and panel.series
      for series in panel.series:
        count = len(panel.categories) or len(series.y)
        assert len(series.y) <= count
        for other in (series.low, series.high, series.x):
          assert other is None or len(other) == len(series.y)
  for table in section.tables:
    assert table.rows
    for row in table.rows:
      assert len(row) == len(table.header)
      assert all(isinstance(cell, str) for cell in row)
      said += row
  assert not any('nan' in text.split() or 'inf' in text for text in said)


@pytest.mark.parametrize('verdict', CASES)
def test_every_verdict_has_its_sections(verdict):
  fields = {'bos_channel': 5000.0} if verdict == 'embedding' else {}
  report, seen, tried, taken = analyse(CASES[verdict], **fields)
  assert report.verdict == verdict
  first = cause.section(report, seen, tried)
  second = interventions_section.section(taken)
  check(first)
  check(second)
  names = [figure.name for figure in first.figures]
  if verdict in ('embedding', 'none'):
    assert first.verdict == 'not tested'
    assert names == ['cause-norm', 'cause-ffn']
  else:
    # The neurons write, and the weight of all norms is flat already.
    assert first.verdict == 'in part'
    assert names == ['cause-norm', 'cause-ffn', 'cause-factorial']
    assert 'a flat weight of the same mean does' in first.finding
  assert (second.verdict == 'not tested') == (verdict == 'none')


@pytest.mark.parametrize('fields', [GEMMA, OLMO], ids=['gemma', 'olmo'])
def test_other_families_have_them_too(fields):
  report, seen, tried, taken = analyse([Plant(4, 7, 9, 0.03)], **fields)
  assert report.verdict == 'single' and tried.tested and taken.tested
  section = cause.section(report, seen, tried)
  check(section)
  check(interventions_section.section(taken))
  assert tried.after == ('norm after the FFN' in section.finding)


def test_verdicts_follow_the_effects():
  report, seen, tried, _ = analyse(CASES['single'])
  strong = bootstrap.Estimate(-0.5, -0.6, -0.4)
  unsure = bootstrap.Estimate(-0.5, -1.1, 0.1)
  none = bootstrap.Estimate(0.0, -0.01, 0.01)
  for norm, neurons, verdict in (
    (strong, strong, 'holds'),
    (none, strong, 'in part'),
    (strong, none, 'in part'),
    (unsure, none, 'does not hold'),
  ):
    unit = dataclasses.replace(
      tried.units[0], raw=factorial.Effects(norm, neurons, none)
    )
    changed = dataclasses.replace(tried, units=(unit, *tried.units[1:]))
    assert cause.section(report, seen, changed).verdict == verdict
  # Any neurons would do as well: then it is not these that write.
  same = [
    dataclasses.replace(unit, raw=factorial.Effects(none, strong, none))
    for unit in tried.units
  ]
  changed = dataclasses.replace(tried, units=tuple(same))
  assert cause.section(report, seen, changed).verdict == 'does not hold'


@pytest.mark.parametrize(
  ('layer', 'left', 'prepares'),
  [(2, 0.3, True), (2, 0.95, False), (2, 1.3, False), (6, 0.3, False)],
)
def test_layers_that_take_the_spike_away_prepare_it_if_they_are_before(
  layer, left, prepares
):
  report, seen, tried, _ = analyse(CASES['single'])

  def changed(unit):
    ends = np.ones_like(unit.end_ABX)
    if unit.kind == 'layer' and unit.layers == (layer,):
      ends[1, 1] = left
    return dataclasses.replace(unit, end_ABX=ends)

  units = tuple(map(changed, tried.units))
  section = cause.section(report, seen, dataclasses.replace(tried, units=units))
  said = f'(the most changed: layer {layer})'
  assert ('Layers before prepare' in section.finding) == prepares
  assert (said in section.finding) == prepares
  assert (said in section.control) != prepares


def test_a_norm_that_had_more_to_divide_by_before_is_told():
  report, seen, tried, _ = analyse(CASES['single'])
  scale = np.array(seen.scale_GSL)
  scale[:, :, :] = 1.0
  scale[:, :, 1] = 0.25
  told = dataclasses.replace(seen, scale_GSL=scale)
  said = cause.section(report, told, tried).finding
  assert 'At the FFN of layer 1 that was 4 times what it is here' in said
  assert '4 times smaller, and written 6.2%, the square' in said
  scale[:, :, 1] = 0.75
  same = dataclasses.replace(seen, scale_GSL=scale)
  assert 'of the whole state' not in cause.section(report, same, tried).finding


def test_verdicts_of_the_bias_test():
  def made(zero, mean, control):
    rows = [('zero', False, zero), ('mean', False, mean),
            ('other_token', True, control)]  # fmt: skip
    return interventions.Interventions(
      tested=True, reason='', layer=4, channels=(9,),
      values_XK=np.ones((6, 1)), super_weights=(), texts=6, left_out=0,
      tokens=60, stock_loss=3.0,
      conditions=tuple(
        interventions.Condition(
          name, is_control, name, 3 + value,
          bootstrap.Estimate(value, value - 0.01, value + 0.01), 0.5,
        )
        for name, is_control, value in rows
      ),
    )  # fmt: skip

  for values, verdict in (
    ((8.0, 0.01, 0.0), 'holds'),
    ((8.0, 4.0, 0.0), 'in part'),
    ((0.3, 0.0, 0.0), 'in part'),
    ((8.0, 0.0, 8.0), 'does not hold'),
    ((0.0, 0.0, 0.0), 'does not hold'),
  ):
    assert interventions_section.section(made(*values)).verdict == verdict
