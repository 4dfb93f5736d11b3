"""Rigidity, sinks and diversity as sections of a report."""

from __future__ import annotations

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.analysis import attention_maps
from me_jax.models import batch as batch_lib
from me_jax.plotting import spec
from me_jax.plotting.sections import diversity
from me_jax.plotting.sections import rigidity
from me_jax.plotting.sections import sinks
from tests.support import planted
from tests.support.planted import Plant


def diagnosed(plants, texts):
  model, params = planted.build(plants)
  table = np.array(params['embed_tokens']['embedding'])
  table[2:12, 0] = 8.0
  params['embed_tokens']['embedding'] = jnp.asarray(table)
  batch = batch_lib.make_batch(texts)
  return (
    me_jax.diagnose(model, params, batch),
    me_jax.find_me_layer(model, params, batch),
    attention_maps.attention_maps(model, params, texts[0], (3, 6)),
  )


def varied(first=2, count=8):
  rest = np.random.default_rng(0).integers(12, planted.VOCAB, (count, 20))
  return [[first + i, *row] for i, row in enumerate(rest.tolist())]


CASES = {
  'single': ([Plant(4, 7, 9, 5000.0)], varied()),
  'one input': ([Plant(4, 7, 9, 5000.0)], planted.texts()),
  'two steps': ([Plant(3, 7, 9, 2500.0), Plant(4, 7, 9, 2500.0)], varied()),
  'gradual': ([Plant(i, 7, 9, 1000.0) for i in range(1, 7)], varied()),
  'last layer': ([Plant(7, 7, 9, 5000.0)], varied()),
  'first layer': ([Plant(0, 7, 9, 5000.0)], varied()),
  'none': ([], varied()),
  'one short text': ([Plant(4, 7, 9, 5000.0)], [[1, 20]]),
}


@pytest.fixture(scope='module', params=CASES)
def case(request):
  return request.param, diagnosed(*CASES[request.param])


def test_every_kind_of_model_gives_whole_sections(case):
  _, (found, report, maps) = case
  made = (
    rigidity.section(found, report),
    sinks.section(found, report, maps),
    sinks.section(found, report),
    diversity.section(found, report),
  )
  for section in made:
    assert isinstance(section, spec.Section)
    assert section.verdict in (
      'holds',
      'in part',
      'does not hold',
      'not tested',
    )
    assert section.finding and section.control and section.figures
    said = f'{section.finding} {section.control}'
    assert not re.search(r'\bnan\b|in no layer', said), said
    for figure in section.figures:
      assert figure.alt and figure.caption
      for panel in figure.panels:
        if isinstance(panel, spec.Heatmap):
          assert panel.values.ndim == 2
        elif panel.marks:
          # Without an ME Layer no line is called one.
          expected = 'span' if report.layer is None else 'ME Layer'
          assert panel.mark_label == expected
    text = json.dumps(section.numbers)
    assert 'NaN' not in text


def test_verdicts():
  found, report, _ = diagnosed(*CASES['single'])
  section = rigidity.section(found, report)
  assert section.verdict == 'holds' and '8 different inputs' in section.finding
  assert 'layers 4-7' in section.finding
  # Random attention has no sink, before or after.
  assert sinks.section(found, report).verdict == 'does not hold'
  found, report, _ = diagnosed(*CASES['one input'])
  section = rigidity.section(found, report)
  assert section.verdict == 'not tested' and 'one input' in section.finding
  found, report, _ = diagnosed(*CASES['none'])
  for made in (rigidity.section, sinks.section, diversity.section):
    assert made(found, report).verdict == 'not tested'


@pytest.mark.parametrize(
  ('others', 'verdict', 'why'),
  [
    (0.0, 'does not hold', 'a norm takes its size away'),
    (3.0, 'in part', '3.0 other tokens'),
  ],
)
def test_a_lower_rank_is_laid_to_other_massive_tokens_where_there_are_some(
  others, verdict, why
):
  found, report, _ = diagnosed(*CASES['single'])
  rank_L2 = np.where(np.arange(8) > 4, 5.0, 9.0)[:, None] * np.ones((1, 2))
  found = found.replace(
    diversity=found.diversity.replace(effective_rank=rank_L2),
    sinks=found.sinks.replace(secondary=np.full(8, others)),
  )
  section = diversity.section(found, report)
  assert section.verdict == verdict and why in section.finding


def test_a_cosine_is_rounded_down():
  found, report, _ = diagnosed(*CASES['single'])
  almost = np.full_like(found.rigidity.state.mean_L, 0.99998)
  state = found.rigidity.state._replace(mean_L=almost)
  found = found.replace(rigidity=found.rigidity.replace(state=state))
  finding = rigidity.section(found, report).finding
  assert 'states is at least 0.9999,' in finding, '0.99998 is no 1'


def test_attention_maps_are_those_of_the_layers_asked_for():
  model, params = planted.build([])
  ids = planted.texts()[0]
  maps = attention_maps.attention_maps(model, params, ids, (1, 5))
  other = attention_maps.attention_maps(model, params, ids, (5, 6))
  assert maps.probs_CNTT.shape == (2, 4, 13, 13)
  np.testing.assert_allclose(maps.probs_CNTT.sum(-1), 1, atol=1e-5)
  np.testing.assert_array_equal(maps.probs_CNTT[1], other.probs_CNTT[0])
