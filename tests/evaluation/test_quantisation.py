"""Rounding against NumPy, and on a model whose spike was planted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax import errors
from me_jax.analysis import next_token
from me_jax.evaluation import conditions
from me_jax.evaluation import quantisation
from me_jax.evaluation import rounding
from me_jax.mitigation import scoring
from me_jax.mitigation import wemask
from me_jax.models import sites
from tests.support import planted

LAYER, STOCK = 4, 'stock'
PLANTS = [planted.Plant(LAYER, 7, 9, 5000.0)]


@pytest.fixture(scope='module', name='model_of')
def _model_of():
  return planted.build(PLANTS)


@pytest.fixture(scope='module', name='laid')
def _laid():
  # Rows of several texts, and padding at their ends.
  texts = planted.texts(count=7, length=14)
  return scoring.lay_out([(ids, 0) for ids in texts])


@pytest.fixture(scope='module', name='found')
def _found(model_of, laid):
  model, params = model_of
  masked = wemask.wemask(model, params, planted.report())
  return quantisation.measure(
    model,
    params,
    {'same': params, 'masked': masked},
    {'a': laid},
    me_layer=LAYER,
  )


def run(model, params, laid, condition, padding=0):
  """Runs one condition: losses, and what was seen of each site."""
  tokens_BT, segments_BT = (x.copy() for x in laid.batch)
  tokens_BT[segments_BT == 0] = padding
  none_BT = np.zeros(segments_BT.shape, bool)
  operands = conditions.operands(
    condition,
    depth=planted.LAYERS,
    levels=127,
    real_BT=segments_BT > 0,
    massive_BT=none_BT,
    ordinary_BT=none_BT,
  )
  scores, seen = next_token.score(
    rounding.observed(model), params, tokens_BT, segments_BT, operands
  )
  return np.asarray(scores['loss']), jax.device_get(seen)


@pytest.mark.parametrize('bits', [8, 4])
@pytest.mark.parametrize('axes', [(0, 1), (1,)])
def test_rounding_is_that_of_float64(bits, axes):
  x = np.random.default_rng(0).normal(0, 3, (40, 30)).astype(np.float32)
  levels = 2 ** (bits - 1) - 1
  peak = np.abs(x).max(axis=axes, keepdims=True)
  step = peak.astype(np.float64) / levels
  wanted = np.rint(x.astype(np.float64) / step) * step
  got = np.asarray(rounding.rounded(jnp.asarray(x), peak, np.float32(levels)))
  # Float32 may put what stands in the middle of two levels on the other.
  middle = np.abs(x / step % 1 - 0.5) < 1e-3
  np.testing.assert_allclose(got[~middle], wanted[~middle], rtol=1e-5)
  assert (np.abs(got - x) <= step / 2 * 1.001).all()
  assert len(np.unique(got[0])) <= 2 * levels + 1


def test_zeros_stay_and_halves_go_to_even_levels():
  zeros = rounding.rounded(jnp.zeros(3), jnp.zeros(1), 127.0)
  np.testing.assert_array_equal(zeros, np.zeros(3))
  x = jnp.array([0.5, 1.5, -2.5, 127.0, 300.0, -300.0])
  got = rounding.rounded(x, jnp.float32(127.0), jnp.float32(127.0))
  np.testing.assert_array_equal(got, [0, 2, -2, 127, 127, -127])


def test_nothing_rounded_is_the_stock_model_to_the_last_bit(model_of, laid):
  model, params = model_of
  bare = model.clone(sites=sites.Sites())
  stock, _ = next_token.score(bare, params, *laid.batch, {})
  exact = conditions.Condition(conditions.EXACT)
  loss_BT, _ = run(model, params, laid, exact)
  np.testing.assert_array_equal(loss_BT, stock['loss'])


def test_a_spike_ruins_ordinary_tokens_and_exempting_it_repairs_them(found):
  error = found.error[STOCK]
  assert found.corpora['a'].massive_tokens == 7
  assert found.corpora['a'].massive_texts == 7
  assert (error['stream']['resid_post'][LAYER:] > 0.99).all()
  assert (error['stream, ordinary exempt']['resid_post'][LAYER:] > 0.99).all()
  for name in ('stream, massive exempt', 'stream, by token'):
    assert (error[name]['resid_post'] < 0.02).all(), name
  assert error['ffn_act']['ffn_act'][LAYER] > 0.99
  assert error['activations, massive exempt']['ffn_act'][LAYER] < 0.05
  everywhere, ordinary = found.peak[STOCK]['resid_post']
  assert (everywhere[LAYER:] > 4000).all() and (ordinary < 5).all()


def test_layers_are_rounded_alone(found):
  here = found.error[STOCK]['ffn_act, ME Layer']['ffn_act']
  others = found.error[STOCK]['ffn_act, other layers']['ffn_act']
  at = np.arange(planted.LAYERS) == LAYER
  np.testing.assert_array_equal(np.isfinite(here), at)
  np.testing.assert_array_equal(np.isfinite(others), ~at)
  cost = found.cost['a'][STOCK]
  assert cost['ffn_act, other layers'].value != 0
  # Of two parts the ME Layer's is all but everything.
  assert cost['ffn_act, ME Layer'].value == pytest.approx(
    cost['ffn_act'].value, rel=0.05
  )


def test_costs_are_paired_differences_of_losses(found):
  for variant in found.variants:
    loss, cost = found.loss['a'][variant], found.cost['a'][variant]
    assert set(cost) == set(loss) - {conditions.EXACT}
    for name, estimate in cost.items():
      change = loss[name] - loss[conditions.EXACT]
      assert estimate.value == pytest.approx(change, abs=1e-9)
      assert estimate.low <= estimate.value <= estimate.high
  spared = found.spared['a'][STOCK]['stream, massive exempt'].value
  cost = found.cost['a'][STOCK]
  assert spared == pytest.approx(
    cost['stream, massive exempt'].value - cost['stream'].value, abs=1e-9
  )


def test_the_same_weights_relieve_nothing_and_a_mask_another_amount(found):
  relief = found.relief['a']
  assert set(relief) == {'same', 'masked'}
  assert all(estimate == (0, 0, 0) for estimate in relief['same'].values())
  wanted = (
    found.cost['a']['masked']['stream'].value
    - found.cost['a'][STOCK]['stream'].value
  )
  assert relief['masked']['stream'].value == pytest.approx(wanted, abs=1e-9)
  assert wanted != 0


def test_padding_changes_neither_scale_nor_loss(model_of, laid):
  model, params = model_of
  everything = conditions.Condition('all', rounding.SITES)
  # A padding token with a state far larger than any other's.
  table = params['embed_tokens']['embedding'].at[0].set(1e4)
  params = {**params, 'embed_tokens': {'embedding': table}}
  real_BT = laid.counted_BT
  assert (laid.batch.segments_BT == 0).any()
  loss_BT, seen = run(model, params, laid, everything, padding=3)
  other_BT, other = run(model, params, laid, everything, padding=0)
  np.testing.assert_array_equal(loss_BT[real_BT], other_BT[real_BT])
  for site in rounding.SITES:
    name = rounding.Seen(site).name
    np.testing.assert_allclose(seen[name], other[name], rtol=1e-6)


def test_a_scale_for_each_token_does_not_depend_on_packing(model_of, laid):
  model, params = model_of
  by_token = conditions.Condition('all', rounding.SITES, by_token=True)
  loss_BT, _ = run(model, params, laid, by_token)
  texts = [(ids, 0) for ids in planted.texts(count=7, length=14)]
  assert laid.batch.segments_BT.max() > 1
  packed_X = laid.sums(loss_BT)
  for x, text in enumerate(texts):
    alone = scoring.lay_out([text])
    loss_BT, _ = run(model, params, alone, by_token)
    # Sums in another order may put a value on the next level.
    assert alone.sums(loss_BT)[0] == pytest.approx(packed_X[x], rel=1e-3)


def test_an_outlier_column_ruins_a_matrix_but_not_its_channels(model_of):
  _, params = model_of
  params = jax.tree.map(np.array, params)
  kernel = params['layers']['mlp']['up_proj']['kernel']
  kernel[:, :, 5] = 30.0
  levels = np.float32(127)
  for by_channel, ruined in ((False, True), (True, False)):
    new = rounding.round_kernels(params, levels, by_channel=by_channel)
    got = np.asarray(new['layers']['mlp']['up_proj']['kernel'])
    rest = np.arange(planted.FFN) != 5
    # The plant's neuron has entries of 1, which any scale here keeps.
    rest[7] = False
    error = np.linalg.norm((got - kernel)[..., rest])
    error /= np.linalg.norm(kernel[..., rest])
    assert (error > 0.9) == ruined and (ruined or error < 0.01)
    np.testing.assert_allclose(got[..., 5], 30.0, rtol=1e-6)
    np.testing.assert_array_equal(
      new['embed_tokens']['embedding'], params['embed_tokens']['embedding']
    )
    peak = np.abs(kernel).max(axis=1 if by_channel else (1, 2), keepdims=True)
    peak = peak.reshape(planted.LAYERS, 1, -1).astype(np.float64)
    step = peak / 127
    wanted = np.rint(kernel / step) * step
    np.testing.assert_allclose(got, wanted, atol=step.max() * 1e-3)


def test_bad_arguments_are_refused_before_any_work(model_of, laid):
  model, params = model_of
  texts = {'a': laid}
  for variants, some, more in (
    ({STOCK: params}, texts, {}),
    ({}, {}, {}),
    ({}, texts, {'bits': 1}),
    ({}, texts, {'me_layer': planted.LAYERS}),
  ):
    with pytest.raises(errors.MeJaxError):
      quantisation.measure(model, params, variants, some, **more)
