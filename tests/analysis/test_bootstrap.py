"""Means with intervals."""

from __future__ import annotations

import numpy as np
import pytest

from me_jax.analysis import bootstrap


def test_the_interval_is_that_of_the_mean():
  values = np.random.default_rng(0).normal(3.0, 2.0, 400)
  found = bootstrap.weighted_mean(values)
  assert found.value == pytest.approx(values.mean())
  half = 1.96 * values.std() / 20
  assert found.high - found.value == pytest.approx(half, rel=0.1)
  assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_weights_are_numbers_of_tokens():
  found = bootstrap.weighted_mean(np.array([1.0, 4.0]), np.array([3.0, 1.0]))
  assert found.value == pytest.approx(1.75)
  assert (found.low, found.high) == (1.0, 4.0)


def test_long_texts_weigh_more_in_every_draw():
  random = np.random.default_rng(0)
  values, weights = random.normal(size=40), np.repeat([1.0, 30.0], 20)
  means = []
  for _ in range(4000):
    drawn = random.integers(0, 40, 40)
    means.append(np.average(values[drawn], weights=weights[drawn]))
  found = bootstrap.weighted_mean(values, weights)
  low, high = np.quantile(means, [0.025, 0.975])
  # Both ends are themselves drawn: a few hundredths apart.
  assert found.low == pytest.approx(low, abs=0.04)
  assert found.high == pytest.approx(high, abs=0.04)


def test_one_text_and_none():
  assert bootstrap.weighted_mean(np.array([2.0])) == (2.0, 2.0, 2.0)
  assert np.isnan(bootstrap.weighted_mean(np.zeros(0))).all()
  assert np.isnan(bootstrap.weighted_mean(np.ones(2), np.zeros(2))).all()


def test_the_same_seed_gives_the_same():
  values = np.arange(9.0)
  assert bootstrap.weighted_mean(values) == bootstrap.weighted_mean(values)
  assert bootstrap.weighted_mean(values) != bootstrap.weighted_mean(
    values, seed=1
  )


@pytest.mark.parametrize(
  ('hits', 'tries', 'low', 'high'),
  # By R's binom.confint(method = 'wilson').
  [
    (0, 10, 0.0, 0.2775328),
    (5, 10, 0.2365931, 0.7634069),
    (10, 10, 0.7224672, 1.0),
  ],
)
def test_wilsons_interval(hits, tries, low, high):
  assert bootstrap.wilson(hits, tries) == pytest.approx((low, high))
