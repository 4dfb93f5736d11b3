"""The best step is the lowest loss on task that keeps every limit."""

from __future__ import annotations

import math

import pytest

from me_jax.training import choosing
from me_jax.training import data
from me_jax.training import settings


def held(name, **fields):
  return settings.HeldOut(name=name, source=data.Source(data='a'), **fields)


SETS = (
  held('a'),
  held('b', limit=0.1),
  held('far', on_task=False, limit=0.05),
  held('seen', report=True),
  held('far, seen', on_task=False, report=True, limit=0.0),
)
START = {'a': 2.0, 'b': 3.0, 'far': 1.0, 'seen': 9.0, 'far, seen': 9.0}


def test_the_loss_is_the_mean_of_sets_on_task_that_may_choose():
  assert choosing.loss(SETS, START) == 2.5
  # Neither what is off the task nor what is for the report has a say.
  others = {'far': 7.0, 'seen': 0.0, 'far, seen': 0.0}
  assert choosing.loss(SETS, START | others) == 2.5
  assert choosing.loss(SETS, {'a': 1.0, 'b': 3.0}) == 2.0


@pytest.mark.parametrize(
  ('now', 'names'),
  [
    ({}, ()),
    ({'a': 99.0}, ()),
    ({'b': 3.09375, 'far': 1.046875}, ()),
    ({'b': 3.125}, ('b',)),
    ({'b': 3.2, 'far': 1.0625}, ('b', 'far')),
    ({'b': 0.1}, ()),
    # Sets for the report have a limit only there.
    ({'seen': 99.0, 'far, seen': 99.0}, ()),
    ({'far': math.nan}, ('far',)),
    ({'a': math.nan}, ('a',)),
    ({'a': math.inf}, ()),
  ],
)
def test_a_limit_is_about_the_rise_from_the_start(now, names):
  assert choosing.exceeded(SETS, START, START | now) == names
  # They need not be measured while the run goes.
  some = {k: v for k, v in (START | now).items() if 'seen' not in k}
  assert choosing.exceeded(SETS, START, some) == names


def test_the_best_step_is_the_first_of_the_lowest():
  best = choosing.Best()
  story = []
  for step, (loss, kept) in enumerate(
    [(2.0, True), (1.5, True), (1.0, False), (1.5, True), (1.4, True)]
  ):
    best = choosing.updated(best, 10 * step, loss, kept)
    story.append((best.step, best.loss, best.waited))
  assert story == [
    (0, 2.0, 0), (10, 1.5, 0), (10, 1.5, 1), (10, 1.5, 2), (40, 1.4, 0),
  ]  # fmt: skip


@pytest.mark.parametrize('loss', [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_never_the_best(loss):
  for best in (choosing.Best(), choosing.Best(step=3, loss=2.0)):
    after = choosing.updated(best, 5, loss, True)
    assert (after.step, after.loss) == (best.step, best.loss)
    # And stands in nobody's way.
    assert choosing.updated(after, 6, 1.0, True).step == 6
