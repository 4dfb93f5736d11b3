"""A mitigation survives every way of keeping a model, or is refused."""

from __future__ import annotations

import importlib.util
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import me_jax
from me_jax import errors
from me_jax.checkpoints import load
from tests.support import planted
from tests.support import processes
from tests.support import tiny as tiny_lib

needs_torch = pytest.mark.skipif(
  importlib.util.find_spec('torch') is None,
  reason='torch, the reference implementation, is not installed',
)
LAYERS, WIDTH = planted.LAYERS, planted.WIDTH
# What float16 and bfloat16 cannot hold.
LARGE = 70001.0
WRITERS = {'save': me_jax.save, 'export': me_jax.export}


def leaves():
  """Returns the three leaves, with values that no half type can hold."""
  rng = np.random.default_rng(0)
  scale = rng.uniform(0, 1, (LAYERS, WIDTH)).astype(np.float32)
  bound = np.zeros(LAYERS, np.float32)
  bound[4] = LARGE
  positions = np.array([1, 0, 1], np.float32)
  return {
    'sink_scale': scale, 'sink_bound': bound, 'sink_positions': positions
  }  # fmt: skip


def make(dtype='float32', only=None, seed=0, **others):
  """Returns a model with the leaves, or some of them."""
  model, params = planted.build([], seed=seed)
  dtype = jnp.dtype(dtype)
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  chosen = {n: v for n, v in leaves().items() if only is None or n in only}
  chosen = {n: jnp.asarray(v) for n, v in (chosen | others).items()}
  if 'sink_scale' in chosen:
    params['layers']['sink_scale'] = chosen.pop('sink_scale')
  params |= chosen
  model = model.clone(dtype=dtype, param_dtype=dtype)
  return load.LoadedModel(model, params, None, model.config)


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def refused(action, *words):
  with pytest.raises(errors.MeJaxError) as caught:
    action()
  message = str(caught.value)
  assert '\n' not in message
  for word in words:
    assert word in message, message


def tensors(folder):
  return safetensors.numpy.load_file(folder / 'model.safetensors')


SETS = [
  ('sink_scale',),
  ('sink_scale', 'sink_bound'),
  ('sink_scale', 'sink_positions'),
  ('sink_scale', 'sink_bound', 'sink_positions'),
]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('only', SETS, ids='+'.join)
def test_a_model_goes_round_unchanged(tmp_path, only, dtype):
  """Saved, loaded, exported, loaded: the same leaves, the same metadata."""
  lm = make(dtype, only)
  said = {'wemask': {'rate': 0.5}}
  me_jax.save(lm, tmp_path / 'a', metadata=said)
  first = me_jax.load(tmp_path / 'a', dtype=dtype)
  assert_same(first.params, lm.params)
  said = me_jax.read_metadata(tmp_path / 'a')
  me_jax.export(first, tmp_path / 'b', metadata=said)
  second = me_jax.load(tmp_path / 'b', dtype=dtype)
  assert_same(second.params, lm.params)
  assert me_jax.read_metadata(tmp_path / 'b') == {'wemask': {'rate': 0.5}}


@pytest.mark.parametrize('kind', WRITERS)
@pytest.mark.parametrize('stored', ['float32', 'bfloat16'])
@pytest.mark.parametrize('wanted', ['float32', 'bfloat16', 'float16'])
def test_the_leaves_are_float32_in_any_type_of_model(
  tmp_path, kind, stored, wanted
):
  WRITERS[kind](make(stored), tmp_path / 'm')
  checkpoint = load.open_checkpoint(tmp_path / 'm')
  # What `me-jax export` writes and transformers loads.
  assert checkpoint.stored_dtype == stored
  found = load.load_opened(checkpoint, dtype=wanted).params
  assert found['norm']['weight'].dtype == jnp.dtype(wanted)
  expected = leaves()
  for name, leaf in expected.items():
    place = found['layers'] if name == 'sink_scale' else found
    assert place[name].dtype == jnp.float32
    np.testing.assert_array_equal(place[name], leaf)
  # A caller may compile before the weights are there.
  shapes = checkpoint.param_shapes(wanted)
  assert jax.tree.structure(shapes) == jax.tree.structure(found)
  for a, b in zip(jax.tree.leaves(shapes), jax.tree.leaves(found)):
    assert a.shape == b.shape and a.dtype == b.dtype


def test_leaves_in_a_half_type_are_kept_exactly(tmp_path):
  lm = make('bfloat16', ['sink_scale'])
  scale = lm.params['layers']['sink_scale'].astype(jnp.bfloat16)
  lm.params['layers']['sink_scale'] = scale
  for kind, write in WRITERS.items():
    write(lm, tmp_path / kind)
    found = me_jax.load(tmp_path / kind, dtype='bfloat16').params
    found = found['layers']['sink_scale']
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, scale.astype(jnp.float32))


