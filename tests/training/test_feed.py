"""A step's batch: what the reference says of pairs, and answers that serve."""

from __future__ import annotations

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.models import config as config_lib
from me_jax.training import batches
from me_jax.training import examples
from me_jax.training import feed
from me_jax.training import losses
from me_jax.training import objectives
from me_jax.training import packing
from me_jax.training import prepare
from me_jax.training import rollouts
from me_jax.training import settings
from me_jax.training import sharding
from tests.support import small_run

ANSWERS, NEW = 2, 6


def prepared(small, rows='chats', **fields):
  """Returns a plan and a placed model of a run without held-out rows."""
  run = small_run.run(small, rows, held_out=(), **fields)
  plan = prepare.plan(run)
  return plan, prepare.place(plan)


def moved(state, by=0.25):
  """Returns a state that is somewhere else."""
  return state.replace(tree=jax.tree.map(lambda x: x - by, state.tree))


def gone(placed):
  """Takes the first state away, as a step that is given it does."""
  kept = jax.tree.map(lambda x: x.copy(), placed.state)
  jax.tree.map(lambda x: x.delete(), placed.state)
  return kept


@functools.cache
def _sums(model):
  return jax.jit(functools.partial(objectives.answer_sums, model, chunk=64))


def test_texts_are_what_the_iterator_gives(small):
  plan, placed = prepared(small)
  want = next(plan.batches)
  plan, _ = prepared(small)
  fed = feed.make(plan, placed)(placed.state, 0)
  for found in (fed.batch, fed.packed):
    jax.tree.map(np.testing.assert_array_equal, found, want)
  assert all(isinstance(x, jax.Array) for x in fed.batch)
  assert fed.tokens == np.count_nonzero(want.segments_BT) < want.tokens_BT.size
  assert fed.about == {} and fed.texts == ()


@pytest.fixture(scope='module', name='pairs')
def _pairs(small):
  return prepared(small, 'pairs', method=settings.Dpo(), steps=9)


def test_a_reference_is_stored_or_beside_and_always_the_start(pairs):
  """Also after a state was restored, and the first one is gone."""
  plan, placed = pairs
  params = prepare.merged(placed, plan.run, placed.state.tree)
  start = plan.batches.state()
  found, told = {}, []
  for name in ('stored', 'beside'):
    method = settings.Dpo(reference=name)
    own = dataclasses.replace(
      plan, run=dataclasses.replace(plan.run, method=method)
    )
    placed_ = dataclasses.replace(
      placed, state=jax.tree.map(lambda x: x.copy(), placed.state)
    )
    feeding = feed.make(own, placed_, lambda *what: told.append(what))
    # Looking ahead leaves no trace.
    assert plan.batches.state() == start
    state = moved(gone(placed_))
    found[name] = [feeding(state, step) for step in range(9)]
    plan.batches.restore(start)
  for one, two in zip(*found.values()):
    jax.tree.map(np.testing.assert_array_equal, one.packed, two.packed)
    want = _sums(placed.model)(params, one.batch.texts)
    for fed in (one, two):
      np.testing.assert_allclose(fed.batch.chosen_P, want[0], rtol=1e-5)
      np.testing.assert_allclose(fed.batch.rejected_P, want[1], rtol=1e-5)
      both = (fed.batch.texts.chosen, fed.batch.texts.rejected)
      tokens = sum(np.count_nonzero(side.segments_BT) for side in both)
      assert fed.tokens == tokens
      assert len(fed.packed.tokens_BT) == 2 * plan.run.data.batch
  # Not one number for all.
  assert len({float(fed.batch.chosen_P[0]) for fed in found['stored']}) > 1
  # 16 pairs, four a step, and a step to be sure; not the nine of the run.
  assert told[-1] == ('scoring pairs by the reference', 5, 5)
  plan.batches.restore(start)


def test_no_more_pairs_are_scored_than_the_run_sees(pairs):
  plan, placed = pairs
  start = plan.batches.state()
  told = []
  short = dataclasses.replace(plan, run=dataclasses.replace(plan.run, steps=2))
  feeding = feed.make(short, placed, lambda *what: told.append(what))
  assert told[-1][1:] == (2, 2)
  for step in range(2):
    feeding(placed.state, step)
  plan.batches.restore(start)


