"""A step changes what is trained, all of it alike however it is computed."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from me_jax.mitigation import gates
from me_jax.models import decoder
from me_jax.models import params as params_lib
from me_jax.models import sink
from me_jax.training import data
from me_jax.training import examples
from me_jax.training import lora
from me_jax.training import objectives
from me_jax.training import optimizer
from me_jax.training import packing
from me_jax.training import settings
from me_jax.training import step as step_lib
from me_jax.training import trained
from tests.support import planted

LENGTH = 24
# Of four parts, each with another number of tokens that are learnt.
LENGTHS = (5, 21, 9, 14)
GATES = gates.Gates(layers=(0, 1))
SMALL = lora.Lora(rank=2, targets=('q_proj', 'down_proj'))
# A rate that moves everything, and a decay that moves more.
OPTIM = settings.Optimizer(lr=0.01, weight_decay=0.1)


def run_of(parts=('full', 'gates'), **fields):
  return settings.Run(
    data=settings.Data(mix=data.Mix(sources=())),
    train=trained.Trained(parts=parts, gates=GATES, lora=SMALL),
    steps=10,
    **{'compute': settings.Compute(vocabulary_chunk=16)} | fields,
  )


@functools.cache
def small():
  """A model of two layers whose logits differ by more than rounding."""
  model, params = planted.build([], bos_channel=2.0)
  model, params = params_lib.first_layers(model, params, 2)
  return model, jax.tree.map(lambda x: x * 5 if x.ndim == 3 else x, params)


def halved(params):
  """Returns the same with a mask of every other channel, by a half."""
  scale_LD = jnp.ones((2, planted.WIDTH)).at[:, ::2].set(0.5)
  return {**params, 'layers': {**params['layers'], sink.SCALE: scale_LD}}


def begun(run, how, params=None):
  """Returns the state before the first step, and what is frozen."""
  model, given = small()
  tree, frozen = trained.split(
    model, given if params is None else params, run.train, jax.random.key(0)
  )
  return step_lib.start(how, tree), frozen


def texts(seed=3):
  random = np.random.default_rng(seed)
  return [
    examples.Example(
      random.integers(2, planted.VOCAB, n).astype(np.int32),
      np.arange(n) >= 3 * (i % 2),
    )
    for i, n in enumerate(LENGTHS)
  ]


def alone(some):
  return packing.lay_out([[text] for text in some], LENGTH)


def batch_of(kind):
  """Returns four rows, or pairs, for an objective."""
  random = np.random.default_rng(7)
  if kind == 'sft':
    return alone(texts())
  if kind == 'dpo':
    pairs = packing.PackedPairs(alone(texts()), alone(texts(4)))
    chosen_P, rejected_P = random.normal(-40, 9, (2, 4)).astype(np.float32)
    return objectives.Pairs(pairs, chosen_P, rejected_P)
  before_BT, reference_BT = random.normal(-4, 0.5, (2, 4, LENGTH))
  return objectives.Answers(
    alone(texts()),
    random.normal(0, 1, (4, 1)).astype(np.float32),
    before_BT.astype(np.float32),
    reference_BT.astype(np.float32),
  )


# By plain descent a tree after a step is its gradient.
DESCENT = optax.sgd(1.0)
ADAM = optimizer.make(OPTIM, 10)


@functools.cache
def stepped(run, how=DESCENT, **attributes):
  """Returns a step of a run, which is compiled once for all tests."""
  model = dataclasses.replace(small()[0], **attributes)
  return jax.jit(step_lib.make(model, run, how, objectives.of(run)))


def taken(run, batch, **attributes):
  """Returns the state after one step, and what the step says."""
  state, frozen = begun(run, DESCENT)
  return stepped(run, **attributes)(state, frozen, batch)


def plain(objective, run, how=DESCENT):
  """Returns a step whose only parameter is a norm's weight, and its state."""
  tree = {'full': {'norm': {'weight': jnp.array([2.0, 0.0, -0.0])}}}
  step = jax.jit(step_lib.make(small()[0], run, how, objective))
  return step, step_lib.start(how, tree), trained.Frozen({})


def of_weight(function):
  """Returns an objective that is a function of that weight and the batch."""
  return lambda _, params, batch: function(params['norm']['weight'], batch)


def nothing_of(batch):
  return batch._replace(wanted_BT=np.zeros_like(batch.wanted_BT))


def assert_near(found, want):
  """Compares two steps that differ in the order of sums."""
  for name in want[1]:
    np.testing.assert_allclose(
      found[1][name], want[1][name], rtol=2e-5, atol=1e-6, err_msg=name
    )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6),
    found[0].tree,
    want[0].tree,
  )


