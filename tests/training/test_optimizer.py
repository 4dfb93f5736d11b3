"""Learning rates at every step, and AdamW against its equations."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.training import optimizer
from me_jax.training import settings

STEPS = 40


def rates(steps=STEPS, **fields):
  """Returns the rate of every step, and the one that a next one would have."""
  made = optimizer.schedule(settings.Optimizer(**fields), steps)
  return np.array([float(made(step)) for step in range(steps + 1)])


def test_the_rate_rises_from_the_first_step_on():
  found = rates(lr=2.0, warmup=0.25, schedule='constant')
  # A tenth of the way after each of ten steps; the first is not wasted.
  np.testing.assert_allclose(found[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
  np.testing.assert_array_equal(found[10:], 2.0)


@pytest.mark.parametrize('warmup', [0.0, 0.25])
def test_a_line_falls_to_its_end(warmup):
  found = rates(lr=2.0, warmup=warmup, schedule='linear', end=0.1)
  first = round(warmup * STEPS)
  done = np.arange(STEPS + 1 - first) / (STEPS - first)
  np.testing.assert_allclose(found[first:], 2.0 - 1.8 * done, rtol=1e-5)
  assert found.max() == 2.0


@pytest.mark.parametrize('warmup', [0.0, 0.25])
def test_a_cosine_falls_to_its_end(warmup):
  found = rates(lr=2.0, warmup=warmup, schedule='cosine', end=0.1)
  first = round(warmup * STEPS)
  done = np.arange(STEPS + 1 - first) / (STEPS - first)
  want = 0.2 + 1.8 * (1 + np.cos(np.pi * done)) / 2
  np.testing.assert_allclose(found[first:], want, rtol=1e-5)


@pytest.mark.parametrize('schedule', ['constant', 'linear', 'cosine'])
def test_without_an_end_it_is_zero_only_after_the_last_step(schedule):
  found = rates(lr=1.0, schedule=schedule)
  assert (found[:-1] > 0).all()
  assert (found[-1] < 1e-6) == (schedule != 'constant')


@pytest.mark.parametrize('schedule', ['constant', 'linear', 'cosine'])
@pytest.mark.parametrize('steps', [1, 2, 3])
@pytest.mark.parametrize('warmup', [0.0, 0.5, 0.99])
def test_short_runs_have_a_rate_in_every_step(schedule, steps, warmup):
  found = rates(steps, lr=1.0, schedule=schedule, warmup=warmup, end=0.5)
  assert ((found[:steps] > 0) & (found[:steps] <= 1)).all()
  assert found[:steps].max() == 1 or schedule != 'constant'


TREE = {
  'gates': np.array([[0.5, 1.0]], np.float32),
  'full': {
    'kernel': np.array([2.0, -3.0], np.float32),
    'norm': {'weight': np.array([1.5], np.float32)},
  },
}
GRADIENTS = [
  {
    'gates': np.array([[3.0, 0.0]], np.float32),
    'full': {
      'kernel': np.array([0.0, -4.0], np.float32),
      'norm': {'weight': np.array([12.0], np.float32)},
    },
  },
  {
    'gates': np.array([[0.1, 0.2]], np.float32),
    'full': {
      'kernel': np.array([0.3, 0.0], np.float32),
      'norm': {'weight': np.array([-0.2], np.float32)},
    },
  },
]


def leaves(tree):
  kernel, norm = tree['full']['kernel'], tree['full']['norm']['weight']
  return [np.asarray(x, np.float64) for x in (tree['gates'], kernel, norm)]


def by_hand(optim, steps):
  """Returns the leaves after a step on each gradient, in float64.

  Loshchilov and Hutter 2019, algorithm 2, with the rate in front of the decay.
  """
  rate = optimizer.schedule(optim, steps)
  values = leaves(TREE)
  means = [np.zeros_like(x) for x in values]
  squares = [np.zeros_like(x) for x in values]
  for step, gradient in enumerate(GRADIENTS):
    found = leaves(gradient)
    norm = np.sqrt(sum((x**2).sum() for x in found))
    if optim.clip and norm > optim.clip:
      found = [x * optim.clip / norm for x in found]
    for i, x in enumerate(found):
      means[i] = optim.b1 * means[i] + (1 - optim.b1) * x
      squares[i] = optim.b2 * squares[i] + (1 - optim.b2) * x**2
      mean = means[i] / (1 - optim.b1 ** (step + 1))
      square = squares[i] / (1 - optim.b2 ** (step + 1))
      # Of these three the kernel alone decays.
      decay = optim.weight_decay * values[i] if i == 1 else 0
      change = mean / (np.sqrt(square) + optim.eps) + decay
      values[i] = values[i] - float(rate(step)) * change
  return values


@pytest.mark.parametrize(
  'fields',
  [
    {},
    # The second gradient is below the limit and is not cut.
    {'clip': 1.0},
    {'clip': 0.0, 'weight_decay': 0.3},
    {'weight_decay': 0.3, 'clip': 2.0, 'b1': 0.7, 'b2': 0.8},
  ],
)
def test_two_steps_are_those_of_the_equations(fields):
  import optax

  # A large epsilon: what is cut in length would else give the same step.
  optim = settings.Optimizer(**{'lr': 0.1, 'eps': 0.5} | fields)
  made = optimizer.make(optim, 4)
  tree, state = TREE, made.init(TREE)
  for gradient in GRADIENTS:
    updates, state = made.update(gradient, state, tree)
    tree = optax.apply_updates(tree, updates)
  for found, want in zip(leaves(tree), by_hand(optim, 4)):
    np.testing.assert_allclose(found, want, rtol=2e-5)


def test_no_clip_keeps_a_huge_gradient():
  """And a clip of one cuts it, also where it alone decides the step."""
  gradient = {'gates': jnp.full((1, 4), 1e6)}
  tree = {'gates': jnp.ones((1, 4))}
  moved = {}
  for clip in (0.0, 1.0):
    optim = settings.Optimizer(lr=1.0, eps=1.0, clip=clip, warmup=0.0)
    made = optimizer.make(optim, 10)
    updates, _ = made.update(gradient, made.init(tree), tree)
    moved[clip] = float(np.abs(updates['gates']).max())
  # g / (g + 1), with g a million, and a half.
  np.testing.assert_allclose(moved[0.0], 1.0, rtol=1e-5)
  np.testing.assert_allclose(moved[1.0], 0.5 / 1.5, rtol=1e-5)