def source(seed, count):
  """Returns pairs of which no two are alike."""
  some = [
    examples.Example(np.array([seed, i, side], np.int32), np.ones(3, bool))
    for i in range(count)
    for side in (0, 1)
  ]
  return examples.Encoded(
    kind='pairs',
    length=3,
    examples=tuple(map(examples.Pair, some[::2], some[1::2])),
    left_out=0,
    longest=3,
  )


@pytest.mark.parametrize('seed', range(8))
def test_every_pair_of_a_mix_is_in_the_table(seed):
  """However its shares are rounded, and however long the run is."""
  random = np.random.default_rng(seed)
  count = random.integers(1, 4)
  made = batches.Batches(
    [source(i, random.integers(1, 12)) for i in range(count)],
    random.uniform(0.1, 1, count),
    batch_size=int(random.integers(1, 5)),
    seed=seed,
  )
  steps = 2 * made.epoch
  plan = types.SimpleNamespace(
    batches=made, run=types.SimpleNamespace(steps=steps)
  )

  def score(pairs):
    # What tells them, so that a mix-up shows.
    return [pairs.chosen.tokens_BT[:, 1], pairs.rejected.tokens_BT[:, 0]]

  table = feed._table(plan, score, None)
  for _ in range(steps):
    pairs = next(made)
    found = np.array([table[name] for name in feed._names(pairs)])
    np.testing.assert_array_equal(found.T, score(pairs))


class Sampler:
  """Stands for `rollouts.sample`: answers by the seed, and what was asked."""

  def __init__(self):
    self.asked = []

  def __call__(self, model, params, prompts, method, tokenizer, **how):
    del model, tokenizer
    self.asked.append({'params': params, **how})
    random = np.random.default_rng([*how['seed'], how['first']])
    rows = []
    for tokens_T in prompts.tokens:
      for _ in range(method.answers):
        answer = random.integers(2, 40, random.integers(1, NEW + 1))
        text = np.array([*tokens_T, *answer], np.int32)
        wanted_T = np.arange(len(text)) >= len(tokens_T)
        rows.append([examples.Example(text, wanted_T)])
    groups = (len(prompts.rows), method.answers)
    rewards_GR = random.normal(0, 1, groups).astype(np.float32)
    return rollouts.Rollouts(
      packed=packing.lay_out(rows, how['length']),
      advantages_B1=np.asarray(losses.group_advantages(rewards_GR)).reshape(
        -1, 1
      ),
      rewards_GR=rewards_GR,
      parts={},
      failures={},
      length_GR=np.ones(groups, np.int32),
      stopped_GR=np.ones(groups, bool),
      texts=tuple('abcdefgh'[: groups[0] * groups[1]]),
    )


@pytest.fixture(name='sampler')
def _sampler(monkeypatch):
  made = Sampler()
  monkeypatch.setattr(rollouts, 'sample', made)
  return made


def method_of(**fields):
  sampling = rollouts.Settings(
    answers=ANSWERS,
    max_new_tokens=NEW,
    temperature=0.7,
    rewards=((small_run.early_letters, 1.0),),
  )
  return settings.Grpo(sampling=sampling, **fields)


@pytest.fixture(scope='module', name='prompts')
def _prompts(small):
  plan, placed = prepared(
    small, 'prompts', method=method_of(updates=2, kl=0.1), seed=5
  )
  # Away from the start, so that a policy is told from the reference.
  return plan, placed, plan.batches.state()


def begun(prompts, **fields):
  """Returns a feed from the first prompt on, with another method."""
  plan, placed, start = prompts
  plan.batches.restore(start)
  run = dataclasses.replace(plan.run, method=method_of(**fields))
  plan = dataclasses.replace(plan, run=run)
  return plan, feed.make(plan, placed)


@functools.cache
def _logps(model):
  return jax.jit(
    functools.partial(
      objectives.token_logprobs, model, chunk=64, temperature=0.7
    )
  )


def test_answers_serve_as_many_steps_as_there_are_updates(prompts, sampler):
  plan, feeding = begun(prompts, updates=3)
  state = prompts[1].state
  fed = [feeding(state, step) for step in range(7)]
  assert len(sampler.asked) == 3
  for step, one in enumerate(fed):
    assert one is fed[step - step % 3]
  assert [one['seed'] for one in sampler.asked] == [(5, 0), (5, 3), (5, 6)]
  assert {one['length'] for one in sampler.asked} == {plan.length}
  assert {one['first'] for one in sampler.asked} == {0}
  assert fed[0].packed.tokens_BT.tobytes() != fed[3].packed.tokens_BT.tobytes()
  one = fed[0]
  assert one.batch.texts.tokens_BT.shape == (
    plan.run.data.batch * ANSWERS, plan.run.data.length + NEW
  )  # fmt: skip
  assert one.tokens == np.count_nonzero(one.packed.segments_BT)
  assert len(one.texts) == 8 and {'reward', 'varied'} <= one.about.keys()


