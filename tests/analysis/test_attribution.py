"""What norm and FFN do to tokens: plain formulas, and plants that are known."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.analysis import attribution
from me_jax.analysis import layer_view
from me_jax.analysis import prefixes
from me_jax.analysis import token_states
from me_jax.models import batch as batch_lib
from me_jax.models import block
from tests.support import planted
from tests.support.planted import Plant

FAMILIES = {
  'pre': dict(mlp_bias=True),
  'post': dict(norm_placement='post', norm_in_float32=True),
  'sandwich': dict(
    norm_placement='sandwich', norm_offset=1.0, norm_in_float32=True,
    hidden_act='gelu_pytorch_tanh', embedding_scale=4.0,
  ),
}  # fmt: skip


def explain(model, params, batch=None, **kwargs):
  batch = batch or planted.batch()
  report = me_jax.find_me_layer(model, params, batch)
  chosen = prefixes.select(batch, report)
  states = token_states.capture(model, params, chosen, report)
  found = attribution.attribute(model, params, report, states, **kwargs)
  return found, report, states


def plain(model, params, states, layer, channels):
  """The same numbers in float64 NumPy, token by token."""
  config = model.config
  layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64)[layer],
                        params['layers'])  # fmt: skip
  seen = {
    site: np.concatenate([states.massive[site], states.ordinary[site]], axis=1)[
      layer
    ].astype(np.float64)
    for site in ('attn_in', 'resid_mid', 'ffn_in', 'ffn_out')
  }
  given = seen['ffn_in']
  kernel = {k: layers['mlp'][f'{k}_proj']['kernel'] for k in ('gate', 'up')}
  kernel['down'] = layers['mlp']['down_proj']['kernel'].T
  bias = {
    k: layers['mlp'][f'{k}_proj'].get('bias', 0.0)
    for k in ('gate', 'up', 'down')
  }
  pre = {k: given @ kernel[k] + bias[k] for k in ('gate', 'up')}
  x, h = seen['resid_mid'], given
  if config.norm_placement == 'post':
    act = pre['gate'] / (1 + np.exp(-pre['gate'])) * pre['up']
    x, h = act @ kernel['down'].T + bias['down'], seen['ffn_out']

  def length(v, axis=-1):
    return np.sqrt((v**2).sum(axis=axis))

  cos = {
    k: (given @ kernel[k]) / length(given)[:, None] / length(kernel[k], 0)
    for k in ('gate', 'up')
  }
  energy = np.sort(h**2, axis=-1)[:, ::-1] / (h**2).sum(axis=-1, keepdims=True)
  return {
    'scale': 1 / np.sqrt((x**2).mean(axis=-1) + config.rms_norm_eps),
    'gain': length(h) / length(x),
    'energy': np.stack([energy[:, :n].sum(axis=-1) for n in (1, 5, 10)], -1),
    'ffn_gain': length(seen['ffn_out']) / length(given),
    'alignment': np.abs(cos['gate'] * cos['up']).max(axis=-1),
    'attn_in': np.abs(seen['attn_in'][:, channels]),
    'ffn_in': np.abs(given[:, channels]),
    'pre': pre,
    'cos': cos,
    'kernel': kernel,
  }


def summary(values, split):
  """Mean and quantiles of both groups, tokens first."""
  return np.stack(
    [
      np.stack([g.mean(axis=0), *np.quantile(g, [0.1, 0.9], axis=0)])
      for g in (values[:split], values[split:])
    ]
  )


@pytest.mark.parametrize('placement', FAMILIES)
def test_every_number_equals_its_formula(placement):
  amount = 5000.0 if placement == 'pre' else 0.03
  plants = [Plant(4, 7, 9, amount), Plant(4, 2, 9, amount * 0.7)]
  model, params = planted.build(plants, **FAMILIES[placement])
  random = np.random.default_rng(3)
  for name, norm in params['layers'].items():
    if 'weight' in norm:  # as the norms of trained models: no two alike
      noise = random.normal(0, 0.3, norm['weight'].shape)
      norm['weight'] = norm['weight'] + jnp.asarray(noise, jnp.float32)
      assert name.endswith('layernorm')
  if placement != 'pre':
    planted.let_through(params, plants)
  found, report, states = explain(model, params)
  assert report.layer == 4 and len(found.dominating.index_I)
  split = found.prefixes
  assert found.ordinary == 48
  channels = [c.index for c in report.channels]
  chex.assert_trees_all_close(found.channels_K, np.array(channels, np.int32))
  for layer in (0, 4, 6):
    want = plain(model, params, states, layer, channels)
    for name, suffix in (
      ('scale', 'GSL'), ('gain', 'GSL'), ('ffn_gain', 'GSL'),
      ('alignment', 'GSL'), ('energy', 'GSLE'), ('attn_in', 'GSLK'),
      ('ffn_in', 'GSLK'),
    ):  # fmt: skip
      got = getattr(found, f'{name}_{suffix}')[:, :, layer]
      np.testing.assert_allclose(
        got, summary(want[name], split), rtol=2e-4, atol=1e-5, err_msg=name
      )
    # The neuron that is best aligned with the massive token, in every layer.
    match = np.abs(want['cos']['gate'] * want['cos']['up'])[:split].mean(axis=0)
    table, i = found.aligned, layer
    assert table.layer_I[i] == layer and table.index_I[i] == match.argmax()
    _same(table, i, int(match.argmax()), want, split)
  for norm, got in (
    (found.attn_norm, found.gamma_attn_LK), (found.norm, found.gamma_ffn_LK)
  ):  # fmt: skip
    weight = np.asarray(params['layers'][norm]['weight'], np.float64)
    weight = np.abs(weight + model.config.norm_offset)
    ratio = weight / np.median(weight, axis=1, keepdims=True)
    assert channels
    np.testing.assert_allclose(got, ratio[:, channels], rtol=1e-5)
  for table in (found.dominating, found.random):
    for i in range(len(table.index_I)):
      layer = int(table.layer_I[i])
      want = plain(model, params, states, layer, channels)
      _same(table, i, int(table.index_I[i]), want, split)


def _same(table, i, neuron, want, split):
  for key in ('gate', 'up'):
    for name, values in (('', want['pre']), ('_cos', want['cos'])):
      np.testing.assert_allclose(
        getattr(table, f'{key}{name}_GSI')[:, :, i],
        summary(values[key][:, neuron], split),
        rtol=2e-4,
        atol=2e-5,
      )
  kernel = want['kernel']
  size = {k: np.linalg.norm(v, axis=0) for k, v in kernel.items()}
  for one, other in (('gate', 'up'), ('gate', 'down'), ('up', 'down')):
    dot = kernel[one][:, neuron] @ kernel[other][:, neuron]
    cos = dot / size[one][neuron] / size[other][neuron]
    got = getattr(table, f'{one}_{other}_cos_I')[i]
    np.testing.assert_allclose(got, cos, atol=1e-5)
  for key, values in size.items():
    ratio = values[neuron] / np.median(values)
    got = getattr(table, f'{key}_size_I')[i]
    np.testing.assert_allclose(got, ratio, rtol=1e-4)


def test_a_planted_neuron_is_aligned_large_and_selective():
  model, params = planted.build(
    [Plant(4, 7, 9, 3500.0), Plant(4, 2, 9, 1500.0)]
  )
  found, _, _ = explain(model, params)
  assert found.dominating.index_I.tolist() == [7, 2]
  assert found.dominating.layer_I.tolist() == [4, 4]
  massive, ordinary = found.alignment_GSL[:, attribution.MEAN]
  # BOS is 40 in channel 0 against noise of 0.5 in 63 others: cosine 0.995.
  assert massive[4] == pytest.approx(0.99, abs=0.02)
  assert np.delete(massive, 4).max() < 0.3 and ordinary.max() < 0.3
  np.testing.assert_allclose(
    found.dominating.gate_GSI[0, 0], np.sqrt(planted.WIDTH), rtol=0.02
  )
  assert np.abs(found.dominating.gate_GSI[1, 0]).max() < 1
  assert found.dominating.gate_up_cos_I == pytest.approx([1.0, 1.0])
  gain, ordinary_gain = found.ffn_gain_GSL[:, 0]
  assert gain[4] == pytest.approx(5000 / 8, rel=0.05)
  assert ordinary_gain[4] < 1
  assert found.random.layer_I.tolist() == [4] * (planted.FFN - 2)
  assert not {7, 2} & set(found.random.index_I.tolist())
  # All of the state's norm is in one channel, before and after the spike.
  np.testing.assert_allclose(found.energy_GSLE[0, 0, :, 0], 1, atol=0.05)


def test_the_weight_at_the_massive_channel_is_over_the_median():
  model, params = planted.build([Plant(4, 7, 9, 5000.0)])
  for name, factor in (
    ('input_layernorm', 0.25), ('post_attention_layernorm', 3.0)
  ):  # fmt: skip
    norm = params['layers'][name]
    norm['weight'] = norm['weight'].at[6, 9].set(factor) * 2.0
  found, _, _ = explain(model, params)
  assert found.gamma_attn_LK[6, 0] == pytest.approx(0.25)
  assert found.gamma_ffn_LK[6, 0] == pytest.approx(3.0)
  assert found.gamma_ffn_LK[5, 0] == pytest.approx(1.0)
  assert found.attn_in_GSLK[0, 0, 6, 0] == pytest.approx(0.5 * 8, rel=0.01)
  assert found.ffn_in_GSLK[0, 0, 6, 0] == pytest.approx(6 * 8, rel=0.01)


def test_without_massive_activations_first_tokens_are_shown():
  model, params = planted.build([])
  found, _, _ = explain(model, params)
  assert not found.massive
  assert found.scale_GSL.shape == (2, 3, planted.LAYERS)
  assert np.isfinite(found.scale_GSL).all()
  assert found.channels_K.size == 0
  assert found.dominating.index_I.size == found.random.index_I.size == 0
  assert len(found.aligned.index_I) == planted.LAYERS


def test_texts_without_ordinary_tokens_leave_that_group_blank():
  model, params = planted.build([Plant(4, 7, 9, 5000.0)])
  batch = batch_lib.make_batch([[planted.BOS], [planted.BOS, planted.BOS]])
  found, _, _ = explain(model, params, batch)
  assert found.ordinary == 0
  assert np.isnan(found.scale_GSL[1]).all()
  assert np.isfinite(found.scale_GSL[0]).all()


def test_several_layers_have_their_own_neurons():
  model, params = planted.build(
    [Plant(3, 7, 9, 2000.0), Plant(4, 2, 9, 3000.0, read=9)]
  )
  found, report, _ = explain(model, params)
  assert report.verdict == 'multi-step'
  pairs = zip(found.dominating.layer_I, found.dominating.index_I)
  assert set(pairs) == {(3, 7), (4, 2)}
  assert set(found.random.layer_I.tolist()) == {3, 4}


def test_all_layers_are_one_compile(monkeypatch):
  model, params = planted.build([Plant(4, 7, 9, 5000.0)])
  chex.clear_trace_counter()
  counted = jax.jit(
    chex.assert_max_traces(layer_view.measure.__wrapped__, n=1),
    static_argnums=0,
  )
  monkeypatch.setattr(layer_view, 'measure', counted)
  found, _, _ = explain(model, params)
  assert np.isfinite(found.alignment_GSL).all()


def test_results_are_frozen_and_on_the_host():
  model, params = planted.build([Plant(4, 7, 9, 5000.0)])
  found, _, _ = explain(model, params)
  with pytest.raises(dataclasses.FrozenInstanceError):
    found.prefixes = 3
  for value in vars(found).values():
    assert not isinstance(value, jax.Array)


def test_names_of_norms():
  assert attribution.norm_names('pre') == (
    'post_attention_layernorm', 'input_layernorm'
  )  # fmt: skip
  assert attribution.norm_names('sandwich') == (
    'pre_feedforward_layernorm', 'input_layernorm'
  )  # fmt: skip
  assert attribution.norm_names('post') == (
    'post_feedforward_layernorm', 'post_attention_layernorm'
  )  # fmt: skip
  assert set(block.FFN_NORMS) == {'pre', 'post', 'sandwich'}
