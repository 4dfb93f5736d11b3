"""The section on the weights, where the prediction is right, wrong or absent."""

from __future__ import annotations

import dataclasses
import json

import pytest

import me_jax
from me_jax.analysis import screen as screen_lib
from me_jax.plotting import static
from me_jax.plotting.sections import screen
from tests.support import planted
from tests.support.planted import Plant

SPIKE = 9
WRITER = Plant(3, 7, SPIKE, 5000.0)
ERASER = Plant(6, 2, SPIKE, -9000.0, read=SPIKE)


@pytest.fixture(scope='module', name='found')
def _found():
  cases = {
    'right': [WRITER, ERASER],
    'no eraser': [WRITER],
    'nothing': [],
    'gradual': planted.VERDICTS['gradual'],
  }
  found = {}
  for name, plants in cases.items():
    model, params = planted.build(plants)
    report = me_jax.find_me_layer(model, params, planted.batch())
    found[name] = screen_lib.screen(model, params, top=20), report
  scores, report = found['right']
  found['wrong'] = (
    scores,
    dataclasses.replace(
      report,
      layer=5,
      channels=(report.channels[0]._replace(index=20),),
      neurons=(report.neurons[0]._replace(layer=5),),
    ),
  )
  return found


@pytest.mark.parametrize(
  ('case', 'verdict'),
  [
    ('right', 'holds'),
    ('no eraser', 'in part'),
    ('wrong', 'does not hold'),
    ('nothing', 'not tested'),
    ('gradual', 'not tested'),
  ],
)
def test_every_case_gets_a_section(found, case, verdict):
  section = screen.section(*found[case])
  assert section.verdict == verdict
  assert 'shuffled' in section.control
  (figure,) = section.figures
  assert figure.alt and 'control' in figure.caption
  assert len(static.draw(figure).axes) == 2
  text = section.finding + section.control + figure.alt
  assert 'nan' not in text and 'None' not in text
  assert all(table.rows for table in section.tables)
  json.dumps(section.numbers)


def test_the_words_say_what_was_confirmed(found):
  section = screen.section(*found['right'])
  assert 'predict layer 3, whose neuron 7 writes channel 9' in section.finding
  assert 'confirm the predicted layer, channel, sign and neuron.' in (
    section.finding
  )
  assert section.numbers['agrees'] == dict.fromkeys(
    ('layer', 'channel', 'sign', 'neuron'), True
  )
  compared = section.tables[0]
  assert [row[1:] for row in compared.rows[:2]] == [('3', '3'), ('9', '9')]
  assert 'confirm nothing' in screen.section(*found['wrong']).finding


def test_a_part_of_the_prediction_is_a_part(found):
  scores, report = found['right']
  other = report.neurons[0]._replace(index=1)
  section = screen.section(
    scores, dataclasses.replace(report, neurons=(other,))
  )
  assert section.verdict == 'in part'
  assert 'not the neuron' in section.finding


def test_the_eraser_and_the_observed_neuron_have_their_own_series(found):
  plain, pairs = screen.section(*found['right']).figures[0].panels
  by_label = {series.label: series for series in plain.series}
  assert by_label['observed in texts'].role == 'me'
  assert list(by_label['observed in texts'].x) == [2]
  eraser = by_label['takes its channel away (eraser)']
  assert list(eraser.x)[0] == 1 and 'layer 6' in eraser.hover[0]
  assert {series.role for series in pairs.series} <= {
    'me', 'massive', 'control', 'plain'
  }  # fmt: skip


def test_the_control_is_drawn_in_its_role(found):
  scores, report = found['right']
  entry = scores.pairs[0]._replace(score=30.0)
  scores = dataclasses.replace(scores, control_pairs=(entry,))
  _, pairs = screen.section(scores, report).figures[0].panels
  (control,) = [s for s in pairs.series if s.role == 'control']
  assert list(control.y) == [30.0]