def test_a_batch_is_a_function_of_the_step_and_the_policy(prompts, sampler):
  """A run that goes on at a step draws what an uninterrupted one would."""
  plan, feeding = begun(prompts, updates=2)
  state = moved(prompts[1].state)
  for step in range(4):
    feeding(state, step)
  kept = plan.batches.state()
  want = feeding(state, 4)
  plan, again = begun(prompts, updates=2)
  plan.batches.restore(kept)
  found = again(state, 4)
  jax.tree.map(np.testing.assert_array_equal, found.batch, want.batch)
  # The policy that draws is the one that the loss computes with.
  tree = jax.tree.map(np.asarray, sampler.asked[-1]['params'])
  merged = prepare.computed(plan.run, state.tree, prompts[1].frozen)
  jax.tree.map(np.testing.assert_array_equal, tree, merged)


def test_the_first_update_has_a_ratio_of_one(prompts, sampler):
  """To the policy that drew; the second, of a policy that moved, has not."""
  plan, feeding = begun(prompts, updates=2, kl=0.1, clip=1e-4)
  placed = prompts[1]
  state = moved(placed.state)
  batch = feeding(state, 0).batch
  objective = objectives.of(plan.run)

  @jax.jit
  def sums(tree, batch):
    params = prepare.computed(plan.run, tree, placed.frozen)
    return objective(placed.model, params, batch)

  found = sums(state.tree, batch)
  assert found['clipped'][0] == 0
  old = batch._replace(old_logp_BT=None)
  np.testing.assert_allclose(
    sums(state.tree, old)['loss'][0], found['loss'][0], rtol=1e-5, atol=1e-5
  )
  assert sums(moved(state, 0.3).tree, batch)['clipped'][0] > 0


def test_the_reference_is_the_start(prompts, sampler):
  plan, placed, _ = prompts
  params = prepare.merged(placed, plan.run, placed.state.tree)
  state = moved(placed.state)
  here = dataclasses.replace(
    placed, state=jax.tree.map(lambda x: x.copy(), placed.state)
  )
  plan, _ = begun(prompts, updates=2)
  feeding = feed.make(plan, here)
  gone(here)
  batch = feeding(state, 0).batch
  logps = _logps(placed.model)
  for found_BT, tree in (
    (batch.reference_logp_BT, params),
    (batch.old_logp_BT, prepare.merged(placed, plan.run, state.tree)),
  ):
    want_BT = logps(tree, batch.texts)
    np.testing.assert_allclose(found_BT, want_BT, rtol=1e-4, atol=1e-4)
  apart = np.abs(batch.old_logp_BT - batch.reference_logp_BT)
  assert jnp.max(apart) > 0.01


def test_what_is_not_needed_is_not_scored(prompts, sampler):
  for updates, kl in ((1, 0.0), (1, 0.1), (2, 0.0)):
    _, feeding = begun(prompts, updates=updates, kl=kl)
    batch = feeding(prompts[1].state, 0).batch
    assert (batch.old_logp_BT is None) == (updates == 1)
    assert (batch.reference_logp_BT is None) == (kl == 0)


@pytest.mark.parametrize(
  ('devices', 'tensor'), [(1, 1), (2, 2), (6, 2), (8, 4)]
)
def test_answers_are_drawn_where_heads_are_cut_as_far_as_they_go(
  devices, tensor, monkeypatch
):
  def mesh(*, devices, tensor=1):
    sizes = (1, len(devices) // tensor, 1, tensor)
    return types.SimpleNamespace(
      axis_names=sharding.MESH_AXES,
      shape=dict(zip(sharding.MESH_AXES, sizes)),
    )

  monkeypatch.setattr(feed.sharding_lib, 'mesh', mesh)
  config = config_lib.ModelConfig(
    model_type='llama', vocab_size=96, hidden_size=48, intermediate_size=96,
    num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=64,
  )  # fmt: skip
  found = feed.own_mesh(config, [object()] * devices)
  assert found.shape['tensor'] == tensor
