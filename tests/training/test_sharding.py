"""One table cuts a model; eight CPU devices train as one does."""

from __future__ import annotations

import dataclasses
import textwrap
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from me_jax import errors
from me_jax.models import cache as cache_lib
from me_jax.training import logprobs
from me_jax.training import sharding
from tests.support import planted
from tests.support import processes


def config(**fields):
  return dataclasses.replace(planted.build([])[0].config, **fields)


def abstract(**sizes):
  shape = [sizes.get(name, 1) for name in sharding.MESH_AXES]
  return jax.sharding.AbstractMesh(tuple(shape), sharding.MESH_AXES)


def refusal(function, *args, **kwargs):
  with pytest.raises(errors.MeJaxError) as caught:
    function(*args, **kwargs)
  message = str(caught.value)
  assert '\n' not in message
  return message


def test_an_array_is_cut_once_along_a_mesh_axis():
  message = refusal(sharding.Rules, mlp=('fsdp',))
  assert 'embed and mlp' in message
  assert 'along fsdp' in message
  message = refusal(sharding.Rules, time=('data',))
  assert 'batch and time' in message
  # Twice along the same axis is a collision, too.
  assert 'batch and batch' in refusal(sharding.Rules, batch=('data', 'data'))
  rules = sharding.Rules()
  assert rules.spec(('embed', None, 'mlp')) == jax.P(
    ('fsdp', 'sequence'), None, ('tensor',)
  )
  assert 'heads and mlp' in refusal(rules.spec, ('heads', 'mlp'))


def test_a_rule_names_axes_of_the_mesh():
  message = refusal(sharding.Rules, mlp=('tensr',))
  assert "'tensr'" in message
  assert "did you mean 'tensor'?" in message
  assert 'must be a tuple' in refusal(sharding.Rules, mlp='tensor')


@pytest.mark.parametrize(
  'fields',
  [
    {},
    dict(
      attention_bias=True,
      attention_out_bias=True,
      mlp_bias=True,
      qk_norm='head',
      norm_placement='sandwich',
      tie_word_embeddings=True,
    ),
    dict(qk_norm='projection', norm_placement='post'),
  ],
)
def test_collisions_are_looked_for_in_all_that_modules_lay_out(
  fields, monkeypatch
):
  seen = set()
  real = nn.with_logical_constraint

  def listening(x, axes):
    seen.add(tuple(axes))
    return real(x, axes)

  monkeypatch.setattr(nn, 'with_logical_constraint', listening)
  model, _ = planted.build([], **fields)
  tokens = jax.ShapeDtypeStruct((2, 6), jnp.int32)
  boxes = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
  jax.eval_shape(
    lambda params, tokens_BT: logprobs.answer_logprobs(
      model, params, tokens_BT
    ),
    nn.unbox(boxes),
    tokens,
  )
  cache_lib.empty(model.config, 2, 8, jnp.float32)
  specs = nn.get_partition_spec(boxes)
  seen |= {tuple(s) for s in jax.tree.leaves(specs)}
  known = [set(axes) for axes in sharding.ARRAYS]
  assert len(seen) > 10
  for axes in seen:
    named = {axis for axis in axes if axis}
    assert any(named <= one for one in known), axes


@pytest.mark.parametrize(
  ('fields', 'sizes', 'words'),
  [
    (dict(num_attention_heads=6), {'tensor': 4}, 'tensor 4 * 6 attention'),
    (dict(num_attention_heads=6), {'tensor': 3}, 'tensor 3 * 2 key-value'),
    (dict(intermediate_size=26), {'tensor': 4}, 'tensor 4 * 26 neurons'),
    (dict(vocab_size=51), {'tensor': 2}, 'tensor 2 * 51 tokens of the voc'),
    (
      dict(hidden_size=66),
      {'fsdp': 2, 'sequence': 2},
      'fsdp 2 × sequence 2 * 66 channels',
    ),
    ({}, {'data': 2, 'fsdp': 4}, 'data 2 × fsdp 4 * 12 rows'),
    ({}, {'sequence': 32}, 'sequence 32 * 48 tokens of a row'),
  ],
)
def test_what_a_mesh_must_divide(fields, sizes, words):
  message = refusal(
    sharding.fit, config(**fields), abstract(**sizes), rows=12, length=48
  )
  for part in words.split(' * '):
    assert part in message


