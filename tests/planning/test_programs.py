"""What is planned is what a run does: the same functions on the same shapes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from me_jax import errors
from me_jax.mitigation import gates
from me_jax.models import config as config_lib
from me_jax.models import params as params_lib
from me_jax.planning import programs
from me_jax.planning import rollouts as rollouts_plan
from me_jax.training import data
from me_jax.training import lora
from me_jax.training import prepare
from me_jax.training import rollouts
from me_jax.training import settings
from me_jax.training import sharding
from me_jax.training import step
from me_jax.training import trained

CONFIG = config_lib.ModelConfig(
  model_type='llama',
  vocab_size=96,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  max_position_embeddings=64,
  eos_token_ids=(2,),
)


def run_of(**changes):
  base = settings.Run(
    data=settings.Data(mix=data.Mix(sources=()), length=16, batch=4), steps=3
  )
  return dataclasses.replace(base, **changes)


def one_device():
  return sharding.mesh(devices=jax.devices()[:1])


def like(tree):
  return jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), tree)


@pytest.mark.parametrize(
  'train',
  [
    trained.Trained(parts=('full',)),
    trained.Trained(parts=('gates',), gates=gates.Gates(layers='all')),
    trained.Trained(
      parts=('gates', 'lora'),
      gates=gates.Gates(layers=(1,), tokens=(0, 5)),
      lora=lora.Lora(layers='all'),
    ),
  ],
  ids=['full', 'gates', 'gates and adapters'],
)
def test_shapes_are_those_of_a_split_model(train):
  run = run_of(train=train)
  params = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    params_lib.param_shapes(CONFIG, 'float32'),
  )
  tree, frozen = trained.split(
    prepare.model_of(run, CONFIG), params, train, jax.random.key(0)
  )
  planned_tree, planned_frozen = programs.split(run, CONFIG)
  assert like(planned_tree) == like(tree)
  assert like(planned_frozen) == like(frozen)


def test_the_step_is_the_one_of_training_and_runs():
  run = run_of(train=trained.Trained(parts=('full',)))
  (program,) = programs.train(run, CONFIG, one_device())
  with sharding.use(program.mesh, program.rules):
    compiled = program.function.lower(*program.args).compile()
    state, frozen, batch = jax.tree.map(
      lambda x: jax.device_put(jnp.ones(x.shape, x.dtype), x.sharding),
      program.args,
    )
    new, means = compiled(state, frozen, batch)
  assert isinstance(new, step.State)
  assert bool(means['finite'])
  assert program.tokens == 4 * 16


def test_layers_after_the_me_layer_are_taken_to_be_all():
  (program,) = programs.train(run_of(), CONFIG, one_device())
  assert program.args[0].tree['gates'].shape == (2, 32)
  assert program.args[1].gate_layers == (0, 1)


def test_methods_have_the_programs_that_they_run():
  def names(**changes):
    found = programs.train(run_of(**changes), CONFIG, one_device())
    return [program.name for program in found]

  grpo = settings.Grpo(
    sampling=rollouts.Settings(answers=2, max_new_tokens=8, rows=4), kl=0.1
  )
  assert names(method=grpo) == ['step', 'score']
  assert names(method=dataclasses.replace(grpo, kl=0.0)) == ['step']
  assert names(method=settings.Dpo()) == ['step', 'reference']
  held_out = settings.HeldOut(name='some', source=None)
  assert names(held_out=(held_out,)) == ['step', 'held out']


def test_answers_are_drawn_from_masked_parameters():
  run = run_of(
    method=settings.Grpo(
      sampling=rollouts.Settings(answers=2, max_new_tokens=8, rows=4)
    ),
    mask=settings.Mask(rate=0.5),
    train=trained.Trained(parts=('full',)),
  )
  prefill, decode = rollouts_plan.of_run(run, CONFIG, one_device())
  params, state = decode.args[3:5]
  assert params['layers']['sink_scale'].shape == (2, 32)
  # 16 tokens of a prompt and 8 of an answer, in whole blocks of slots.
  assert state.cache.slots[0].k.shape == (2, 4, 2, 64, 8)
  assert prefill.args[4].tokens_NT.shape == (1, 32)
  for program in (prefill, decode):
    with sharding.use(program.mesh, program.rules):
      assert program.function.lower(*program.args)


def test_parts_must_divide_the_rows():
  run = run_of(compute=settings.Compute(parts=3))
  with pytest.raises(errors.MeJaxError, match=r'compute\.parts 3'):
    programs.train(run, CONFIG, one_device())
