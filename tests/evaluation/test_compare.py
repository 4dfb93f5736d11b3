"""Paired differences, with a known answer."""

from __future__ import annotations

import numpy as np
import pytest

from me_jax.evaluation import compare
from me_jax.evaluation import tasks

RIGHT = tasks.Metric(name='accuracy', label='right')
REFUSED = tasks.Metric(name='refused', label='refused', better=-1)


def test_a_clear_gain_is_one():
  stock = {i: float(i < 50) for i in range(200)}
  better = {i: float(i < 90) for i in range(200)}
  found = compare.compare('t', RIGHT, stock, better)
  assert found.items == 200
  assert found.stock.value == 0.25 and found.mitigated.value == 0.45
  assert found.difference.value == pytest.approx(0.2)
  # Forty gained and none lost.
  assert found.p == pytest.approx(2 * 0.5**40)
  assert found.verdict == 'better'
  assert compare.compare('t', REFUSED, stock, better).verdict == 'worse'


def test_an_interval_that_holds_zero_is_no_difference():
  random = np.random.default_rng(0)
  stock, other = (
    dict(enumerate(random.integers(0, 2, 100).astype(float))) for _ in range(2)
  )
  found = compare.compare('t', RIGHT, stock, other)
  assert found.difference.low <= 0 <= found.difference.high
  assert found.verdict == 'no difference' and found.p > 0.05
  same = compare.compare('t', RIGHT, stock, stock)
  assert same.difference == (0, 0, 0) and same.p == 1


@pytest.mark.parametrize('gained', [1, 3, 5])
def test_a_few_items_are_no_difference(gained):
  """The bootstrap would be sure of them: each draw has some."""
  items = max(gained, 4)
  stock = dict.fromkeys(range(items), 0.0)
  other = {i: float(i < gained) for i in range(items)}
  found = compare.compare('t', RIGHT, stock, other)
  assert found.p > 0.05 and found.verdict == 'no difference'


def test_pairing_narrows_the_interval():
  """Items differ widely, and every one by as much."""
  random = np.random.default_rng(0)
  stock = dict(enumerate(random.normal(0, 10, 100)))
  other = {i: x + 0.1 for i, x in stock.items()}
  found = compare.compare('t', RIGHT, stock, other)
  assert found.difference.low == pytest.approx(0.1)
  assert found.p is None


def test_an_item_of_several_numbers_weighs_as_many():
  stock = {0: [True, False, False], 1: [True]}
  found = compare.compare('t', RIGHT, stock, None)
  assert found.stock.value == 0.5
  assert found.mitigated is None and found.verdict == ''


def test_only_items_of_both_count():
  found = compare.compare('t', RIGHT, {0: 1.0, 1: 0.0}, {1: 1.0, 2: 0.0})
  assert found.items == 1 and found.difference.value == 1
  assert compare.compare('t', RIGHT, {0: 1.0}, {1: 1.0}) is None
