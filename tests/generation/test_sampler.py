"""Samples follow the distribution that NumPy computes, row by row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.generation import sampler

VOCAB = 600  # more than two blocks, the last one not full
SETTINGS = {
  'temperature': dict(temperature=0.7),
  'top-k': dict(temperature=1.0, top_k=5),
  'top-p': dict(temperature=1.0, top_p=0.6),
  'min-p': dict(temperature=1.3, min_p=0.2),
  'penalty': dict(temperature=1.0, repetition_penalty=1.5),
  'all': dict(
    temperature=0.9, top_k=40, top_p=0.8, min_p=0.05, repetition_penalty=1.2
  ),
}


def reference(logits_V, seen_V, s):
  """The distribution by sorting, in float64."""
  x = logits_V.astype(np.float64)
  penalty = s.repetition_penalty
  x = np.where(seen_V, np.where(x > 0, x / penalty, x * penalty), x)
  x = x / s.temperature

  def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()

  if s.top_k:
    x = np.where(x >= np.sort(x)[-s.top_k], x, -np.inf)
  if s.top_p < 1:
    order = np.argsort(-x)
    p = softmax(x)[order]
    dropped = order[np.cumsum(p) - p >= s.top_p]
    x[dropped] = -np.inf
  if s.min_p:
    p = softmax(x)
    x = np.where(p >= s.min_p * p.max(), x, -np.inf)
  return softmax(x)


def inputs(seed=0):
  random = np.random.default_rng(seed)
  logits_V = (random.normal(0, 2.5, VOCAB)).astype(np.float32)
  return logits_V, random.random(VOCAB) < 0.3


def draw(s, logits_V, seen_V, count, seed=0):
  """Draws many times from one row."""
  rows = np.broadcast_to(logits_V, (count, VOCAB))
  seen = np.broadcast_to(seen_V, (count, VOCAB))
  return np.asarray(
    jax.jit(sampler.draw, static_argnums=0)(
      s.active,
      s.values,
      rows,
      seen,
      np.full(count, seed, np.uint32),
      np.arange(count, dtype=np.int32),
    )
  )


@pytest.mark.parametrize('name', SETTINGS)
def test_filters_leave_what_sorting_leaves(name):
  s = sampler.Sampling(**SETTINGS[name])
  for seed in range(5):
    logits_V, seen_V = inputs(seed)
    by = s.repetition_penalty
    punished_V = np.where(logits_V > 0, logits_V / by, logits_V * by)
    given_V = np.where(seen_V, punished_V, logits_V).astype(np.float32)
    weights = sampler.filtered(s.active, s.values, jnp.asarray(given_V)[None])[
      0
    ]
    expected = reference(logits_V, seen_V, s)
    np.testing.assert_allclose(weights / weights.sum(), expected, atol=1e-6)


@pytest.mark.parametrize('name', SETTINGS)
def test_draws_follow_the_distribution(name):
  """Chi-square over 20,000 draws; the seed is fixed, so it cannot flicker."""
  s = sampler.Sampling(**SETTINGS[name])
  logits_V, seen_V = inputs()
  count = 20_000
  expected = reference(logits_V, seen_V, s) * count
  found = np.bincount(draw(s, logits_V, seen_V, count), minlength=VOCAB)
  assert not found[expected == 0].any()
  often = expected >= 5
  observed = np.append(found[often], found[~often].sum())
  wanted = np.append(expected[often], expected[~often].sum())
  observed, wanted = observed[wanted > 0], wanted[wanted > 0]
  freedom = len(wanted) - 1
  square = ((observed - wanted) ** 2 / wanted).sum()
  # Its mean is the number of degrees of freedom, its variance twice that.
  assert abs(square - freedom) < 4 * np.sqrt(2 * max(freedom, 1))


def test_temperature_0_is_the_likeliest_whatever_the_filters():
  logits_V, seen_V = inputs()
  s = sampler.Sampling(top_k=3, top_p=0.1, min_p=0.5)
  assert s.active == ()
  assert (draw(s, logits_V, seen_V, 3) == logits_V.argmax()).all()


def test_the_penalty_changes_the_likeliest():
  logits_V = np.zeros(VOCAB, np.float32)
  logits_V[[3, 4]] = 2.0, 1.9
  seen_V = np.arange(VOCAB) == 3
  s = sampler.Sampling(repetition_penalty=1.5)
  assert draw(s, logits_V, seen_V, 1)[0] == 4


def test_a_row_depends_on_its_seed_and_place_alone():
  s = sampler.Sampling(temperature=1.0)
  logits_V, seen_V = inputs()
  together = draw(s, logits_V, seen_V, 50)
  assert len(set(together.tolist())) > 10
  one = sampler.draw(
    s.active, s.values, jnp.asarray(logits_V)[None], None,
    np.zeros(1, np.uint32), np.full(1, 7, np.int32),
  )  # fmt: skip
  assert one[0] == together[7]
  assert (draw(s, logits_V, seen_V, 50, seed=1) != together).any()


@pytest.mark.parametrize(
  ('setting', 'message'),
  [
    (dict(temperature=-1), 'temperature is -1'),
    (dict(temperature=float('nan')), 'temperature is nan'),
    (dict(top_k=-2), 'top_k is -2'),
    (dict(top_p=0), 'top_p is 0'),
    (dict(top_p=1.5), 'top_p is 1.5'),
    (dict(min_p=2), 'min_p is 2'),
    (dict(repetition_penalty=0), 'repetition_penalty is 0'),
  ],
)
def test_impossible_settings_are_refused(setting, message):
  with pytest.raises(me_jax.MeJaxError, match=message):
    sampler.Sampling(**setting)
