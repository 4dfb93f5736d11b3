"""What is trained changes, and nothing else has a gradient or a state."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import me_jax
from me_jax.checkpoints import param_tree
from me_jax.mitigation import gates
from me_jax.models import params as params_lib
from me_jax.models import sink
from me_jax.training import lora
from me_jax.training import trained
from tests.support import planted

KEY = jax.random.key(0)
REPORT = planted.report()
BATCH = planted.batch(count=2)
# All combinations that there are.
PARTS = [
  ('gates',),
  ('lora',),
  ('full',),
  ('gates', 'lora'),
  ('full', 'gates'),
]
GATES = 3 * planted.WIDTH
SMALL = lora.Lora(rank=2, targets=('q_proj', 'down_proj'))


@pytest.fixture(scope='module', name='stock')
def _stock():
  """Of tied embeddings, one of whose leaves has two uses."""
  plants = planted.VERDICTS['single']
  return planted.build(plants, tie_word_embeddings=True, attention_bias=True)


def settings_of(parts, **fields):
  return trained.Trained(parts=parts, lora=SMALL, **fields)


def split(stock, parts, **fields):
  return trained.split(*stock, settings_of(parts, **fields), KEY, REPORT)


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params):
  return model.apply({'params': params}, *BATCH).logits


def loss(model, params):
  """Depends on every parameter; its gradients are neither tiny nor huge."""
  logits_BTV = model.apply({'params': params}, *BATCH).logits
  return -jax.nn.log_softmax(logits_BTV)[:, :, 3].mean()


def bits(tree):
  """By path, so that zeros of two signs are two things."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): (
      leaf.dtype,
      np.asarray(leaf).tobytes(),
    )
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradients(model, tree, frozen, settings):
  return jax.grad(
    lambda tree: loss(model, trained.merge(tree, frozen, settings))
  )(tree)


def stepped(model, tree, frozen, settings, optimiser):
  gradient = gradients(model, tree, frozen, settings)
  updates, _ = optimiser.update(gradient, optimiser.init(tree), tree)
  return trained.project(optax.apply_updates(tree, updates), settings)


@pytest.mark.parametrize('parts', PARTS)
def test_at_the_start_it_is_the_model_that_was_given(stock, parts):
  model, params = stock
  for start in (params, me_jax.wemask(model, params, REPORT)):
    tree, frozen = split((model, start), parts)
    merged = trained.merge(tree, frozen, settings_of(parts))
    np.testing.assert_array_equal(logits(model, merged), logits(model, start))


@pytest.mark.parametrize('parts', PARTS)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_merged_is_a_whole_tree_in_one_type(stock, parts, dtype):
  model, params = stock
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  tree, frozen = split((model, params), parts)
  assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype('f4')}
  merged = trained.merge(tree, frozen, settings_of(parts), dtype)
  param_tree.check(model.config, merged, 'the merged parameters')
  scale = merged['layers'].pop(sink.SCALE, None)
  assert (scale is not None) == ('gates' in parts)
  assert scale is None or scale.dtype == jnp.float32
  # Through float32 and back, no bit is lost.
  assert bits(merged) == bits(params)


@pytest.mark.parametrize('parts', PARTS)
def test_one_step_changes_what_is_trained_and_no_bit_elsewhere(stock, parts):
  model, params = stock
  masked = me_jax.wemask(model, params, REPORT)
  tree, frozen = split((model, masked), parts)
  settings = settings_of(parts)
  kept = bits(frozen.params)
  new = stepped(model, tree, frozen, settings, optax.adam(1e-2))
  before, after = (
    bits(trained.merge(x, frozen, settings)) for x in (tree, new)
  )
  changed = {path for path in before if before[path] != after[path]}
  scale = f'layers/{sink.SCALE}'
  kernels = {
    'layers/self_attn/q_proj/kernel',
    'layers/mlp/down_proj/kernel',
  }
  want = {
    'gates': {scale},
    'lora': kernels,
    'full': before.keys() - {scale},
  }
  assert changed == set().union(*(want[part] for part in parts))
  assert bits(frozen.params) == kept


@pytest.mark.parametrize('parts', PARTS)
def test_frozen_parameters_have_no_optimiser_state(stock, parts):
  model, _ = stock
  tree, _ = split(stock, parts)
  state = jax.tree.leaves(optax.adam(1e-3).init(tree))
  # Two moments, and one counter of steps.
  assert len(state) == 2 * len(jax.tree.leaves(tree)) + 1
  assert sum(leaf.size for leaf in state) == 2 * trained.count(tree) + 1
  whole = trained.count(params_lib.param_shapes(model.config, 'float32'))
  adapters = 2 * 8 * (64 + 64 + 24 + 64)
  sizes = {'gates': GATES, 'lora': adapters, 'full': whole}
  want = sum(sizes[part] for part in parts)
  assert trained.count(tree) == want
  assert trained.size(model, settings_of(parts), REPORT) == want


