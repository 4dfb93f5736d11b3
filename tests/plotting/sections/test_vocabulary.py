"""The section on the vocabulary says which tokens spike, and behind which not."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import me_jax
from me_jax.analysis import vocabulary as vocabulary_lib
from me_jax.analysis import vocabulary_report as report_lib
from me_jax.plotting import static
from me_jax.plotting.sections import vocabulary
from tests.support import planted
from tests.support.planted import Plant


def readings(count, spikes, start=0):
  """Made-up readings of which the first ones spike."""
  spikes_X = np.arange(count) < spikes
  return report_lib.Readings(
    np.arange(start, start + count),
    np.where(spikes_X, 5000.0, 50.0),
    np.where(spikes_X, 1.0, 0.01),
    np.where(spikes_X, 0.99996, 0.1),
    spikes_X,
  )


def made(in_front, behind, *, sampled=False):
  alone, second = readings(100, in_front), readings(50, behind)
  tokens = 1000 if sampled else 100
  every = report_lib.tally(alone.spikes, tokens)
  tally = report_lib.tally(second.spikes, max(in_front, 50))
  return report_lib.VocabularyProbe(
    reason='',
    layers=5,
    bound=400.0,
    alone=alone,
    behind=(report_lib.Behind(1, True, second, tally),),
    everything=every,
    ordinary=every,
    special=report_lib.NOTHING,
    sampled=sampled,
  )


@pytest.mark.parametrize(
  ('in_front', 'behind', 'verdict'),
  [(100, 0, 'holds'), (100, 50, 'in part'), (1, 0, 'in part'),
   (50, 50, 'does not hold')],
)  # fmt: skip
def test_the_verdict_needs_both_the_tokens_and_their_control(
  in_front, behind, verdict
):
  section = vocabulary.section(made(in_front, behind))
  assert section.verdict == verdict
  (figure,) = section.figures
  drawn = static.draw(figure)
  assert len(drawn.axes) == 2 and 'control' in figure.caption
  for panel in figure.panels:
    assert [series.role for series in panel.series] == ['massive', 'control']
    for series in panel.series:
      assert series.y.sum() == pytest.approx(1), 'shares of each group'
  json.dumps(section.numbers)


def test_the_verdict_goes_by_the_worst_token_in_front():
  probe = made(100, 0)
  (behind,) = probe.behind
  worse = made(100, 30).behind[0]
  assert vocabulary.section(probe).verdict == 'holds'
  # Their mean would be small enough.
  many = dataclasses.replace(probe, behind=(behind,) * 9 + (worse,))
  assert vocabulary.section(many).verdict == 'in part'


def test_numbers_and_names_are_in_the_words():
  section = vocabulary.section(made(97, 0), spell=lambda token: f'<{token}>')
  assert 'Of 100 tokens 97 spike when' in section.finding
  assert "'<97>', '<98>', '<99>'" in section.finding
  assert 'at least 0.9999 in 95%' in section.finding, 'rounded down'
  assert "behind '<1>'" in section.control
  quiet = section.tables[-1]
  assert [row[0] for row in quiet.rows] == ["'<97>'", "'<98>'", "'<99>'"]


def test_an_id_that_the_tokenizer_lacks_is_a_number():
  section = vocabulary.section(made(99, 0), spell=lambda token: None)
  assert 'This one does not: token 99.' in section.finding
  assert 'None' not in section.finding + section.control


def test_a_sample_is_said_to_be_one_with_its_interval():
  section = vocabulary.section(made(97, 0, sampled=True))
  assert 'Of 1,000 tokens' in section.finding
  assert '97.00% (91.55% to 98.97%)' in section.finding


def test_a_model_without_a_span_gets_an_empty_section():
  model, params = planted.build([])
  report = me_jax.find_me_layer(model, params, planted.batch())
  section = vocabulary.section(vocabulary_lib.probe(model, params, report))
  assert section.verdict == 'not tested' and not section.figures
  assert 'nothing to compare' in section.finding


def test_a_real_probe_is_drawn():
  model, params = planted.build([Plant(4, 7, 9, 5000.0)])
  report = me_jax.find_me_layer(model, params, planted.batch())
  probe = vocabulary_lib.probe(
    model, params, report, rows=16, special_ids=[planted.BOS]
  )
  section = vocabulary.section(probe)
  assert section.verdict == 'in part'
  assert section.tables[0].rows[0][:4] == ('special tokens', '1', '1', '1')
  assert 'so none could' not in section.control
  static.draw(section.figures[0])
