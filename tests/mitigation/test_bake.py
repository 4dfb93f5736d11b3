"""Weights that stand for a mask: exactly where they can, refused elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.mitigation import bake
from me_jax.mitigation import moments
from me_jax.models import batch as batch_lib
from me_jax.models import decoder
from tests.support import planted

LAYERS, WIDTH = planted.LAYERS, planted.WIDTH
PLANTS = [planted.Plant(4, 7, 9, 5000.0)]
KERNELS = ('q_proj', 'k_proj', 'v_proj')


def rigid(plants=PLANTS, **fields):
  """A model in which only massive tokens have anything in channels 0 and 9."""
  after = fields.get('norm_placement', 'pre') != 'pre'
  if after:
    plants = [plant._replace(amount=0.03) for plant in plants]
  model, params = planted.build(plants, **fields)
  if after:
    planted.let_through(params, plants)
  params = jax.tree.map(np.array, params)
  params['embed_tokens']['embedding'][:, 9] = 0.0
  layers = params['layers']
  # Larger than planted: what attention reads must matter.
  for name in KERNELS:
    layers['self_attn'][name]['kernel'] *= 5
  layers['self_attn']['o_proj']['kernel'][:, :, [0, 9]] = 0.0
  down = layers['mlp']['down_proj']['kernel']
  ours = {(plant.layer, plant.neuron) for plant in plants}
  for layer, neuron in np.ndindex(down.shape[:2]):
    if (layer, neuron) not in ours:
      down[layer, neuron, [0, 9]] = 0.0
  return model, jax.tree.map(jnp.asarray, params)


def masked(params, layers=slice(5, None), scale=None, **leaves):
  """Scales half of the channels, the massive one included, by 0."""
  scale_LD = np.ones((LAYERS, WIDTH), np.float32)
  if scale is None:
    scale = np.arange(WIDTH) % 2 == 0
  scale_LD[layers] = scale
  layers = {**params['layers'], 'sink_scale': jnp.asarray(scale_LD)}
  return {**params, 'layers': layers, **leaves}


_apply = jax.jit(decoder.Decoder.apply, static_argnums=0)


def logits(model, params, batch):
  out = _apply(model, {'params': params}, *batch)
  return np.asarray(out.logits)[batch.segments_BT > 0]


def kept_of_mask(model, tree, params, baked, batch):
  exact, stock, made = (
    logits(model, x, batch) for x in (tree, params, baked.params)
  )
  return 1 - np.linalg.norm(made - exact) / np.linalg.norm(stock - exact)


CALIBRATION = planted.batch(count=24, length=20)
OTHERS = planted.batch(count=6, length=16, seed=7)

VARIANTS = {
  'llama': {},
  'qkv bias': {'attention_bias': True},
  'sandwich': {'norm_placement': 'sandwich', 'norm_offset': 1.0},
  'post': {'norm_placement': 'post', 'qk_norm': 'projection'},
}


@pytest.mark.parametrize('fields', VARIANTS.values(), ids=VARIANTS)
def test_baked_is_the_mask_where_the_token_is_rigid(fields):
  model, params = rigid(**fields)
  tree = masked(params)
  baked = bake.bake(model, tree, CALIBRATION)
  exact = logits(model, tree, OTHERS)
  # The mask does something, or being equal would say nothing.
  assert np.abs(exact - logits(model, params, OTHERS)).max() > 1e-3
  np.testing.assert_allclose(
    logits(model, baked.params, OTHERS), exact, atol=1e-5
  )
  assert [layer.layer for layer in baked.layers] == [5, 6, 7]
  for layer in baked.layers:
    assert layer.marked == 24 and layer.rank == 1
    assert layer.least_rigidity == pytest.approx(1.0, abs=1e-6)
    assert set(layer.missing) == {'k_proj', 'v_proj'}
    assert max(layer.missing.values()) < 1e-3
    assert max(layer.disturbance.values()) < 1e-3


def test_nothing_else_is_touched():
  model, params = rigid()
  tree = masked(params)
  baked = bake.bake(model, tree, CALIBRATION).params
  assert jax.tree.structure(baked) == jax.tree.structure(params)
  for name in ('k_proj', 'v_proj'):
    new, old = (x['layers']['self_attn'].pop(name)['kernel']
                for x in (baked, jax.tree.map(lambda leaf: leaf, params)))  # fmt: skip
    changed = np.asarray(new != old).any(axis=(1, 2))
    assert changed.tolist() == [False] * 5 + [True] * 3
  # Among them the queries: a first token sees itself alone.
  del params['layers']['self_attn']['k_proj']
  del params['layers']['self_attn']['v_proj']
  assert jax.tree.all(
    jax.tree.map(lambda a, b: bool((a == b).all()), baked, params)
  )


def test_the_edit_is_the_papers_with_one_direction():
  random = np.random.default_rng(0)
  mean_D = random.normal(size=WIDTH).astype(np.float32)
  seen_XD = random.normal(size=(500, WIDTH))
  received = moments.Received(
    3, np.stack([mean_D] * 4), seen_XD.T @ seen_XD / 500, 500
  )
  kernel_DF = random.normal(size=(WIDTH, 10))
  scale_D = random.uniform(0, 1.5, WIDTH)
  edit = bake._edit(received, 1e-9)
  found_DF = edit.write_DR @ (
    edit.read_RD @ ((scale_D - 1)[:, None] * kernel_DF)
  )
  metric_DD = received.ordinary_DD
  metric_DD = metric_DD + 1e-3 * np.trace(metric_DD) / WIDTH * np.eye(WIDTH)
  mean_D = mean_D.astype(np.float64)
  v_D = np.linalg.inv(metric_DD) @ mean_D
  v_D /= mean_D @ v_D
  # W' = W - (W d) vᵀ, with W = Kᵀ and d the masked part of the mean.
  removed_D = (1 - scale_D) * mean_D
  expected_FD = -np.outer(kernel_DF.T @ removed_D, v_D)
  np.testing.assert_allclose(found_DF.T, expected_FD, atol=1e-6)
  assert edit.rank == 1


def test_the_edit_minimises_what_it_says():
  random = np.random.default_rng(1)
  marked_XD = random.normal(size=(7, 12)).astype(np.float32) + 3.0
  seen_XD = random.normal(size=(90, 12))
  received = moments.Received(0, marked_XD, seen_XD.T @ seen_XD / 90, 90)
  change_DF = random.normal(size=(12, 5))
  edit = bake._edit(received, 0.3)
  made_DF = edit.write_DR @ (edit.read_RD @ change_DF)
  ridge = 1e-3 * np.trace(received.ordinary_DD) / 12
  metric_DD = received.ordinary_DD + ridge * np.eye(12)
  marked_DD = marked_XD.astype(float).T @ marked_XD / 7
  gradient = marked_DD @ (made_DF - change_DF) + 0.3 * metric_DD @ made_DF
  assert np.abs(gradient).max() < 1e-6


def test_the_moments_are_those_of_all_tokens(monkeypatch):
  """Packed, padded, several passes, and rounds of two layers."""
  model, params = rigid()
  tree = masked(params)
  texts = planted.texts(5, length=9) + planted.texts(3, length=5)
  batch = batch_lib.make_batch(texts, pack=True, length=20)
  once = list(moments.collect(model, tree, batch, [5, 6, 7]))
  monkeypatch.setattr(moments, '_MOMENT_BYTES', 2 * 4 * WIDTH**2)
  calls = []
  rounds = list(
    moments.collect(
      model, tree, batch, [5, 6, 7], rows=3,
      progress=lambda done, total: calls.append((done, total)),
    )
  )  # fmt: skip
  assert calls[-1] == (2 * len(batch.tokens_BT),) * 2
  for a, b in zip(once, rounds, strict=True):
    assert a.layer == b.layer and len(b.marked_XD) == 8
    assert a.ordinary == b.ordinary == 5 * 9 + 3 * 5
    np.testing.assert_allclose(a.ordinary_DD, b.ordinary_DD, atol=1e-5)
    np.testing.assert_allclose(a.marked_XD, b.marked_XD, atol=1e-5)
  # Unscaled although the mask acts, and of the masked model.
  assert np.abs(once[2].marked_XD[:, 9]).min() > 7.0
  alone = batch_lib.make_batch(texts)
  single = list(moments.collect(model, tree, alone, [7]))[0]
  np.testing.assert_allclose(single.ordinary_DD, once[2].ordinary_DD, atol=1e-5)


def test_several_massive_tokens_found_by_their_size():
  model, params = rigid()
  bound = np.zeros(LAYERS, np.float32)
  bound[4] = 1000.0
  tree = masked(params, sink_bound=jnp.asarray(bound))
  # BOS is massive wherever it stands: in some texts never, in some five times.
  texts = [[5, *text[:9], *[1] * (i % 6), 7] for i, text in
           enumerate(planted.texts(30, bos=False))]  # fmt: skip
  batch = batch_lib.make_batch(texts)
  baked = bake.bake(model, tree, batch)
  assert {layer.marked for layer in baked.layers} == {75}
  # Here queries see others, so theirs change too.
  assert set(baked.layers[0].missing) == set(KERNELS)
  # What such a token has seen makes it differ a little from text to text.
  assert kept_of_mask(model, tree, params, baked, batch) > 0.95


def test_given_positions():
  model, params = rigid()
  tree = masked(params, sink_positions=jnp.array([0.0, 0.0, 1.0]))
  texts = [[text[0], 5, 1, *text] for text in planted.texts(20, bos=False)]
  batch = batch_lib.make_batch(texts)
  baked = bake.bake(model, tree, batch)
  assert set(baked.layers[0].missing) == set(KERNELS)
  assert 'sink_positions' not in baked.params
  assert kept_of_mask(model, tree, params, baked, batch) > 0.95


def test_types_are_kept():
  dtype = 'bfloat16'
  model, params = rigid()
  tree = jax.tree.map(lambda x: x.astype(dtype), masked(params, scale=0.97))
  model = model.clone(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
  baked = bake.bake(model, tree, CALIBRATION)
  assert {x.dtype.name for x in jax.tree.leaves(baked.params)} == {dtype}
  # Kernels of 8 bits cannot hold all of a small change, and that is reported.
  assert 1e-3 < baked.layers[0].missing['v_proj'] < 0.1


def test_refuses_tokens_that_differ():
  model, params = rigid()
  tree = masked(params)
  with pytest.raises(me_jax.MeJaxError, match=r'layer 5: .* is 0\.\d+, below'):
    bake.bake(model, tree, planted.batch(count=8, bos=False))


def test_refuses_what_cannot_be_baked():
  model, params = rigid()

  def refusal(tree, batch=CALIBRATION, **kwargs):
    with pytest.raises(me_jax.MeJaxError) as caught:
      bake.bake(model, tree, batch, **kwargs)
    assert '\n' not in str(caught.value)
    return str(caught.value)

  assert 'no layers/sink_scale' in refusal(params)
  assert 'all ones' in refusal(masked(params, scale=1.0))
  assert 'not finite' in refusal(masked(params, scale=np.nan))
  assert 'every token is marked' in refusal(
    masked(params), batch_lib.make_batch([[1], [1]])
  )
  bound = jnp.zeros(LAYERS).at[4].set(1e9)
  assert 'no token' in refusal(masked(params, sink_bound=bound))
  assert 'weight' in refusal(masked(params), weight=0.0)
  assert 'vocabulary' in refusal(
    masked(params), batch_lib.make_batch([[1, 999]])
  )