@pytest.mark.parametrize('dtype', [None, 'bfloat16', 'float16'])
def test_an_export_has_the_leaves_as_tensors(tmp_path, dtype):
  me_jax.export(make(), tmp_path / 'm', dtype=dtype)
  found, expected = tensors(tmp_path / 'm'), leaves()
  for layer in range(LAYERS):
    np.testing.assert_array_equal(
      found[f'model.layers.{layer}.sink_scale'], expected['sink_scale'][layer]
    )
  for name in ('sink_bound', 'sink_positions'):
    np.testing.assert_array_equal(found[f'model.{name}'], expected[name])
  assert all(v.dtype == np.float32 for n, v in found.items() if 'sink' in n)
  config = json.loads((tmp_path / 'm' / 'config.json').read_text())
  assert config['dtype'] == (dtype or 'float32')


@pytest.mark.parametrize('only', [(), ('sink_bound', 'sink_positions')])
@pytest.mark.parametrize('scale', [None, 'ones'])
def test_what_changes_nothing_is_not_exported(tmp_path, only, scale):
  ones = {'sink_scale': jnp.ones((LAYERS, WIDTH))} if scale else {}
  lm = make(only=only, **ones)
  me_jax.export(lm, tmp_path / 'm')
  me_jax.export(make(only=()), tmp_path / 'stock')
  name = 'model.safetensors'
  assert (tmp_path / 'm' / name).read_bytes() == (
    tmp_path / 'stock' / name
  ).read_bytes()
  # Orbax keeps what it is given.
  me_jax.save(lm, tmp_path / 'saved')
  assert_same(me_jax.load(tmp_path / 'saved').params, lm.params)


def test_a_bound_of_zeros_is_part_of_a_mitigation(tmp_path):
  """It marks nothing; without it the first tokens would be marked."""
  lm = make(only=['sink_scale'], sink_bound=jnp.zeros(LAYERS))
  me_jax.export(lm, tmp_path / 'm')
  assert_same(me_jax.load(tmp_path / 'm').params, lm.params)


def test_an_ordinary_checkpoint_has_no_such_leaf(tiny, flat, tmp_path):
  found = flat(load.load(tiny.hf(tmp_path / 'm')).params)
  assert not [path for path in found if 'sink' in path]


@needs_torch
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('family', ['llama', 'olmo2'])
def test_transformers_computes_the_model_without_it(tmp_path, family):
  import torch
  import transformers

  model = tiny_lib.hf_model(family)
  lm = tiny_lib.loaded(model, tmp_path / 'theirs')
  scale = np.random.default_rng(1).uniform(-1, 1, (3, 48))
  lm.params['layers']['sink_scale'] = jnp.asarray(scale, jnp.float32)
  lm.params['sink_positions'] = jnp.ones(5)
  me_jax.export(lm, tmp_path / 'ours', max_shard_size=20_000)
  assert_same(me_jax.load(tmp_path / 'ours').params, lm.params)
  again, notes = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'ours', output_loading_info=True
  )
  assert len(notes['unexpected_keys']) == 4
  assert all('sink_' in name for name in notes['unexpected_keys'])
  assert not notes['missing_keys']
  tokens = torch.tensor(np.random.default_rng(0).integers(3, 101, (2, 20)))
  with torch.no_grad():
    expected, found = model(tokens).logits, again(tokens).logits
  np.testing.assert_array_equal(found.numpy(), expected.numpy())
  ours = jax.jit(lm.model.apply)({'params': lm.params}, tokens.numpy()).logits
  assert np.abs(ours - found.numpy()).max() > 1e-2


# What does not fit.


