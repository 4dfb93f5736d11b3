"""Which programs does a run need, and what lies on the devices beside them?

A program's own arrays are not all that a device holds: while answers are drawn
or texts are scored, the training state waits.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from me_jax import errors
from me_jax.generation import sampler
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.models import params as params_lib
from me_jax.planning import analyses
from me_jax.planning import programs
from me_jax.planning import rollouts
from me_jax.planning import topology as topology_lib
from me_jax.training import feed
from me_jax.training import prepare
from me_jax.training import settings as settings_lib
from me_jax.training import sharding as sharding_lib
from me_jax.training import trained as trained_lib

_ROWS, _LENGTH = 8, 4096
_ANSWERS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """A program with where it runs.

  Attributes:
    program: to be compiled.
    topology: of its devices: all, or those of one host.
    beside: bytes that a device holds that are not the program's.
    plain: name of the program that this one is compared with.
  """

  program: programs.Program
  topology: topology_lib.Topology
  beside: int = 0
  plain: str = ''


def mesh_of(
  run: settings_lib.Run, topology: topology_lib.Topology
) -> jax.sharding.Mesh:
  """Returns the mesh of a run on all devices of a topology.

  Raises:
    MeJaxError: the sizes do not divide the devices, or there is no compiler.
  """
  return sharding_lib.mesh(
    **dataclasses.asdict(run.mesh), devices=topology_lib.devices(topology)
  )


def targets(
  run: settings_lib.Run,
  config: config_lib.ModelConfig,
  topology: topology_lib.Topology,
  mesh: jax.sharding.Mesh,
  what: tuple[str, ...],
  *,
  rows: int | None = None,
  length: int | None = None,
) -> tuple[Target, ...]:
  """Returns what is to be compiled.

  Args:
    run: the settings; nothing that they name is read.
    config: of the model.
    topology: of the mesh.
    mesh: from `mesh_of`.
    what: any of `step` (of training, alone), `train` (all that `me-jax train`
      runs), `analysis` (what `find` and `explain` do) and `generate`.
    rows: of an analysis, by default 8, and texts in the making of `generate`,
      by default 64.
    length: tokens of a row, by default 4096 or the context; of `generate`, half
      of it is prompt.

  Raises:
    MeJaxError: the model or the batch does not fit the mesh, or a row is longer
      than the context.
  """
  found: list[Target] = []
  if length and length > config.context_length:
    raise errors.MeJaxError(
      f'length is {length}, more than the context of the model,'
      f' {config.context_length} tokens.'
    )
  length = length or min(_LENGTH, config.context_length)
  at = functools.partial(Target, topology=topology)
  if 'train' in what:
    found += _train(run, config, topology, mesh)
  elif 'step' in what:
    step, *_ = programs.train(run, config, mesh)
    found.append(at(program=step, beside=_start(run, step)))
  if 'analysis' in what:
    plain, *others = analyses.analyses(
      config,
      mesh,
      rows=rows or _ROWS,
      length=length,
      dtype=run.compute.dtype,
    )
    found.append(at(program=plain))
    found += [at(program=one, plain=plain.name) for one in others]
  if 'generate' in what:
    found += map(
      lambda one: at(program=one),
      _generate(run, config, mesh, rows or _ANSWERS, length),
    )
  return tuple(found)


def local_bytes(tree: Any) -> int:
  """Returns what one device holds of arrays that have a place.

  Args:
    tree: of shapes with shardings; what has none is not counted.
  """
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in _placed(tree)
  )


def parameters(program: programs.Program) -> int:
  """Returns a device's bytes of the parameters among a program's arguments."""
  if program.state is not None:
    state = program.args[program.state]
    return local_bytes((state.tree, _frozen(program)))
  trees = [arg for arg in program.args if isinstance(arg, dict)]
  return local_bytes((trees, _frozen(program)))


def optimizer(program: programs.Program) -> int:
  """Returns a device's bytes of the optimiser's state among the arguments."""
  if program.state is None:
    return 0
  return local_bytes(program.args[program.state].optimizer)


def host_of(topology: topology_lib.Topology) -> topology_lib.Topology:
  """Returns the devices of one host, which draw answers of their own.

  The compiler takes whole topologies only, so it is one that is as large.
  """
  chip = topology.chip
  if not chip.tpu:
    return topology_lib.find(f'{chip.name}x{math.prod(topology.shape)}')
  if topology.chips < 4:
    return topology
  flat = len(topology.shape) == 2
  return topology_lib.find(f'{chip.name}:{"2x2" if flat else "2x2x1"}')


def _train(
  run: settings_lib.Run,
  config: config_lib.ModelConfig,
  topology: topology_lib.Topology,
  mesh: jax.sharding.Mesh,
) -> Iterator[Target]:
  """Yields the programs of a run with what lies beside each."""
  run = programs.everywhere(run)
  step, *others = programs.train(run, config, mesh)
  state, frozen = step.held, _frozen(step)
  start = _start(run, step)
  held = local_bytes((state, frozen)) + start
  at = functools.partial(Target, topology=topology)
  yield at(program=step, beside=start)
  for program in others:
    yield at(program=program, beside=_beside(run, program, held))
  if run.monitor_every:
    program = _monitor(run, config, step)
    yield at(program=program, beside=_beside(run, program, held))
  if isinstance(run.method, settings_lib.Grpo):
    host = host_of(topology)
    own = mesh
    if host.chips != topology.chips:
      own = feed.own_mesh(config, topology_lib.devices(host))
    for program in rollouts.of_run(run, config, own):
      # What is drawn with is cast from the master weights, at first on the
      # mesh of all.
      cast = 0
      if own is not mesh:
        cast = parameters(program) * host.devices // topology.devices
      yield Target(
        program=program, topology=host, beside=_beside(run, program, held, cast)
      )


def _beside(
  run: settings_lib.Run, program: programs.Program, held: int, cast: int = 0
) -> int:
  """Returns what waits while a program of a run other than the step runs.

  Args:
    run: the settings.
    program: that runs.
    held: bytes of state, frozen parameters and reference.
    cast: bytes of parameters that were made for it, beside its own.
  """
  own = parameters(program)
  drawn = program.name in ('prefill', 'decode')
  copied = 'lora' in run.train.parts
  if drawn:
    same = run.compute.dtype == prepare.params_dtype(run)
    copied = copied or not same or cast > 0
  if program.name in ('reference', 'score'):
    copied = False
  return max(held + cast - (0 if copied else own), 0)


def _start(run: settings_lib.Run, step: programs.Program) -> int:
  """Returns the bytes of a copy of what is trained as it was at the start."""
  if not programs.keeps_start(run):
    return 0
  return local_bytes(step.held.tree)


def _monitor(
  run: settings_lib.Run, config: config_lib.ModelConfig, step: programs.Program
) -> programs.Program:
  """Returns the look that a run takes at the ME Layer."""
  params = programs.merged(run, step)
  model = prepare.model_of(run, config)
  return analyses.monitored(config, model, params, step.mesh, step.rules)


def _generate(
  run: settings_lib.Run,
  config: config_lib.ModelConfig,
  mesh: jax.sharding.Mesh,
  rows: int,
  length: int,
) -> tuple[programs.Program, ...]:
  """Returns prefill and decode of the model alone."""
  if length < 2:
    raise errors.MeJaxError(
      f'length is {length}, must be 2 or more: half of it is the prompt.'
    )
  dtype = run.compute.dtype
  model = decoder.Decoder(
    config, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype)
  )
  return rollouts.generation(
    model,
    params_lib.param_shapes(config, dtype),
    mesh,
    rows=rows,
    prompt=length // 2,
    longest=length,
    sampling=sampler.Sampling(temperature=1.0),
  )


def _frozen(program: programs.Program) -> list[trained_lib.Frozen]:
  """Returns the frozen parameters among a program's arguments, if any."""
  return [arg for arg in program.args if isinstance(arg, trained_lib.Frozen)]


def _placed(tree: Any) -> Iterator[Any]:
  for leaf in jax.tree.leaves(tree):
    if getattr(leaf, 'sharding', None) is not None:
      yield leaf