@pytest.mark.parametrize('parts', PARTS)
def test_below_the_first_layer_nothing_is_trained(stock, parts):
  """A model that does not differentiate those layers learns the same."""
  model, params = stock
  some = dataclasses.replace(SMALL, layers=(2, 6))
  settings = trained.Trained(parts=parts, lora=some)
  tree, frozen = trained.split(model, params, settings, KEY, REPORT)
  first = trained.first_layer(frozen, settings)
  assert first == min({'gates': 5, 'lora': 2, 'full': 0}[p] for p in parts)
  plain = gradients(model, tree, frozen, settings)
  found = gradients(model.clone(frozen_layers=first), tree, frozen, settings)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, plain
  )


def test_gradients_of_gates_are_those_of_the_scale(stock):
  model, params = stock
  masked = me_jax.wemask(model, params, REPORT, strength=0.5)
  tree, frozen = split((model, masked), ('gates',))
  found_GD = gradients(model, tree, frozen, settings_of(('gates',)))['gates']
  want = jax.grad(lambda params: loss(model, params))(masked)
  want_GD = want['layers'][sink.SCALE][5:]
  np.testing.assert_allclose(found_GD, want_GD, rtol=1e-4, atol=1e-9)
  assert (np.asarray(found_GD) != 0).any(axis=1).all()


def test_gradients_of_full_are_those_of_the_parameters(stock):
  """The tied embedding's too, which is read and is the head."""
  model, params = stock
  tree, frozen = split(stock, ('full',))
  found = gradients(model, tree, frozen, settings_of(('full',)))['full']
  want = jax.grad(lambda params: loss(model, params))(params)
  jax.tree.map(
    # The order of sums in two programs.
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6),
    found,
    want,
  )
  # Read, of tokens that occur; of the head, of all.
  row_V = np.abs(found['embed_tokens']['embedding']).max(axis=1)
  assert (row_V > 0).all()


def test_full_has_the_tied_embedding_once(stock):
  tree, frozen = split(stock, ('full',))
  shapes = [leaf.shape for leaf in jax.tree.leaves((tree, frozen))]
  assert shapes.count((planted.VOCAB, planted.WIDTH)) == 1
  assert not jax.tree.leaves(frozen)


@pytest.mark.parametrize('parts', [('lora',), ('full',)])
def test_a_mask_stays_in_force_while_other_things_are_trained(stock, parts):
  model, params = stock
  masked = me_jax.wemask(model, params, REPORT, tokens=[0, 3])
  tree, frozen = split((model, masked), parts)
  assert bits(frozen.params).keys() >= {
    f'layers/{sink.SCALE}',
    sink.POSITIONS,
  }
  new = stepped(model, tree, frozen, settings_of(parts), optax.sgd(1.0))
  merged = trained.merge(new, frozen, settings_of(parts))
  np.testing.assert_array_equal(
    merged['layers'][sink.SCALE], masked['layers'][sink.SCALE]
  )
  np.testing.assert_array_equal(merged[sink.POSITIONS], masked[sink.POSITIONS])


def test_gates_stay_inside_after_large_steps_and_come_back(stock):
  model, _ = stock
  settings = settings_of(('gates',), gates=gates.Gates(low=0.2, high=1.3))
  tree, frozen = trained.split(*stock, settings, report=REPORT)
  out = stepped(model, tree, frozen, settings, optax.sgd(1e9))
  scale = trained.merge(out, frozen, settings)['layers'][sink.SCALE]
  np.testing.assert_array_equal(scale[:5], 1)
  moved_GD = np.asarray(scale[5:])
  assert set(np.unique(moved_GD)) >= set(np.float32([0.2, 1.3]))
  assert ((moved_GD >= np.float32(0.2)) & (moved_GD <= np.float32(1.3))).all()
  back = optax.apply_updates(
    out, jax.tree.map(lambda x: 0.1 * jnp.sign(1 - x), out)
  )
  returned_GD = gates.scale(back['gates'], settings.gates)
  assert (np.abs(1 - returned_GD) < np.abs(1 - moved_GD))[moved_GD != 1].all()