def bits(tree):
  return {
    jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def in_four(run):
  return dataclasses.replace(
    run, compute=dataclasses.replace(run.compute, parts=4)
  )


def test_parts_of_a_batch_are_the_batch():
  want, found = (
    taken(run, batch_of('sft')) for run in (run_of(), in_four(run_of()))
  )
  assert_near(found, want)
  assert want[1]['grad_norm'] > 0.1


@pytest.mark.parametrize('method', [settings.Dpo(), settings.Grpo()])
def test_parts_of_pairs_and_of_answers_are_the_batch(method, monkeypatch):
  """Of a model whose tokens have a likelihood each, whatever is before them."""

  def token_logprobs(model, params, batch, *, chunk, temperature=1.0):
    del model, chunk, temperature
    return -jnp.abs(params['norm']['weight'][batch.tokens_BT % 3] - 0.3)

  monkeypatch.setattr(objectives, 'token_logprobs', token_logprobs)
  batch = batch_of('dpo' if isinstance(method, settings.Dpo) else 'grpo')
  whole = run_of(('full',), method=method)
  found = []
  for run in (whole, in_four(whole)):
    step, state, frozen = plain(objectives.of(run), run)
    found.append(step(state, frozen, batch))
  assert_near(found[1], found[0])
  assert found[0][1]['grad_norm'] > 0.01


def test_the_mean_of_the_means_of_parts_would_be_another():
  """Of the batch that these tests divide, or they would show little."""
  batch = batch_of('sft')
  parts = []
  for i in range(4):
    wanted_BT = batch.wanted_BT & (np.arange(4) == i)[:, None]
    parts.append(taken(run_of(), batch._replace(wanted_BT=wanted_BT))[1])
  whole = taken(run_of(), batch)[1]
  assert len({float(one['counted']) for one in parts}) == 4
  assert sum(one['counted'] for one in parts) == whole['counted']
  mean = np.mean([one['loss'] for one in parts])
  assert abs(mean - whole['loss']) > 0.01


def test_texts_that_share_a_row_are_texts_alone():
  run = run_of()
  one, two, three, four = texts()
  # A row of padding alone changes nothing either.
  packed = packing.lay_out([[two], [one, four], [three], []], LENGTH)
  assert packed.segments_BT.max() == 2
  assert_near(taken(run, packed), taken(run, alone(texts())))


@pytest.mark.parametrize('policy', [*decoder.REMAT_POLICIES][1:])
def test_what_backward_computes_again_is_the_same(policy):
  run, batch = run_of(), batch_of('sft')
  assert_near(taken(run, batch, remat=policy), taken(run, batch))


@pytest.mark.parametrize('part', ['gates', 'lora', 'full'])
def test_steps_change_what_is_trained_and_no_bit_elsewhere(part):
  _, given = small()
  # A mask that gates start from, and that stays where there are none.
  masked = halved(given)
  run = run_of((part,))
  state, frozen = begun(run, ADAM, masked)
  before = bits(frozen)
  start = bits(trained.merge(state.tree, frozen, run.train))
  step = stepped(run, ADAM)
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
  for done in range(3):
    state, means = step(state, frozen, batch_of('sft'))
    assert state.step == done + 1 and means['finite']
  assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), state)
  assert bits(frozen) == before
  end = bits(trained.merge(state.tree, frozen, run.train))
  changed = {path for path in end if end[path] != start[path]}
  scale = {"['layers']['sink_scale']"}
  kernels = {
    "['layers']['self_attn']['q_proj']['kernel']",
    "['layers']['mlp']['down_proj']['kernel']",
  }
  own = {'gates': scale, 'lora': kernels, 'full': end.keys() - scale}
  assert changed == own[part]


def test_a_step_that_is_not_finite_leaves_the_state_as_it_was():
  run = run_of(('gates',))
  _, params = small()
  table = params['embed_tokens']['embedding'].at[7].set(np.nan)
  params = {**params, 'embed_tokens': {'embedding': table}}
  state, frozen = begun(run, ADAM, params)
  good = batch_of('sft')
  good.tokens_BT[good.tokens_BT == 7] = 8
  bad = good._replace(tokens_BT=good.tokens_BT.copy())
  bad.tokens_BT[2, 4] = 7
  step = stepped(run, ADAM)
  state, means = step(state, frozen, good)
  assert means['finite'] and state.step == 1
  kept, means = step(state, frozen, bad)
  assert not means['finite'] and not np.isfinite(means['loss'])
  assert bits(kept) == bits(state)
  # And nothing is left behind: the next is as if it had not been.
  after, means = step(kept, frozen, good)
  assert means['finite'] and after.step == 2
  assert bits(after) == bits(step(state, frozen, good)[0])


def of_gates(run, how, params=None):
  """Returns the same of gates, whose loss is their sum, weighted by a batch."""

  def objective(model, params, batch):
    del model
    loss = jnp.sum(params['layers'][sink.SCALE] * batch)
    return {'loss': (loss, jnp.float32(1))}

  step = jax.jit(step_lib.make(small()[0], run, how, objective))
  return step, *begun(run, how, params)


def test_a_gradient_that_is_not_finite_is_no_step_either():
  """Of a loss that is: the root of zero."""

  def root(weight, batch):
    loss = jnp.sqrt(jnp.sum(weight[1:] ** 2)) * batch
    return {'loss': (loss, jnp.float32(1))}

  step, state, frozen = plain(of_weight(root), run_of(('full',)))
  after, means = step(state, frozen, jnp.float32(1))
  assert means['loss'] == 0 and not means['finite']
  # A zero of either sign included.
  assert bits(after) == bits(state)


