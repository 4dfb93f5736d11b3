"""Adapters against explicit sums in float64, and where they are."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.training import lora
from tests.support import planted

BATCH = planted.batch(count=2)
KEY = jax.random.key(0)
LAYERS = (2, 5, 6)
SIZES = {
  'q_proj': (64, 64),
  'k_proj': (64, 32),
  'v_proj': (64, 32),
  'o_proj': (64, 64),
  'gate_proj': (64, 24),
  'up_proj': (64, 24),
  'down_proj': (24, 64),
}


@pytest.fixture(scope='module', name='stock')
def _stock():
  return planted.build(planted.VERDICTS['single'])


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params):
  return model.apply({'params': params}, *BATCH).logits


def random(adapters, seed=1):
  """Adapters that do something."""
  numbers = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(numbers.normal(0, 0.1, leaf.shape), jnp.float32),
    adapters,
  )


def flat(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def test_adapters_change_nothing_before_the_first_step(stock):
  model, params = stock
  settings = lora.Lora()
  adapters = lora.init(params, settings, LAYERS, KEY)
  assert all((np.asarray(pair['a']) != 0).all() for pair in adapters.values())
  merged = lora.merge(params, adapters, settings, LAYERS)
  jax.tree.map(np.testing.assert_array_equal, merged, params)
  np.testing.assert_array_equal(logits(model, merged), logits(model, params))


@pytest.mark.parametrize('target', lora.TARGETS)
@pytest.mark.parametrize('layers', [LAYERS, tuple(range(planted.LAYERS))])
def test_merged_is_the_explicit_sum(stock, target, layers):
  _, params = stock
  settings = lora.Lora(rank=3, alpha=7.0, targets=(target,))
  adapters = random(lora.init(params, settings, layers, KEY))
  found = flat(lora.merge(params, adapters, settings, layers))
  want = flat(params)
  path = f'layers/{lora.BRANCHES[target]}/{target}/kernel'
  kernel_LIO = want.pop(path).astype(float)
  for i, layer in enumerate(layers):
    a_IR, b_RO = (np.asarray(adapters[target][x][i], float) for x in 'ab')
    for column in range(3):
      kernel_LIO[layer] += 7 / 3 * np.outer(a_IR[:, column], b_RO[column])
  # float32 has 24 bits, of kernels below 5 and sums of three.
  np.testing.assert_allclose(found.pop(path), kernel_LIO, atol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, found, want)


def test_the_gradient_is_its_closed_form(stock):
  """Of the mean of W' over the layers, weighed: dA = s C Bᵀ, dB = s Aᵀ C."""
  _, params = stock
  settings = lora.Lora(rank=2, alpha=3.0, targets=('down_proj',))
  adapters = random(lora.init(params, settings, LAYERS, KEY))
  numbers = np.random.default_rng(3)
  weight_LIO = numbers.normal(size=(planted.LAYERS, 24, 64)).astype(np.float32)

  def loss(adapters):
    merged = lora.merge(params, adapters, settings, LAYERS)
    return (weight_LIO * merged['layers']['mlp']['down_proj']['kernel']).sum()

  found = jax.jit(jax.grad(loss))(adapters)['down_proj']
  weight_GIO = 1.5 * weight_LIO[list(LAYERS)].astype(float)
  a_GIR, b_GRO = (np.asarray(adapters['down_proj'][x], float) for x in 'ab')
  tolerance = dict(rtol=1e-4, atol=1e-5)  # sums of 24 to 64 in float32
  np.testing.assert_allclose(
    found['a'], np.einsum('gio,gro->gir', weight_GIO, b_GRO), **tolerance
  )
  np.testing.assert_allclose(
    found['b'], np.einsum('gir,gio->gro', a_GIR, weight_GIO), **tolerance
  )


def test_bfloat16_is_rounded_once(stock):
  _, params = stock
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  settings = lora.Lora(targets=('v_proj',))
  adapters = random(lora.init(params, settings, LAYERS, KEY))
  assert adapters['v_proj']['a'].dtype == jnp.float32
  kernels = [
    lora.merge(params, adapters, settings, LAYERS, dtype)['layers'][
      'self_attn'
    ]['v_proj']['kernel']
    for dtype in (None, jnp.float32)
  ]
  assert [k.dtype for k in kernels] == [jnp.bfloat16, jnp.float32]
  np.testing.assert_array_equal(kernels[0], kernels[1].astype(jnp.bfloat16))
  assert (np.asarray(kernels[0], np.float32) != np.asarray(kernels[1])).any()


def test_sizes_are_those_of_the_kernels(stock):
  model, params = stock
  settings = lora.Lora(rank=3)
  adapters = lora.init(params, settings, LAYERS, KEY)
  for target, (fan_in, fan_out) in SIZES.items():
    assert adapters[target]['a'].shape == (3, fan_in, 3)
    assert adapters[target]['b'].shape == (3, 3, fan_out)
    own = lora.Lora(rank=3, targets=(target,))
    assert lora.size(model.config, own, 5) == 5 * 3 * (fan_in + fan_out)
  leaves = jax.tree.leaves(adapters)
  assert lora.size(model.config, settings, 3) == sum(x.size for x in leaves)


def test_random_numbers_are_the_keys_and_do_not_depend_on_other_targets(stock):
  _, params = stock
  one = lora.init(params, lora.Lora(targets=('v_proj',)), LAYERS, KEY)
  every = lora.init(params, lora.Lora(), LAYERS, KEY)
  other = lora.init(params, lora.Lora(), LAYERS, jax.random.key(1))
  np.testing.assert_array_equal(one['v_proj']['a'], every['v_proj']['a'])
  assert (every['v_proj']['a'] != other['v_proj']['a']).all()
  assert (every['v_proj']['a'] != every['k_proj']['a']).all()
  # 3 layers × 64 × 8 numbers: their spread is known to 2 %.
  assert float(every['v_proj']['a'].std()) == pytest.approx(1 / 8, rel=0.07)


def test_axes_are_the_kernels_ends(stock):
  model, params = stock
  abstract = jax.eval_shape(model.init, KEY, BATCH.tokens_BT)
  settings = lora.Lora()
  found = lora.axes(nn.get_partition_spec(abstract['params']), settings)
  spec = jax.sharding.PartitionSpec
  assert found['q_proj']['a'] == spec(None, 'embed', None)
  assert found['q_proj']['b'] == spec(None, None, 'heads')
  assert found['v_proj']['b'] == spec(None, None, 'kv_heads')
  assert found['down_proj']['a'] == spec(None, 'mlp', None)
  assert found['down_proj']['b'] == spec(None, None, 'embed')
  adapters = lora.init(params, settings, LAYERS, KEY)
  jax.tree.map(lambda leaf, axes: None, adapters, found)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(rank=0), 'rank of LoRA is 0'),
    (dict(rank=1.5), 'rank of LoRA is 1.5'),
    (dict(rank=True), 'rank of LoRA is True'),
    (dict(alpha=0), 'alpha of LoRA is 0'),
    (dict(alpha=float('inf')), 'alpha of LoRA is inf'),
    (dict(targets=('qproj',)), "did you mean 'q_proj'"),
    (dict(targets=('lm_head',)), "no target 'lm_head'"),
    (dict(targets=()), 'needs a tuple of targets'),
    (dict(targets='q_proj'), 'needs a tuple of targets'),
    (dict(targets=('q_proj', 'q_proj')), 'a target twice'),
  ],
)
def test_impossible_adapters_are_refused(settings, message):
  with pytest.raises(me_jax.MeJaxError, match=message):
    lora.check(lora.Lora(**settings))
