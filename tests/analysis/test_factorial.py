"""The factorial experiment, on spikes whose makers are known."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.analysis import attribution
from me_jax.analysis import factorial
from me_jax.analysis import prefixes
from me_jax.analysis import switches
from me_jax.analysis import token_states
from me_jax.models import batch as batch_lib
from tests.support import planted
from tests.support.planted import Plant

SPIKE = 9
TEXTS = [[planted.BOS, 5, 6, 7], [5, planted.BOS, 8, 9, 3], [4, 6, planted.BOS]]
BATCH = batch_lib.make_batch(TEXTS)


def prepare(model, params, batch=BATCH):
  report = me_jax.find_me_layer(model, params, batch)
  chosen = prefixes.select(batch, report)
  states = token_states.capture(model, params, chosen, report)
  return report, states


def run(plants, batch=BATCH, change=None, neutral='mean', **fields):
  model, params = planted.build(plants, **fields)
  if change:
    change(params['layers'])
  report, states = prepare(model, params, batch)
  return factorial.run(model, params, report, states, neutral=neutral), report


def cells(unit):
  return unit.peak_ABX.mean(axis=-1)


def needs_weight(layers):
  """The norm before layer 4's FFN lets through channel 0 alone, eightfold."""
  norm = layers['post_attention_layernorm']
  flat = jnp.zeros(planted.WIDTH).at[0].set(8.0)
  norm['weight'] = norm['weight'].at[4].set(flat)


@pytest.fixture(scope='module', name='alone')
def _alone():
  return run([Plant(4, 7, SPIKE, 3500.0), Plant(4, 2, SPIKE, 1500.0)])


def test_neurons_that_need_no_pattern_of_the_norm(alone):
  found, _ = alone
  unit = found.of_kind('me')[0]
  assert unit.layers == (4,) and unit.neurons == ((4, 7), (4, 2))
  np.testing.assert_allclose(cells(unit), [[1, 0], [1, 0]], atol=0.01)
  assert unit.raw.neurons.value == pytest.approx(-1, abs=0.01)
  assert unit.raw.norm.value == pytest.approx(0, abs=0.01)
  assert unit.raw.interaction.value == pytest.approx(0, abs=0.01)
  assert unit.log.neurons.value < -4
  assert found.prefixes == 3 and found.left_out == 0
  assert found.norm == 'post_attention_layernorm' and not found.after


def test_controls_do_nothing(alone):
  found, _ = alone
  assert len(found.of_kind('random')) == 5
  assert len(found.of_kind('layer')) == planted.LAYERS - 1
  for unit in found.units[1:]:
    assert len(unit.neurons) == 2
    assert not {(4, 7), (4, 2)} & set(unit.neurons)
    np.testing.assert_allclose(unit.peak_ABX, 1, atol=0.02)
  for kind, layers in (('matched', {4}), ('random', {4})):
    for unit in found.of_kind(kind):
      assert {layer for layer, _ in unit.neurons} == layers
  assert [u.layers for u in found.of_kind('layer')] == [
    (i,) for i in range(planted.LAYERS) if i != 4
  ]


def test_a_halved_weight_leaves_a_quarter_of_a_quadratic_form(alone):
  found, _ = alone
  doses = {(d.change, d.share): d.left for d in found.doses}
  # SiLU is nearly the identity: of half the pre-activation, 4, it makes 3.93.
  assert doses['halved', 1.0].value == pytest.approx(0.2455, abs=0.003)
  assert {change for change, _ in doses} == {
    'halved', 'largest', 'smallest', 'random'
  }  # fmt: skip


def test_a_spike_that_needs_both():
  plant = Plant(4, 7, SPIKE, 5000.0 / 64)
  found, report = run([plant], change=needs_weight)
  assert report.layer == 4
  unit = found.of_kind('me')[0]
  # The mean is 1/8, 64 times less, in a quadratic form.
  np.testing.assert_allclose(cells(unit), [[1, 0], [0, 0]], atol=0.01)
  for effect, value in zip(unit.raw, (-0.5, -0.5, 1.0)):
    assert effect.value == pytest.approx(value, abs=0.01)
    assert effect.low <= effect.value <= effect.high
  doses = {(d.change, d.share): d.left.value for d in found.doses}
  assert doses['largest', 0.1] == pytest.approx(0, abs=0.01)
  assert doses['smallest', 0.25] == pytest.approx(1, abs=0.01)
  # Random channels hold channel 0 in some draws.
  assert doses['random', 0.1] > 0.3
  for other in found.of_kind('layer'):
    np.testing.assert_allclose(other.peak_ABX, 1, atol=0.02)


