"""Gates: where they are, what they start from, and that they stay inside."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.mitigation import gates
from me_jax.mitigation import wemask
from me_jax.models import sink
from tests.support import planted

LAYERS, WIDTH = planted.LAYERS, planted.WIDTH
REPORT = planted.report()
# Emergence in two steps: what comes after the ME Layer is still in the span.
TWO_STEPS = planted.report(layer=3, span=(3, 4), verdict='multi-step')
NONE = planted.report(layer=None, span=(), verdict='none')
BATCH = planted.batch(count=2)


@pytest.fixture(scope='module', name='stock')
def _stock():
  return planted.build(planted.VERDICTS['single'])


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params):
  return model.apply({'params': params}, *BATCH).logits


def merged(start, settings, raw_GD=None):
  raw_GD = start.raw_GD if raw_GD is None else raw_GD
  return gates.apply(start.params, raw_GD, settings, start.layers)


@pytest.mark.parametrize(
  ('layers', 'report', 'want'),
  [
    ('after', REPORT, (5, 6, 7)),
    ('after', TWO_STEPS, (5, 6, 7)),
    ('next', REPORT, (5,)),
    ('before', REPORT, (0, 1, 2, 3)),
    ('before', TWO_STEPS, (0, 1, 2)),
    ('before', planted.report(4, (3, 4)), (0, 1, 2)),
    ('all', None, tuple(range(8))),
    ((6, np.int64(2)), None, (2, 6)),
  ],
)
def test_layers_by_name_and_by_list(stock, layers, report, want):
  settings = gates.Gates(layers=layers)
  start = gates.start(*stock, settings, report)
  assert start.layers == want
  assert start.raw_GD.shape == (len(want), WIDTH)
  # Half of everything that is trained: other layers stay at exactly one.
  half = merged(start, settings, 0.5 * start.raw_GD)['layers'][sink.SCALE]
  want_L1 = np.where(np.isin(np.arange(LAYERS), want), 0.5, 1.0)[:, None]
  np.testing.assert_array_equal(half, np.broadcast_to(want_L1, half.shape))


def test_from_ones_the_model_is_the_stock_one(stock):
  model, params = stock
  start = gates.start(model, params, gates.Gates(), REPORT)
  tree = merged(start, gates.Gates())
  assert (np.asarray(tree['layers'][sink.SCALE]) == 1).all()
  np.testing.assert_array_equal(logits(model, tree), logits(model, params))
  # And the gates do act.
  other = merged(start, gates.Gates(), 0.5 * start.raw_GD)
  different = logits(model, other) != logits(model, params)
  assert np.asarray(different).any()


@pytest.mark.parametrize('strength', [1.0, 0.3])
def test_from_a_wemask_the_model_is_the_masked_one(stock, strength):
  model, params = stock
  masked = me_jax.wemask(model, params, REPORT, strength=strength)
  start = gates.start(model, masked, gates.Gates(), REPORT)
  tree = merged(start, gates.Gates())
  np.testing.assert_array_equal(
    tree['layers'][sink.SCALE], masked['layers'][sink.SCALE]
  )
  np.testing.assert_array_equal(logits(model, tree), logits(model, masked))

  def loss(raw_GD):
    return logits(model, merged(start, gates.Gates(), raw_GD)).sum()

  # What was taken away can come back.
  gradient_GD = jax.grad(loss)(start.raw_GD)
  assert (np.abs(gradient_GD[0]) > 0).all()


def test_layers_without_gates_keep_their_mask(stock):
  model, params = stock
  masked = me_jax.wemask(model, params, REPORT, rate=1.0)
  settings = gates.Gates(layers='next')
  start = gates.start(model, masked, settings, REPORT)
  opened = merged(start, settings, jnp.ones_like(start.raw_GD))
  scale_L = np.asarray(opened['layers'][sink.SCALE]).mean(axis=1)
  np.testing.assert_array_equal(scale_L, [1, 1, 1, 1, 1, 1, 0, 0])


def test_tokens_are_what_is_marked(stock):
  model, params = stock
  first = gates.start(model, params, gates.Gates(), REPORT).params
  assert not {sink.POSITIONS, sink.BOUND} & set(first)
  other = gates.start(model, params, gates.Gates(tokens=(5, 2)), REPORT).params
  np.testing.assert_array_equal(other[sink.POSITIONS], [0, 0, 1, 0, 0, 1])
  masked = me_jax.wemask(model, params, REPORT, tokens='massive')
  kept = gates.start(model, masked, gates.Gates(tokens='marked'), REPORT).params
  np.testing.assert_array_equal(kept[sink.BOUND], masked[sink.BOUND])
  with pytest.raises(me_jax.MeJaxError, match='other tokens already'):
    gates.start(model, masked, gates.Gates(), REPORT)
  # Marks without a mask on them are no mask.
  free = wemask.apply(
    model,
    params,
    wemask.resolve(model, REPORT, rate=0, tokens='massive'),
  )
  assert (
    sink.BOUND not in gates.start(model, free, gates.Gates(), REPORT).params
  )


def test_marked_without_a_mask_is_the_first_token(stock):
  model, params = stock
  start = gates.start(model, params, gates.Gates(tokens='marked'), REPORT)
  assert (np.asarray(start.raw_GD) == 1).all()
  assert not {sink.POSITIONS, sink.BOUND} & set(start.params)


@pytest.mark.parametrize('size', [1e6, 1e38])
def test_gates_stay_inside_whatever_the_step(size):
  settings = gates.Gates(low=0.25, high=1.25)
  raw_GD = 1 + size * jnp.array([[1.0, -1.0, 0.0]])
  want_GD = [[1.25, 0.25, 1.0]]
  np.testing.assert_array_equal(gates.scale(raw_GD, settings), want_GD)
  np.testing.assert_array_equal(gates.project(raw_GD, settings), want_GD)


def test_the_gradient_is_the_scales_own_at_the_ends_too():
  settings = gates.Gates()
  raw_GD = jnp.array([[0.0, 0.5, 1.0, 1.5, 2.0, -1.0]])
  weight_GD = jnp.arange(6.0)[None] - 2.5
  gradient_GD = jax.grad(
    lambda raw: (weight_GD * gates.scale(raw, settings)).sum()
  )(raw_GD)
  np.testing.assert_array_equal(gradient_GD, weight_GD)


def test_gradients_of_parts_add_up_outside_of_the_interval():
  """Where the parts disagree about the direction, they must still cancel."""
  settings = gates.Gates()
  raw_GD = jnp.array([[-0.1, 1.6]])
  parts = [
    jax.grad(lambda raw, s=sign: s * gates.scale(raw, settings).sum())(raw_GD)
    for sign in (2.0, -1.0)
  ]
  np.testing.assert_array_equal(sum(parts), np.ones((1, 2)))


def test_penalties_are_their_formulas_and_pull_towards_ones():
  settings = gates.Gates()
  raw_GD = jnp.array([[1.0, 0.5], [1.25, 9.0]])
  # The last is held at 1.5.
  assert float(gates.penalty(raw_GD, settings)) == (0.5 + 0.25 + 0.5) / 4
  assert float(gates.penalty(raw_GD, settings, 'squared')) == pytest.approx(
    (0.25 + 0.0625 + 0.25) / 4
  )
  for kind, want in (
    ('l1', [[0, -0.25], [0.25, 0.25]]),
    ('squared', [[0, -0.25], [0.125, 0.25]]),
  ):
    gradient_GD = jax.grad(gates.penalty)(raw_GD, settings, kind)
    np.testing.assert_allclose(gradient_GD, want, rtol=1e-6)
  with pytest.raises(me_jax.MeJaxError, match="did you mean 'squared'"):
    gates.penalty(raw_GD, settings, 'square')


def test_statistics_describe_the_scale():
  raw_GD = jnp.array([[1.0, 1.0, 0.25, 0.75], [-3.0, 0.0, 9.0, 0.5]])
  found = jax.jit(gates.statistics, static_argnums=1)(raw_GD, gates.Gates())
  np.testing.assert_allclose(found.mean_G, [0.75, 0.5])
  np.testing.assert_allclose(found.masked_G, [0.25, 0.5])
  assert (found.mean, found.masked) == (0.625, 0.375)


@pytest.mark.parametrize(
  ('settings', 'report', 'message'),
  [
    (dict(layers='after'), None, 'give the report of find_me_layer'),
    (dict(layers='before'), None, 'give the report of find_me_layer'),
    (dict(layers='after'), NONE, 'has no ME Layer'),
    (dict(layers='before'), NONE, 'verdict none'),
    (dict(layers='before'), planted.report(0, (0,)), 'no layer comes before'),
    (dict(layers='after'), 'report', 'must be what find_me_layer returns'),
    (dict(layers='aftr'), REPORT, "did you mean 'after'"),
    (dict(layers=(8,)), REPORT, 'some of 0 to 7'),
    (dict(layers=()), REPORT, 'some of 0 to 7'),
    (dict(layers=(3, 3)), REPORT, 'one twice'),
    (dict(tokens='frist'), REPORT, "did you mean 'first'"),
    (dict(tokens=(-1,)), REPORT, 'must be positions'),
    (dict(low=-0.5), REPORT, 'between -0.5'),
    (dict(high=0.9), REPORT, '0.9'),
    (dict(low=1.0, high=1.0), REPORT, '1.0'),
    (dict(high=np.inf), REPORT, 'inf'),
  ],
)
def test_impossible_gates_are_refused(stock, settings, report, message):
  with pytest.raises(me_jax.MeJaxError, match=message):
    gates.start(*stock, gates.Gates(**settings), report)


def test_a_mask_outside_of_the_interval_is_refused(stock):
  model, params = stock
  masked = me_jax.wemask(model, params, REPORT)
  with pytest.raises(me_jax.MeJaxError, match='from 0 to 1, outside'):
    gates.start(model, masked, gates.Gates(low=0.1), REPORT)
