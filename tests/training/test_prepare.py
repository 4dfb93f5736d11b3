"""From settings to a placed model, with nothing wrong found out late."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax import errors
from me_jax.checkpoints import load
from me_jax.mitigation import gates
from me_jax.models import sink
from me_jax.training import data
from me_jax.training import lora
from me_jax.training import prepare
from me_jax.training import rollouts
from me_jax.training import settings
from me_jax.training import trained
from tests.support import folder
from tests.support import planted
from tests.support import small_run


def run_of(small, rows='chats', **fields):
  return small_run.run(small, rows, **{'held_out': ()} | fields)


def what(*parts, **fields):
  return trained.Trained(
    parts=parts, **{'gates': small_run.GATES, 'lora': small_run.LORA} | fields
  )


@pytest.fixture(scope='module', name='stock')
def _stock(small):
  """The model of the folder, as anybody loads it."""
  return me_jax.load(str(small / 'model'))


def bits(tree):
  return {
    jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def placed_of(small, **fields):
  plan = prepare.plan(run_of(small, **fields))
  return plan, prepare.place(plan)


def test_a_plan_reads_no_weights_and_holds_what_a_run_needs(small):
  told = []
  run = small_run.run(small)
  plan = prepare.plan(run, lambda *what: told.append(what))
  assert plan.run == run and plan.length == run.data.length
  assert [one.name for one in plan.held_out] == ['chats', 'others']
  assert next(plan.batches).tokens_BT.shape == (4, 64)
  assert plan.config.num_hidden_layers == planted.LAYERS
  assert told == [('reading data', 0, 1), ('reading data', 1, 1)]


@pytest.mark.parametrize(
  ('epochs', 'updates', 'want'),
  # 16 prompts, four in a step, of which each serves `updates` steps.
  [(1.0, 1, 4), (2.0, 1, 8), (0.1, 1, 1), (1.1, 1, 5), (1.5, 3, 18)],
)
def test_epochs_become_steps(small, epochs, updates, want):
  sampling = rollouts.Settings(
    max_new_tokens=8, rewards=((small_run.early_letters, 1.0),)
  )
  method = settings.Grpo(sampling=sampling, updates=updates)
  run = run_of(small, 'prompts', method=method, steps=0, epochs=epochs)
  plan = prepare.plan(run)
  assert plan.batches.epoch == 4 and plan.run.steps == want


def test_epochs_that_come_out_even_have_no_step_more(small):
  # Of 0.07 times 100 a computer makes a little more than 7.
  assert 0.07 * 100 > 7
  run = run_of(small, 'pairs', method=settings.Dpo(), steps=0, epochs=0.07)
  source = data.Source(data=[str(small / 'pairs.jsonl')] * 5, rows=(0, 100))
  own = dataclasses.replace(run.data, batch=1, mix=data.Mix(sources=(source,)))
  plan = prepare.plan(dataclasses.replace(run, data=own))
  assert plan.batches.epoch == 100 and plan.run.steps == 7


@pytest.mark.parametrize(
  ('rows', 'fields', 'message'),
  [
    ('chats', dict(seed=-1), 'seed is -1'),
    ('chats', dict(mesh=settings.Mesh(data=7, fsdp=1)), '7'),
    ('chats', dict(train=what('gates', gates=gates.Gates(layers=(99,)))), '99'),
    ('prompts', dict(), 'needs'),
    ('none', dict(), 'no such file'),
    (
      'prompts',
      dict(
        method=settings.Grpo(sampling=rollouts.Settings(max_new_tokens=250))
      ),
      'are 314 together, more than the context of 256',
    ),
    (
      'prompts',
      dict(method=settings.Grpo(sampling=rollouts.Settings(max_new_tokens=8))),
      'line 1',
    ),
  ],
)
def test_what_is_wrong_is_found_before_weights_are_read(
  small, monkeypatch, rows, fields, message
):
  def read(*_, **__):
    raise AssertionError('weights were read')

  monkeypatch.setattr(load.Checkpoint, 'load_params', read)
  with pytest.raises(errors.MeJaxError) as caught:
    prepare.plan(run_of(small, rows, **fields))
  assert message in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('parts', [('gates', 'lora'), ('full', 'gates')])
def test_placed_it_is_the_model_of_the_folder(small, stock, parts):
  told = []
  plan = prepare.plan(run_of(small, train=what(*parts)))
  placed = prepare.place(plan, lambda *what: told.append(what[0]))
  merged = prepare.merged(placed, plan.run, placed.state.tree)
  scale_LD = merged['layers'].pop(sink.SCALE)
  np.testing.assert_array_equal(scale_LD, 1)
  assert bits(merged) == bits(stock.params)
  assert placed.state.step == 0 and {*told} == {'loading weights'}
  counted = trained.count(placed.state.tree)
  assert placed.trained == (counted, trained.count(stock.params))
  assert counted == trained.size(stock.model, plan.run.train)
  # Nobody asked where massive activations come from.
  assert placed.report is None
  # The state lies where it is said to.
  jax.tree.map(
    lambda leaf, place: (
      pytest.fail(str(leaf.sharding)) if leaf.sharding != place else None
    ),
    placed.state,
    placed.places,
  )


@pytest.mark.parametrize('part', ['lora', 'full'])
def test_bfloat16_rounds_what_is_frozen_and_no_master(small, stock, part):
  compute = settings.Compute(dtype='bfloat16')
  plan, placed = placed_of(small, train=what(part), compute=compute)
  tree, rest = placed.state.tree, placed.frozen.params
  assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype('float32')}
  assert {x.dtype.name for x in jax.tree.leaves(rest)} == (
    {'bfloat16'} if part == 'lora' else set()
  )
  if part == 'full':
    assert bits(tree['full']) == bits(stock.params)
  computed = prepare.computed(plan.run, tree, placed.frozen)
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), stock.params)
  assert bits(computed) == bits(low)
  assert placed.model.dtype == placed.model.param_dtype == jnp.bfloat16
  assert placed.model.residual_dtype == jnp.float32


def test_settings_of_the_computation_reach_the_model(small):
  compute = settings.Compute(remat='dots', attention_chunk=16)
  _, placed = placed_of(small, compute=compute)
  assert placed.model.remat == 'dots' and placed.model.attention_chunk == 16
  assert placed.model.dtype == jnp.float32


def test_layers_by_name_need_the_me_layer(small):
  """Which the plants of this model are in layer 4."""
  plan, placed = placed_of(small, train=what('gates', gates=gates.Gates()))
  assert placed.report.layer == 4
  assert placed.frozen.gate_layers == (5, 6, 7)
  _, placed = placed_of(
    small, train=what('lora', lora=lora.Lora(rank=1, layers='before'))
  )
  assert placed.frozen.lora_layers == (0, 1, 2, 3)


def test_a_mask_is_in_the_parameters_and_gates_start_from_it(small, stock):
  mask = settings.Mask(rate=0.25, strength=0.5)
  want = me_jax.wemask(
    stock.model, stock.params, planted.report(), rate=0.25, strength=0.5
  )
  want_LD = np.asarray(want['layers'][sink.SCALE])
  assert (want_LD[5:] == 0.5).sum() == 3 * planted.WIDTH // 4
  for parts in (('lora',), ('gates',)):
    plan, placed = placed_of(small, train=what(*parts), mask=mask)
    merged = prepare.merged(placed, plan.run, placed.state.tree)
    np.testing.assert_array_equal(merged['layers'][sink.SCALE], want_LD)
  np.testing.assert_array_equal(placed.state.tree['gates'], want_LD[5:])


def test_adapters_are_a_function_of_the_seed(small):
  trees = [
    bits(placed_of(small, train=what('lora'), seed=seed)[1].state.tree)
    for seed in (0, 0, 1)
  ]
  assert trees[0] == trees[1] != trees[2]


def test_a_model_in_our_own_format_can_be_trained_too(small, stock, tmp_path):
  me_jax.save(stock, tmp_path / 'own')
  plan, placed = placed_of(small, model=str(tmp_path / 'own'))
  merged = prepare.merged(placed, plan.run, placed.state.tree)
  del merged['layers'][sink.SCALE]
  assert bits(merged) == bits(stock.params)


def test_the_fingerprint_is_of_the_weights(small, tmp_path):
  _, one = placed_of(small)
  _, two = placed_of(small, train=what('full'), seed=3)
  assert one.fingerprint == two.fingerprint
  other = planted.build(planted.VERDICTS['single'], seed=1)
  folder.write(*other, tmp_path / 'other')
  plan = prepare.plan(run_of(small))
  checkpoint = load.open_checkpoint(str(tmp_path / 'other'))
  plan = dataclasses.replace(plan, checkpoint=checkpoint)
  assert prepare.place(plan).fingerprint != one.fingerprint