def test_master_weights_keep_what_bfloat16_loses(stock):
  model, params = stock
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  settings = settings_of(('full',))
  tree, frozen = trained.split(model, params, settings)
  # A hundredth of the last bit of bfloat16, two hundred times.
  step = jax.tree.map(lambda leaf: leaf * 2.0**-15, tree)
  moved = tree
  for i in range(200):
    moved = optax.apply_updates(moved, step)
    if i == 0:
      merged = trained.merge(moved, frozen, settings, jnp.bfloat16)
      assert bits(merged) == bits(params)
  merged = trained.merge(moved, frozen, settings, jnp.bfloat16)
  ratio = merged['norm']['weight'] / params['norm']['weight']
  np.testing.assert_allclose(ratio.astype(jnp.float32), 1.0078125)


def test_what_is_trained_may_be_donated(stock):
  _, params = stock
  for parts in PARTS:
    tree, frozen = split(stock, parts)
    pointers = [
      {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(x)}
      for x in (tree, (params, frozen))
    ]
    assert not pointers[0] & pointers[1]


def test_weight_decay_leaves_norms_biases_and_gates(stock):
  tree, _ = split(stock, ('full', 'gates'))
  adapters, _ = split(stock, ('lora', 'gates'))
  decayed = {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for tree in (tree, adapters)
    for path, yes in jax.tree.leaves_with_path(trained.decay_mask(tree))
    if yes
  }
  branches = lora.BRANCHES.items()
  assert decayed == {
    'full/embed_tokens/embedding',
    *(f'full/layers/{branch}/{name}/kernel' for name, branch in branches),
    *(f'lora/{name}/{x}' for name in ('q_proj', 'down_proj') for x in 'ab'),
  }
  optimiser = optax.adamw(0.1, weight_decay=0.5, mask=trained.decay_mask)
  zeros = jax.tree.map(jnp.zeros_like, tree)
  updates, _ = optimiser.update(zeros, optimiser.init(tree), tree)
  assert not np.any(updates['gates'])
  assert not np.any(updates['full']['norm']['weight'])
  assert np.any(updates['full']['embed_tokens']['embedding'])


@pytest.mark.parametrize('parts', PARTS)
def test_every_leaf_has_axes_of_its_own_rank(stock, parts):
  model, params = stock
  abstract = jax.eval_shape(model.init, KEY, BATCH.tokens_BT)
  of_params = nn.get_partition_spec(abstract['params'])
  masked = me_jax.wemask(model, params, REPORT, tokens='massive')
  settings = settings_of(parts, gates=gates.Gates(tokens='marked'))
  both = trained.split(model, masked, settings, KEY, REPORT)
  found = trained.axes(both[1], settings, of_params)
  jax.tree.map(lambda leaf, axes: leaf.sharding, both, found)  # alike
  for leaf, axes in zip(jax.tree.leaves(both), jax.tree.leaves(found)):
    assert leaf.ndim == len(axes)
  if 'full' not in parts:
    norm = found[1].params['layers']['input_layernorm']['weight']
    assert norm == jax.sharding.PartitionSpec('layers', 'norm')


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(parts=('gate',)), "did you mean 'gates'"),
    (dict(parts=('lora', 'full')), 'lora and full cannot'),
    (dict(parts=()), 'must be a tuple of some'),
    (dict(parts='gates'), 'must be a tuple of some'),
    (dict(parts=('gates', 'gates')), 'must be a tuple of some'),
    (dict(parts=('gates',)), 'give the report of find_me_layer'),
    (dict(parts=('lora',), lora=lora.Lora(rank=0)), 'rank of LoRA is 0'),
    (dict(parts=('lora',), lora=lora.Lora(layers='after')), 'give the report'),
    (
      dict(parts=('lora',), lora=lora.Lora(targets=('qproj',))),
      "did you mean 'q_proj'",
    ),
  ],
)
def test_impossible_settings_are_refused(stock, fields, message):
  settings = trained.Trained(**fields)
  with pytest.raises(me_jax.MeJaxError, match=message):
    trained.split(*stock, settings, KEY)
  with pytest.raises(me_jax.MeJaxError, match=message):
    trained.size(stock[0], settings)


def test_what_does_not_fit_is_refused(stock):
  model, params = stock
  with pytest.raises(me_jax.MeJaxError, match='needs a key'):
    trained.split(model, params, settings_of(('lora',)))
  with pytest.raises(me_jax.MeJaxError, match='no stacked layers'):
    trained.split(
      model, params_lib.unstack_layers(params), settings_of(('full',))
    )
  tree, frozen = split(stock, ('gates',))
  with pytest.raises(me_jax.MeJaxError, match='tree has gates to train'):
    trained.merge(tree, frozen, settings_of(('gates', 'lora')))
