"""The best step, what is written of it, and when there is no hope."""

from __future__ import annotations

import dataclasses
import json
import types

import numpy as np
import pytest

from me_jax import errors
from me_jax.training import data
from me_jax.training import held_out
from me_jax.training import judge
from me_jax.training import packing
from me_jax.training import settings
from me_jax.training import sharding

TEXTS, TOKENS = 8, 10


class Written(list):
  """Metrics that are only kept."""

  def write(self, kind, step, **values):
    self.append((kind, step, values))


def one(name, **fields):
  source = data.Source(data='a')
  rows = packing.lay_out([], 4)
  return held_out.Set(
    settings=settings.HeldOut(name=name, source=source, **fields),
    packed=(rows,),
    most=1,
    left_out=0,
  )


SETS = (
  one('task'),
  one('far', on_task=False, limit=0.25),
  one('report', report=True),
)


def lost(loss, rejected=None):
  """Returns what a set lost of so many nats a token, each text another."""
  around = np.linspace(-0.5, 0.5, TEXTS)
  return held_out.Texts(
    (loss + around) * TOKENS,
    np.full(TEXTS, float(TOKENS)),
    None if rejected is None else (rejected + around) * TOKENS,
  )


@pytest.fixture(name='judged')
def _judged(monkeypatch):
  """Returns a judge of sets, whose losses are what the parameters say."""

  def measure(one, score, params, mesh, rules, rows):
    del score, mesh, rules
    assert rows == 3
    return lost(params[one.name])

  monkeypatch.setattr(held_out, 'measure', measure)

  def make(sets=SETS, start=None, **evaluation):
    told = []
    run = settings.Run(
      data=settings.Data(mix=data.Mix(sources=())),
      evaluation=settings.Evaluation(batch=3, **evaluation),
    )
    plan = types.SimpleNamespace(
      run=run, held_out=sets, mesh=sharding.mesh(), rules=sharding.Rules()
    )
    made = judge.Judge(plan, None, lambda *what: told.append(what))
    made.told = told
    if start is not None:
      made.before = made.measure(start, report=True)
    return made

  return make


START = {'task': 2.0, 'far': 1.0, 'report': 3.0}


def test_sets_for_the_report_are_measured_only_there(judged):
  made = judged()
  assert [*made.measure(START, report=True)] == ['task', 'far', 'report']
  del made.told[:]
  found = made.measure(START, report=False)
  assert [*found] == ['task', 'far']
  assert held_out.loss(found['far']) == pytest.approx(1)
  what = 'measuring held-out rows'
  assert made.told == [(what, 0, 2), (what, 1, 2), (what, 2, 2)]


def test_without_sets_nothing_happens(judged):
  made, written = judged(sets=()), Written()
  assert made.measure(START, report=True) == {}
  made.write(written, 3, {})
  assert made.compare(3, {}) is None
  assert not made.told and not written


def compared(made, step, **losses):
  return made.compare(step, made.measure(START | losses, report=False))


def test_the_best_step_is_told_when_it_is_found(judged):
  made = judged(start=START)
  assert compared(made, 0) == pytest.approx(2.0)
  assert compared(made, 10, task=1.5) == pytest.approx(1.5)
  # Lower, but the web has suffered.
  assert compared(made, 20, task=1.0, far=1.26) is None
  assert compared(made, 30, task=1.6) is None
  assert made.best.step == 10 and made.best.waited == 2
  assert compared(made, 40, task=1.4, far=1.24) == pytest.approx(1.4)
  assert made.best.step == 40 and made.best.waited == 0


def test_sets_for_the_report_choose_nothing(judged):
  sets = (one('task', report=True), one('far', on_task=False))
  made = judged(sets=sets, start=START)
  assert compared(made, 0) is None and compared(made, 5, task=0.1) is None
  # And without a set on task there is nothing to wait for.
  assert made.best.waited == 0


def test_patience_ends(judged):
  made = judged(start=START, patience=2)
  for step, loss, hopeless in (
    (0, 2.0, False), (1, 2.1, False), (2, 1.9, False), (3, 1.9, False),
    (4, 5.0, True),
  ):  # fmt: skip
    compared(made, step, task=loss)
    assert made.hopeless() == hopeless
  patient = judged(start=START)
  for step in range(9):
    compared(patient, step)
  assert not patient.hopeless()


def test_lines_have_losses_with_their_intervals(judged):
  made, written = judged(start=START), Written()
  made.write(written, 7, made.measure(START | {'task': 1.5}, report=False))
  ((kind, step, values),) = written
  assert (kind, step) == ('held_out', 7) and [*values['sets']] == [
    'task',
    'far',
  ]
  task = values['sets']['task']
  assert task['loss'] == pytest.approx(1.5)
  assert 1.0 < task['low'] < 1.4 < 1.6 < task['high'] < 2.0
  assert (task['tokens'], task['texts']) == (TEXTS * TOKENS, TEXTS)
  assert 'correct' not in task
  # Against the start, text by text: of each as much.
  changes = [task[name] for name in ('change', 'change_low', 'change_high')]
  assert changes == pytest.approx([-0.5] * 3)
  json.dumps(values, allow_nan=False)


def test_lines_on_pairs_say_how_many_are_told(judged):
  made, written = judged(sets=(one('task', kind='pairs'),)), Written()
  made.before = {'task': lost(2.0, 2.0)}
  after = lost(1.5, 1.7)
  # Of eight pairs two are told wrongly.
  after.rejected_N[:2] -= 5.0
  made.write(written, 0, made.before)
  made.write(written, 4, {'task': after})
  shares = [values['sets']['task']['correct'] for _, _, values in written]
  assert shares == [0, 0.75]


def test_a_judge_goes_on_as_if_it_had_not_been_away(judged):
  made = judged(start=START)
  for step, loss in ((0, 2.0), (10, 1.5), (20, 1.7)):
    compared(made, step, task=loss)
  state = json.loads(json.dumps(made.state(), allow_nan=False))
  again = judged()
  again.restore(state)
  assert again.best == made.best and again.state() == made.state()
  for name, texts in made.before.items():
    assert texts.loss_N.tobytes() == again.before[name].loss_N.tobytes()
  assert compared(again, 30, task=1.6) is None
  assert compared(again, 40, task=1.4, far=1.26) is None
  assert compared(again, 50, task=1.4) == pytest.approx(1.4)


def test_other_rows_are_not_compared_with_those_of_before(judged):
  state = judged(start=START).state()
  rows = packing.Packed(*(np.ones((1, 4), x.dtype) for x in SETS[1].packed[0]))
  others = (SETS[0], dataclasses.replace(SETS[1], packed=(rows,)), SETS[2])
  with pytest.raises(errors.MeJaxError, match='with other rows of far: they'):
    judged(sets=others).restore(state)


def test_before_the_first_evaluation_there_is_a_state_too(judged):
  made, again = judged(), judged()
  again.restore(json.loads(json.dumps(made.state(), allow_nan=False)))
  assert again.best == made.best and again.before == {}
