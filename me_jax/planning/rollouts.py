"""What do `generate` and the rollouts of GRPO hand to the compiler?

Letters: B rows, N prompts, T their padded length, E stop tokens.
"""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp

from me_jax.generation import sampler
from me_jax.generation import serve
from me_jax.generation import steps
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.planning import programs
from me_jax.training import prepare
from me_jax.training import settings as settings_lib
from me_jax.training import sharding as sharding_lib


def of_run(
  run: settings_lib.Run,
  config: config_lib.ModelConfig,
  mesh: jax.sharding.Mesh,
) -> tuple[programs.Program, ...]:
  """Returns how GRPO's answers are drawn: prefill of the longest, and decode.

  Args:
    run: of GRPO.
    config: of the model.
    mesh: `feed.own_mesh` of one process's devices where there are several
      processes: each draws its own answers. The run's own where there is one.
  """
  sampling = cast(settings_lib.Grpo, run.method).sampling
  tree, frozen = programs.split(run, config)
  params = jax.eval_shape(
    lambda tree, frozen: prepare.computed(run, tree, frozen), tree, frozen
  )
  longest = programs.length_of(run)
  return generation(
    prepare.model_of(run, config),
    params,
    mesh,
    rows=sampling.rows,
    prompt=longest - sampling.max_new_tokens,
    longest=longest,
    sampling=sampling.sampling(),
  )


def generation(
  model: decoder.Decoder,
  params: Any,
  mesh: jax.sharding.Mesh,
  *,
  rows: int,
  prompt: int,
  longest: int,
  sampling: sampler.Sampling,
) -> tuple[programs.Program, ...]:
  """Returns the two programs of `serve.serve`, layers scanned.

  Args:
    model: the decoder.
    params: its parameters, shapes.
    mesh: the devices.
    rows: texts in the making at a time.
    prompt: tokens of the longest prompt.
    longest: tokens of it and of its answer.
    sampling: how tokens are chosen.
  """
  config = model.config
  rules = sharding_lib.fit(config, mesh)
  placed = programs.placed(
    params,
    lambda shapes: sharding_lib.shardings(config, mesh, rules, params=shapes),
  )
  model = model.clone(scanned=True)
  length = serve.bucket(prompt)
  slots = -(-longest // serve.SLOTS) * serve.SLOTS
  penalised = 'repetition_penalty' in sampling.active
  with sharding_lib.use(mesh, rules):
    start = steps.start.lower(
      model, rows, slots, jnp.dtype(model.dtype), penalised
    ).compile()
    state = programs.with_places(
      jax.eval_shape(
        lambda: steps.start(
          model, rows, slots, jnp.dtype(model.dtype), penalised
        )
      ),
      start.output_shardings,
    )
  count = serve.together(length, rows)

  def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)

  numbers = array(jnp.int32, count)
  prompts = steps.Prompts(
    tokens_NT=array(jnp.int32, count, length),
    segments_NT=array(jnp.int32, count, length),
    rows_N=numbers,
    left_N=numbers,
    seeds_N=array(jnp.uint32, count),
  )
  rule = steps.Rule(
    {name: array(jnp.float32) for name in sampling.active},
    array(jnp.int32, 1 + len(config.eos_token_ids)),
  )

  def program(
    name: str, function: Any, args: tuple[Any, ...], tokens: int
  ) -> programs.Program:
    return programs.Program(
      name=name,
      function=function,
      args=args,
      mesh=mesh,
      rules=rules,
      config=config,
      tokens=tokens,
    )

  active = sampling.active
  return (
    program(
      'prefill',
      steps.prefill,
      (model, active, placed, state, prompts, rule),
      count * length,
    ),
    program(
      'decode',
      steps.decode,
      (
        model, active, serve.STEPS, placed, state, rule, array(jnp.int32)
      ),
      rows * serve.STEPS,
    ),
  )  # fmt: skip