def test_effects_are_their_formulas():
  random = np.random.default_rng(0)
  y = random.normal(size=(2, 2, 7))
  found = factorial.effects(y)
  (y00, y01), (y10, y11) = y
  want = (
    ((y10 - y00) + (y11 - y01)) / 2,
    ((y01 - y00) + (y11 - y10)) / 2,
    y11 - y10 - y01 + y00,
  )
  for effect, values in zip(found, want):
    assert effect.value == pytest.approx(values.mean())
    assert effect.low < effect.value < effect.high
  # What multiplies has an interaction, but none between logarithms.
  y = np.array([[1.0, 0.5], [0.2, 0.1]])[..., None]
  assert factorial.effects(y).interaction.value == pytest.approx(0.4)
  assert factorial.effects(np.log(y)).interaction.value == pytest.approx(0)


@pytest.mark.parametrize('placement', ['pre', 'post', 'sandwich'])
def test_cells_equal_models_changed_by_hand(placement):
  fields = {'norm_placement': placement}
  if placement == 'sandwich':
    fields['norm_offset'] = 1.0
  norm = {
    'pre': 'post_attention_layernorm',
    'sandwich': 'pre_feedforward_layernorm',
    'post': 'post_feedforward_layernorm',
  }[placement]
  plants = [Plant(4, 7, SPIKE, 4000.0 if placement == 'pre' else 0.03)]
  model, params = planted.build(plants, **fields)
  layers = params['layers']
  random = np.random.default_rng(5)
  noise = jnp.asarray(random.normal(0, 0.3, (planted.LAYERS, planted.WIDTH)))
  layers[norm]['weight'] = layers[norm]['weight'] + noise.astype(jnp.float32)
  if placement != 'pre':
    planted.let_through(params, plants)
  report, states = prepare(model, params)
  assert report.layer == 4 and report.neurons
  found = factorial.run(model, params, report, states, neutral='zero')
  assert found.norm == norm and found.after == (placement == 'post')
  plain = _spikes(model, params, report, found)
  for unit in found.units[:3] + found.of_kind('layer')[:6:2]:
    for a in range(2):
      for b in range(2):
        changed = _by_hand(params, norm, unit, a, b)
        y_X = _spikes(model, changed, report, found, states) / plain
        np.testing.assert_allclose(
          unit.peak_ABX[a, b], y_X, rtol=2e-3, atol=1e-4
        )


def _by_hand(params, norm, unit, a, b):
  layers = jax.tree.map(lambda leaf: leaf, params['layers'])
  weight = layers[norm]['weight']
  for layer in unit.layers if a else ():
    weight = weight.at[layer].set(weight[layer].mean())
  layers[norm]['weight'] = weight
  kernel = layers['mlp']['down_proj']['kernel']
  for layer, neuron in unit.neurons if b else ():
    kernel = kernel.at[layer, neuron].set(0)
  layers['mlp']['down_proj']['kernel'] = kernel
  return params | {'layers': layers}


def _spikes(model, params, report, found, stock=None):
  """Projections on the stock plateau, from a pass of its own."""
  chosen = prefixes.select(BATCH, report)
  states = token_states.capture(model, params, chosen, report)
  stock = stock or states
  resid = states.massive['resid_post'].astype(np.float64)
  at = resid[found.peak_X, np.arange(found.prefixes)]
  unit = stock.plateau_XD / np.linalg.norm(stock.plateau_XD, axis=1)[:, None]
  return (at * unit).sum(axis=1)