def test_a_mesh_has_all_axes():
  other = jax.sharding.AbstractMesh((2,), ('fsdp',))
  assert 'no axis data' in refusal(sharding.fit, config(), other)


@pytest.mark.parametrize(
  ('kv_heads', 'tensor', 'cut'),
  [(2, 1, True), (2, 2, True), (4, 2, True), (2, 4, False), (1, 4, False)],
)
def test_few_key_value_heads_are_on_every_part(kv_heads, tensor, cut):
  rules = sharding.fit(
    config(num_key_value_heads=kv_heads, vocab_size=52), abstract(tensor=tensor)
  )
  assert rules.kv_heads == rules.act_kv_heads == (('tensor',) if cut else ())
  assert rules.heads == ('tensor',)


@pytest.mark.parametrize(
  ('sizes', 'words'),
  [
    (dict(data=4, fsdp=4), ('data 4 × fsdp 4', '= 16', '8:')),
    (dict(data=2, fsdp=2), ('= 4', '8:')),
    (dict(tensor=3), ('tensor 3 = 3 does not divide', '8:')),
    (dict(data=-1), ('data and fsdp are -1',)),
    (dict(tensor=0), ('tensor is 0',)),
    (dict(sequence=-2), ('sequence is -2',)),
    (dict(data=2.0), ('data is 2.0',)),
    (dict(tensor=True), ('tensor is True',)),
  ],
)
def test_sizes_that_do_not_fit_the_devices(sizes, words):
  message = refusal(sharding.mesh, **sizes, devices=[object()] * 8)
  for word in words:
    assert word in message
  assert '= 1 does not divide' in refusal(sharding.mesh, devices=[])


def test_slices_are_spanned_by_the_outer_axes():
  assert sharding.spans((2, 4, 1, 2), 2) == (2, 1, 1, 1)
  assert sharding.spans((1, 8, 1, 2), 4) == (1, 4, 1, 1)
  assert sharding.spans((2, 2, 1, 4), 8) == (2, 2, 1, 2)
  devices = [
    SimpleNamespace(
      id=i, slice_index=i // 4, platform='cpu', device_kind='cpu',
      process_index=i // 4,
    )
    for i in (0, 4, 1, 5, 2, 6, 3, 7)
  ]  # fmt: skip
  seen = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      jax.sharding, 'Mesh', lambda array, *_, **__: seen.append(array)
    )
    sharding.mesh(fsdp=4, tensor=2, devices=devices)
  slices = [[d.slice_index for d in row] for row in seen[0][0, :, 0]]
  assert slices == [[0, 0], [0, 0], [1, 1], [1, 1]]


