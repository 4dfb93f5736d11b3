"""Small runs and programs to plan."""

from __future__ import annotations

import dataclasses
import json
import types

import numpy as np

from me_jax.models import config as config_lib
from me_jax.planning import checks
from me_jax.planning import compile as compile_lib
from me_jax.planning import programs
from me_jax.planning import topology
from me_jax.planning import workload
from me_jax.training import data
from me_jax.training import settings
from me_jax.training import sharding
from me_jax.training import trained

HF = {
  'model_type': 'llama', 'vocab_size': 96, 'hidden_size': 32,
  'intermediate_size': 48, 'num_hidden_layers': 2, 'num_attention_heads': 4,
  'num_key_value_heads': 2, 'head_dim': 8, 'max_position_embeddings': 64,
  'rms_norm_eps': 1e-5, 'rope_theta': 1e4, 'hidden_act': 'silu',
  'tie_word_embeddings': False, 'bos_token_id': 1, 'eos_token_id': 2,
}  # fmt: skip
CONFIG = config_lib.ModelConfig.from_hf(HF)
# One stand-in, which every process has.
ONE = topology.find('h100x1')


def folder(path, **changes):
  """Writes a config.json and nothing else."""
  path.mkdir(exist_ok=True)
  (path / 'config.json').write_text(json.dumps(HF | changes))
  return path


def run_of(**changes):
  base = settings.Run(
    data=settings.Data(mix=data.Mix(sources=()), length=16, batch=4),
    train=trained.Trained(parts=('full',)),
    steps=3,
  )
  return dataclasses.replace(base, **changes)


def step(run=None, place=ONE, what=('step',), config=CONFIG):
  """Returns what is to be compiled of a run."""
  run = run or run_of()
  mesh = workload.mesh_of(run, place)
  return workload.targets(run, config, place, mesh, what)


def with_memory(place, hbm):
  """Returns a topology whose chips have other memory."""
  return dataclasses.replace(
    place, chip=dataclasses.replace(place.chip, hbm=hbm)
  )


def written(lines, place, *, memory, sizes, tokens=0):
  """Returns a program and what the compiler is said to make of it.

  Args:
    lines: of its text.
    place: whose devices it is for.
    memory: in bytes.
    sizes: of the mesh's axes.
    tokens: of a run of the program.
  """
  devices = [types.SimpleNamespace(id=i) for i in range(place.devices)]
  shape = dict.fromkeys(sharding.MESH_AXES, 1) | sizes
  mesh = types.SimpleNamespace(
    devices=np.array(devices).reshape(tuple(shape.values())),
    axis_names=sharding.MESH_AXES,
    shape=shape,
    size=place.devices,
  )
  program = programs.Program(
    name='decode',
    function=None,
    args=(),
    mesh=mesh,
    rules=sharding.DEFAULT,
    config=CONFIG,
    tokens=tokens,
  )
  body = '\n'.join(f'  {line}' for line in lines)
  text = (
    f'HloModule jit_step, num_partitions={place.devices}\n\n'
    'ENTRY %main (part: bf16[8,64]) -> bf16[8,64] {\n'
    '  %part = bf16[8,64]{1,0} parameter(0)\n'
    f'{body}\n'
    '  ROOT %done = bf16[8,64]{1,0} copy(%part)\n}\n'
  )
  compiled = compile_lib.Compiled(
    name='decode', seconds=1.5, memory=memory, cost={}, text=text
  )
  return workload.Target(program=program, topology=place), compiled


def compile_nothing(monkeypatch):
  """Stands in for the compiler; returns the list of what it was asked for."""
  asked = []

  def compile_for(program, lowered=None):
    del lowered
    asked.append(program.name)
    memory = compile_lib.Memory(peak=1000 + len(asked))
    _, compiled = written([], ONE, memory=memory, sizes={})
    return compiled

  monkeypatch.setattr(compile_lib, 'compile_for', compile_for)
  monkeypatch.setattr(checks, 'all_checks', lambda *args: ())
  return asked