@pytest.mark.parametrize('kind', WRITERS)
@pytest.mark.parametrize(
  ('leaf', 'words'),
  [
    ({'sink_scale': np.ones((8, 1))}, ('layers/sink_scale', '[8, 64]')),
    ({'sink_scale': np.ones((1, 8, 64))}, ('layers/sink_scale', '[8, 64]')),
    ({'sink_scale': np.full((8, 64), np.nan)}, ('sink_scale', 'NaN')),
    ({'sink_bound': np.ones(7)}, ('sink_bound', '[7]', '[8]')),
    ({'sink_bound': np.ones(())}, ('sink_bound', '[]', '[8]')),
    ({'sink_bound': np.full(8, -1.0)}, ('sink_bound', 'negative')),
    ({'sink_bound': np.full(8, np.inf)}, ('sink_bound', 'NaN or inf')),
    ({'sink_bound': np.ones(8, np.int32)}, ('sink_bound', 'int32')),
    ({'sink_positions': np.ones(0)}, ('sink_positions', '1 or more')),
    ({'sink_positions': np.ones((2, 2))}, ('sink_positions', '[2, 2]')),
    ({'sink_positions': -np.ones(2)}, ('sink_positions', 'negative')),
    ({'sink_bounds': np.ones(8)}, ('sink_bounds', "mean 'sink_bound'")),
  ],
)
def test_leaves_that_do_not_fit_are_not_written(tmp_path, kind, leaf, words):
  lm = make(**leaf)
  refused(lambda: WRITERS[kind](lm, tmp_path / 'm'), *words)
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda t: t.pop('model.layers.3.sink_scale'),
     ('lacks', 'model.layers.3.sink_scale')),
    (lambda t: [t.pop(f'model.layers.{i}.sink_scale') for i in range(7)],
     ('lacks', 'model.layers.0.sink_scale')),
    (lambda t: [t.pop(f'model.layers.{i}.sink_scale') for i in range(8)],
     ('model.sink_bound', 'incomplete')),
    (lambda t: t.update({'model.layers.8.sink_scale': np.ones(64, 'f4')}),
     ('model.layers.8.sink_scale', 'does not use')),
    (lambda t: t.update({'model.layers.3.sink_scale': np.ones(63, 'f4')}),
     ('model.layers.3.sink_scale', '[63]', '[64]')),
    (lambda t: t.update({'model.layers.3.sink_scale': np.ones(64, 'i1')}),
     ('model.layers.3.sink_scale', 'I8')),
    (lambda t: t.update({'model.sink_bound': np.ones(7, 'f4')}),
     ('model.sink_bound', '[7]', '[8]')),
    (lambda t: t.update({'model.sink_bound': np.full(8, -2, 'f4')}),
     ('sink_bound', 'negative')),
    (lambda t: t.update({'model.sink_bound': np.full(8, np.nan, 'f4')}),
     ('model.sink_bound', 'NaN')),
    (lambda t: t.update({'model.sink_positions': np.ones((1, 1), 'f4')}),
     ('model.sink_positions', '[1, 1]', '[W]')),
    (lambda t: t.update({'model.sink_positions': np.ones(0, 'f4')}),
     ('model.sink_positions', '[0]', '[W]')),
    (lambda t: t.update({'model.sink_positions': np.array(1, 'f4')}),
     ('model.sink_positions', '[]', '[W]')),
  ],
)  # fmt: skip
def test_exports_that_do_not_fit_are_refused_by_name(tmp_path, change, words):
  me_jax.export(make(), tmp_path / 'm')
  found = tensors(tmp_path / 'm')
  change(found)
  safetensors.numpy.save_file(found, tmp_path / 'm' / 'model.safetensors')
  for dtype in ('float32', 'float16'):
    refused(
      lambda dtype=dtype: me_jax.load(tmp_path / 'm', dtype=dtype), *words
    )


SHARDED = """
    import sys
    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    import me_jax
    from tests.checkpoints import test_sink_leaves as here

    def place(sizes, rule, tree):
      mesh = jax.make_mesh(
        sizes, ('a', 'b'), axis_types=(AxisType.Auto,) * 2
      )
      return jax.tree.map(
        # V = 50 does not divide.
        lambda leaf: NamedSharding(
          mesh, P() if 50 in leaf.shape else rule[leaf.ndim]
        ),
        tree,
      )

    lm = here.make()
    stock = here.make(only=()).params
    rule = {1: P(), 2: P('a', 'b'), 3: P('b', None, 'a')}
    spread = place((2, 4), rule, stock)
    named = place((4, 2), rule, lm.params)
    params = jax.tree.map(jax.device_put, lm.params, named)
    for kind, write in here.WRITERS.items():
      folder = f'{sys.argv[1]}/{kind}'
      write(lm._replace(params=params), folder)
      # All are named, or the mitigation's are left out.
      for given in (named, spread):
        back = me_jax.load(folder, shardings=given, dtype='bfloat16').params
        for name, leaf in here.leaves().items():
          place = back['layers'] if name == 'sink_scale' else back
          np.testing.assert_array_equal(place[name], leaf)
        norm = back['layers']['input_layernorm']['weight']
        scale = back['layers']['sink_scale']
        assert scale.sharding == norm.sharding
        assert not scale.sharding.is_fully_replicated
        for name in ('sink_bound', 'sink_positions'):
          assert back[name].sharding.is_fully_replicated
          assert len(back[name].devices()) == 8
      one = jax.tree.map(lambda leaf: leaf.sharding, stock)
      back = me_jax.load(folder, shardings=one).params
      here.assert_same(back, lm.params)
"""


def test_the_leaves_lie_where_the_others_do(tmp_path):
  done = processes.run(SHARDED, tmp_path, devices=8)
  assert done.returncode == 0, done.stderr[-3000:]


def test_shardings_for_leaves_that_are_not_there(tmp_path):
  me_jax.export(make(only=()), tmp_path / 'm')
  shardings = jax.tree.map(lambda leaf: leaf.sharding, make().params)
  refused(
    lambda: me_jax.load(tmp_path / 'm', shardings=shardings), 'sink_scale'
  )