def test_a_layer_behind_the_peak_shows_at_the_end_of_the_plateau():
  found, report = run(
    [Plant(4, 7, SPIKE, 5000.0), Plant(6, 3, SPIKE, -1000.0, read=SPIKE)]
  )
  assert report.plateau == (4, 7) and (found.peak_X < 6).all()
  unit = next(u for u in found.of_kind('layer') if u.layers == (6,))
  assert (6, 3) in unit.neurons
  np.testing.assert_allclose(unit.peak_ABX, 1)
  assert unit.end_ABX[0, 1].mean() == pytest.approx(5 / 4, abs=0.02)


def test_all_layers_of_a_multi_step_span_are_switched_together():
  found, report = run(
    [Plant(3, 7, SPIKE, 2000.0), Plant(4, 2, SPIKE, 3000.0, read=SPIKE)]
  )
  assert report.verdict == 'multi-step'
  unit = found.of_kind('me')[0]
  assert unit.layers == (3, 4)
  assert set(unit.neurons) == {(3, 7), (4, 2)}
  assert abs(cells(unit)[0, 1]) < 0.02
  assert {u.layers[0] for u in found.of_kind('layer')} == {0, 1, 2, 5, 6, 7}
  for other in found.of_kind('random'):
    assert sorted(layer for layer, _ in other.neurons) == [3, 4]


def test_a_gradual_span_is_tested_as_a_whole():
  found, report = run(
    [Plant(1, 7, SPIKE, 800.0)]
    + [Plant(i, 7, SPIKE, 800.0, read=SPIKE) for i in range(2, 7)]
  )
  assert report.verdict == 'gradual' and not report.neurons
  unit = found.of_kind('me')[0]
  assert unit.layers == report.span
  assert {(i, 7) for i in report.span} <= set(unit.neurons)
  assert cells(unit)[0, 1] < 0.3


@pytest.mark.parametrize('bos_channel', [40.0, 5000.0])
def test_without_a_span_nothing_is_tested(bos_channel):
  found, report = run([], bos_channel=bos_channel)
  assert report.verdict == ('none' if bos_channel == 40 else 'embedding')
  assert not found.tested and found.reason
  assert found.units == found.doses == ()


def test_the_cause_in_bfloat16_with_several_massive_tokens():
  model, params = planted.build([Plant(4, 7, SPIKE, 5000.0)])
  batch = batch_lib.make_batch([[planted.BOS, 5, planted.BOS, 6, 7]] * 2)
  low = model.clone(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  report, states = prepare(low, half, batch)
  found = factorial.run(low, half, report, states)
  assert found.prefixes == 1
  unit = found.of_kind('me')[0]
  np.testing.assert_allclose(cells(unit), [[1, 0], [1, 0]], atol=0.02)
  assert unit.raw.norm.low == unit.raw.norm.high, 'of one there is no interval'
  seen = attribution.attribute(low, half, report, states)
  assert seen.alignment_GSL[0, 0, 4] == pytest.approx(0.99, abs=0.02)


def test_all_conditions_are_one_compile(monkeypatch):
  model, params = planted.build([Plant(4, 7, SPIKE, 5000.0)])
  report, states = prepare(model, params)
  chex.clear_trace_counter()
  counted = jax.jit(
    chex.assert_max_traces(switches._sweep.__wrapped__, n=1),
    static_argnums=(0, 1, 2),
  )
  monkeypatch.setattr(switches, '_sweep', counted)
  first = factorial.run(model, params, report, states)
  again = factorial.run(model, params, report, states, neutral='zero', seed=1)
  assert first.tested and again.tested


def test_the_stock_model_is_untouched_to_the_bit():
  model, params = planted.build([Plant(4, 7, SPIKE, 5000.0)])
  tokens, segments = batch_lib.make_batch([[planted.BOS]])
  direction = np.eye(planted.WIDTH, dtype=np.float32)[[SPIKE]]
  neutral = np.zeros((planted.LAYERS, planted.FFN), np.float32)
  rank = np.zeros((1, planted.LAYERS, planted.WIDTH))
  left = switches.sweep(
    model, params, 'post_attention_layernorm', tokens, segments,
    switches.stock(3, planted.LAYERS, 2),
    direction_XD=direction, neutral_LF=neutral, rank_RLD=rank,
  )  # fmt: skip
  assert (left == 1).all()