PROGRAM = """
    import sys

    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from me_jax import errors
    from me_jax.training import logprobs
    from me_jax.training import losses
    from me_jax.training import placement
    from me_jax.training import sharding
    from tests.support import planted

    assert len(jax.devices()) == 8
    sizes, fields, table = eval(sys.argv[1])
    model, params = planted.build([planted.Plant(4, 7, 9, 50.0)], **fields)
    # Larger weights, so that every leaf has a gradient worth comparing.
    params = jax.tree.map(lambda x: x * 5 if x.ndim == 3 else x, params)
    # One leaf more than the stock model's, which is trained as well.
    params['layers']['sink_scale'] = jnp.ones((8, 64))
    tokens_BT, segments_BT = planted.batch(count=8, length=15)
    batch = {'tokens': tokens_BT, 'segments': segments_BT}
    # A larger epsilon than usual: the first step of Adam is the sign of a
    # gradient, which is a matter of rounding where that is almost zero.
    optimiser = optax.chain(
      optax.clip_by_global_norm(1.0), optax.adamw(1e-2, eps=1e-3)
    )

    def loss(params, batch):
      scores, predicted_BT = logprobs.answer_logprobs(
        model, params, batch['tokens'], batch['segments'], chunk=20
      )
      total, count = losses.sft(scores.logp_BT, predicted_BT)
      return total / count

    def step(params, state, batch):
      value, gradients = jax.value_and_grad(loss)(params, batch)
      updates, state = optimiser.update(gradients, state, params)
      return value, gradients, optax.apply_updates(params, updates), state

    def logits(params, batch):
      return model.apply(
        {'params': params}, batch['tokens'], batch['segments']
      ).logits

    state = optimiser.init(params)
    alone = jax.device_get(jax.jit(step)(params, state, batch))
    alone_logits = jax.device_get(jax.jit(logits)(params, batch))

    mesh = sharding.mesh(**sizes)
    rules = sharding.fit(
      model.config, mesh, sharding.Rules(**table), rows=8, length=16
    )
    places = sharding.shardings(model.config, mesh, rules, params=params)
    placed = jax.tree.map(jax.device_put, params, places)
    shapes = jax.eval_shape(optimiser.init, placed)
    state_places = placement.state_shardings(shapes, params, places)
    state = jax.jit(optimiser.init, out_shardings=state_places)(placed)
    put = placement.to_global(batch, mesh, rules)
    assert placement.row_share(mesh, rules) == (1, 0)
    out = (None, places, places, state_places)
    with sharding.use(mesh, rules):
      stepped = jax.jit(step, out_shardings=out)
      compiled = stepped.lower(placed, state, put).compile()
      forward = jax.jit(logits)(placed, put)
    together = compiled(placed, state, put)
    for have, want in zip(together, alone):
      for (path, a), b in zip(
        jax.tree.leaves_with_path(have), jax.tree.leaves(want)
      ):
        np.testing.assert_allclose(
          a, b, atol=1e-5, rtol=1e-5, err_msg=jax.tree_util.keystr(path)
        )
    np.testing.assert_allclose(forward, alone_logits, atol=1e-4)
    # The step was worth comparing.
    moved = together[2]['layers']['sink_scale'] - 1
    assert np.abs(moved).max() > 1e-3
    text = compiled.as_text()
"""

AS_THE_TABLE_SAYS = """
    cuts = {
      'embed_tokens/embedding': (2, 2),
      'lm_head/kernel': (2, 2),
      'norm/weight': (1,),
      'layers/input_layernorm/weight': (1, 1),
      'layers/sink_scale': (1, 1),
      'layers/self_attn/q_proj/kernel': (1, 2, 2),
      'layers/self_attn/k_proj/kernel': (1, 2, 2),
      'layers/self_attn/o_proj/kernel': (1, 2, 2),
      'layers/mlp/gate_proj/kernel': (1, 2, 2),
      'layers/mlp/down_proj/kernel': (1, 2, 2),
    }

    def parts(leaf):
      shard = leaf.addressable_shards[0].data.shape
      return tuple(a // b for a, b in zip(leaf.shape, shard))

    def path_of(keys):
      return '/'.join(sharding.names(keys))

    for tree in (placed, together[1], together[2]):
      flat = {path_of(k): v for k, v in jax.tree.leaves_with_path(tree)}
      for path, want in cuts.items():
        assert parts(flat[path]) == want, (path, parts(flat[path]))
    # Both moments of every parameter lie as it does, and only the count and
    # what the table leaves whole (norms and the like) is on every device.
    flat = {path_of(k): v for k, v in jax.tree.leaves_with_path(placed)}
    whole = {k for k, v in flat.items() if v.sharding.is_fully_replicated}
    assert whole == {k for k in flat if 'norm' in k or 'sink' in k}, whole
    for tree in (state, together[3]):
      seen = 0
      for keys, leaf in jax.tree.leaves_with_path(tree):
        path = path_of(keys)
        owner = next((k for k in flat if path.endswith('/' + k)), None)
        # `norm/weight` is an end of no other path of this model.
        if owner is None:
          assert path.endswith('count'), path
          continue
        seen += 1
        assert leaf.sharding.is_equivalent_to(flat[owner].sharding, leaf.ndim)
      assert seen == 2 * len(flat)
    for leaf in put.values():
      assert leaf.addressable_shards[0].data.shape == (2, 16)
    try:
      placement.to_global({'tokens': np.zeros((6, 16))}, mesh, rules)
      raise AssertionError('six rows were cut into four parts')
    except errors.MeJaxError as error:
      assert 'rows must be a multiple of 4' in str(error), error
    # Half of the FFN's activation for a quarter of the rows, and never more.
    assert 'f32[2,16,12]' in text
    assert 'f32[8,16,12]' not in text
    assert 'f32[2,16,24]' not in text
"""