def test_means_are_sums_by_counts():
  def sums(weight, batch):
    return {
      'loss': (jnp.sum(weight * batch), jnp.float32(4)),
      'other': (jnp.float32(3), jnp.float32(2)),
      'none': (jnp.float32(0), jnp.float32(0)),
    }

  step, state, frozen = plain(of_weight(sums), run_of(('full',)))
  state, means = step(state, frozen, jnp.array([6.0, 8.0, 0.0]))
  found = {name: float(value) for name, value in means.items()}
  # The gradient is (6, 8, 0) / 4.
  assert found == {
    'loss': 3, 'other': 1.5, 'none': 0, 'counted': 4, 'grad_norm': 2.5,
    'finite': 1,
  }  # fmt: skip
  weight = state.tree['full']['norm']['weight']
  np.testing.assert_array_equal(weight, [0.5, -2.0, 0.0])


def test_the_norm_is_that_before_the_cut():
  def loss(weight, batch):
    return {'loss': (jnp.sum(weight * batch), jnp.float32(1))}

  how = optimizer.make(settings.Optimizer(clip=0.5), 10)
  step, state, frozen = plain(of_weight(loss), run_of(('full',)), how)
  _, means = step(state, frozen, jnp.array([3.0, 4.0, 0.0]))
  assert means['grad_norm'] == 5


def test_a_batch_with_nothing_to_learn_is_a_step_of_zero():
  run = run_of()
  state, means = taken(run, nothing_of(batch_of('sft')))
  assert means['loss'] == means['grad_norm'] == means['counted'] == 0
  assert means['finite'] and state.step == 1
  start, _ = begun(run, DESCENT)
  jax.tree.map(np.testing.assert_array_equal, state.tree, start.tree)


@pytest.mark.parametrize('form', ['l1', 'squared'])
def test_the_penalty_pulls_gates_towards_one(form):
  _, given = small()
  params = halved(given)
  run = run_of(('gates',), penalty=settings.Penalty(weight=3.0, form=form))
  step, state, frozen = of_gates(run, optax.sgd(10.0), params)
  start_GD = np.asarray(state.tree['gates'])
  assert {*np.unique(start_GD)} == {0.5, 1.0}
  after, means = step(state, frozen, jnp.zeros_like(state.tree['gates']))
  away = np.abs(start_GD - 1) ** (1 if form == 'l1' else 2)
  np.testing.assert_allclose(means['penalty'], 3 * away.mean(), rtol=1e-6)
  # It is no part of the loss, but of what moves.
  assert means['loss'] == 0 and means['grad_norm'] > 0
  after_GD = np.asarray(after.tree['gates'])
  slope = 3 / start_GD.size * (1 if form == 'l1' else 2 * 0.5)
  np.testing.assert_allclose(
    after_GD, np.where(start_GD < 1, 0.5 + 10 * slope, 1.0), rtol=1e-5
  )


def test_gates_are_held_in_their_interval():
  step, state, frozen = of_gates(run_of(('gates',)), DESCENT)
  by_GD = np.random.default_rng(0).normal(0, 1, state.tree['gates'].shape)
  after, _ = step(state, frozen, by_GD.astype(np.float32))
  np.testing.assert_allclose(
    after.tree['gates'], np.clip(1 - by_GD, 0, 1.5), rtol=1e-5, atol=1e-6
  )
  # Which a step could leave at both ends.
  assert (by_GD > 1).any() and (by_GD < -0.5).any()


def test_small_updates_are_not_lost_where_bfloat16_computes():
  seen = []

  def loss(weight, batch):
    seen.append(weight.dtype)
    return {'loss': (jnp.sum(weight.astype(jnp.float32) * batch),
                     jnp.float32(1))}  # fmt: skip

  run = run_of(('full',), compute=settings.Compute(dtype='bfloat16'))
  # A hundredth of what bfloat16 can tell from 2.
  step, state, frozen = plain(of_weight(loss), run, optax.sgd(2.0**-14))
  for _ in range(128):
    state, _ = step(state, frozen, jnp.array([-1.0, 0.0, 0.0]))
  weight = state.tree['full']['norm']['weight']
  assert weight.dtype == jnp.float32 and {*seen} == {jnp.dtype('bfloat16')}
  assert weight[0] == 2 + 2.0**-7


def test_bfloat16_is_near_float32_and_keeps_the_tree():
  run = run_of()
  low = dataclasses.replace(
    run, compute=dataclasses.replace(run.compute, dtype='bfloat16')
  )
  want = taken(run, batch_of('sft'))
  bf16 = {'dtype': jnp.bfloat16, 'param_dtype': jnp.bfloat16}
  found = taken(low, batch_of('sft'), **bf16)
  assert {x.dtype for x in jax.tree.leaves(found[0].tree)} == {jnp.dtype('f4')}
  for name in ('loss', 'grad_norm'):
    np.testing.assert_allclose(found[1][name], want[1][name], rtol=0.03)
    assert found[1][name] != want[1][name]
    assert found[1][name].dtype == jnp.float32
