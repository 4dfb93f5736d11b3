"""The first section says what was found, for every verdict, with its control."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import me_jax
from me_jax.plotting.sections import emergence
from tests.support import planted

EXPECTED = {
  'single': 'holds',
  'multi-step': 'in part',
  'gradual': 'does not hold',
  'embedding': 'does not hold',
  'none': 'not tested',
}


@pytest.fixture(scope='module', name='reports')
def _reports():
  found = {}
  for verdict, plants in planted.VERDICTS.items():
    model, params = planted.build(plants)
    found[verdict] = me_jax.find_me_layer(model, params, planted.batch())
  model, params = planted.build([], bos_channel=60_000.0)
  found['embedding'] = me_jax.find_me_layer(model, params, planted.batch())
  return found


@pytest.mark.parametrize('verdict', EXPECTED)
def test_every_verdict_gets_a_section(reports, verdict):
  report = reports[verdict]
  assert report.verdict == verdict
  section = emergence.section(report)
  assert section.verdict == EXPECTED[verdict]
  assert 'rdinary tokens' in section.control
  assert len(section.figures) == 2
  for figure in section.figures:
    assert figure.alt and 'control' in figure.caption
    assert len(figure.panels) == 2
  assert all(table.rows for table in section.tables)
  text = section.finding + section.control + section.figures[0].alt
  assert 'nan' not in text.lower() and '-0.0000' not in text
  assert json.loads(json.dumps(section.numbers)) == report.to_json()


def test_numbers_of_the_planted_model_are_in_the_words(reports):
  section = emergence.section(reports['single'])
  assert 'Layer 4 wrote 1.0002' in section.finding
  assert 'Channel 9 carries 100.0%' in section.finding
  assert 'layers 4-7' in section.finding
  captions = [table.caption for table in section.tables]
  neurons = section.tables[captions.index('FFN neurons that write the plateau')]
  assert neurons.rows[0][:2] == ('4', '7')


def test_attention_as_the_writer_is_not_what_the_paper_claims(reports):
  report = reports['single']
  swapped = report.shares._replace(
    attn=report.shares.ffn, ffn=report.shares.attn
  )
  section = emergence.section(dataclasses.replace(report, shares=swapped))
  assert section.verdict == 'in part'


def test_tokens_are_spelled_as_they_are(reports):
  report = reports['single']
  token = report.tokens[0]._replace(string='</b>\n')
  section = emergence.section(dataclasses.replace(report, tokens=(token,) * 20))
  (table,) = [t for t in section.tables if t.caption.startswith('Massive tok')]
  assert table.rows[0][1] == "'</b>\\n'"
  assert len(table.rows) == 12 and '12 of 20' in table.caption


def test_without_massive_activations_nothing_is_claimed(reports):
  section = emergence.section(reports['none'])
  assert 'nothing whose origin' in section.finding
  assert 'no ME Layer' in section.figures[0].alt
  ridges = section.figures[0].panels[0]
  assert ridges.mark is None and np.all(ridges.values >= 0)