HEADS_STAY_APART = """
    assert rules.kv_heads == ()
    kernel = placed['layers']['self_attn']['k_proj']['kernel']
    assert kernel.addressable_shards[0].data.shape == (8, 32, 32)
    # Scores of one query head on each device, for the rows that it has.
    assert 'f32[4,1,1,16,16]' in text
    assert 'f32[4,2,2,16,16]' not in text
    assert 'f32[4,1,2,16,16]' not in text
"""

SEQUENCE = """
    # Each device has half of the time of what a block computes.
    assert put['tokens'].addressable_shards[0].data.shape == (4, 8)
    assert 'f32[4,8,12]' in text
    assert 'f32[4,16,12]' not in text
    kernel = placed['layers']['mlp']['up_proj']['kernel']
    assert kernel.addressable_shards[0].data.shape == (8, 16, 12)

    # Nor does it matter that a step has one token, and a prompt one row.
    from me_jax.generation import generate

    def answers(params):
      return generate.generate(
        model, params, planted.batch(count=4, length=15), max_new_tokens=4,
        stop_tokens=(), rows=4,
      ).ids()

    spoken = answers(params)
    with sharding.use(mesh, rules):
      assert answers(placed) == spoken
"""


@pytest.mark.parametrize(
  ('given', 'and_so'),
  [
    ((dict(data=2, tensor=2), {}, {}), AS_THE_TABLE_SAYS),
    (
      # The vocabulary of 50 stays whole.
      (
        dict(fsdp=2, tensor=4),
        dict(qk_norm='head'),
        dict(vocab=(), act_vocab=()),
      ),
      HEADS_STAY_APART,
    ),
    (
      (
        dict(fsdp=2, tensor=2, sequence=2),
        dict(tie_word_embeddings=True, attention_bias=True),
        {},
      ),
      SEQUENCE,
    ),
  ],
  ids=['table', 'few key-value heads', 'sequence'],
)
def test_eight_devices_take_the_step_that_one_takes(given, and_so):
  done = processes.run(
    textwrap.dedent(PROGRAM) + textwrap.dedent(and_so), repr(given), devices=8
  )
  assert done.returncode == 0, done.stderr[-3000:]
  # What XLA says where it gathers an array only to cut it in another way.
  assert 'Involuntary' not in done.stderr


def test_other_leaves_lie_as_their_neighbours_do():
  mesh = sharding.mesh(devices=jax.devices()[:1])
  shape = jax.ShapeDtypeStruct
  params = {
    'layers': {
      'sink_scale': shape((8, 64), 'float32'),
      'self_attn': {
        'q_proj': {
          'kernel': shape((8, 64, 64), 'float32'),
          'lora_a': shape((8, 64, 4), 'float32'),
          'lora': {'b': shape((8, 4, 64), 'float32')},
          'magnitude': shape((64,), 'float32'),
        },
      },
    },
    'sink_bound': shape((8,), 'float32'),
  }
  found = sharding.shardings(config(), mesh, params=params)
  attention = found['layers']['self_attn']['q_proj']
  embed, heads = ('fsdp', 'sequence'), ('tensor',)
  assert attention['kernel'].spec == jax.P(None, embed, heads)
  assert attention['lora_a'].spec == jax.P(None, embed, None)
  assert attention['lora']['b'].spec == jax.P(None, None, heads)
  assert attention['magnitude'].spec == jax.P(None)
  assert found['layers']['sink_scale'].spec == jax.P(None, None)
  assert found['sink_bound'].spec == jax.P(None)
  # Where norms are cut, a mask is.
  rules = sharding.Rules(norm=('fsdp',))
  found = sharding.shardings(config(), mesh, rules, params=params)
  assert found['layers']['sink_scale'].spec == jax.P(None, ('fsdp',))


def test_the_tree_is_the_models():
  mesh = sharding.mesh(devices=jax.devices()[:1])
  model, params = planted.build([], qk_norm='head')
  found = sharding.shardings(model.config, mesh)
  assert jax.tree.structure(found) == jax.tree.structure(params)
