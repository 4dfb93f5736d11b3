"""Programs compiled for devices that are not here: chips, and stand-ins."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import pytest

from me_jax.planning import topology

PROGRAM = """
  import dataclasses, json, sys
  from me_jax.models import config as config_lib
  from me_jax.planning import analyses, checks, compile, programs, topology
  from me_jax.training import data, settings, sharding, trained

  name = sys.argv[1]
  place = topology.find(name)
  mesh = sharding.mesh(devices=topology.devices(place))
  config = config_lib.ModelConfig(
    model_type='llama', vocab_size=512, hidden_size=128,
    intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, head_dim=32, max_position_embeddings=64,
  )

  def run(rows):
    return settings.Run(
      data=settings.Data(mix=data.Mix(sources=()), length=64, batch=rows),
      train=trained.Trained(parts=('full',)), steps=3,
      compute=settings.Compute(
        dtype='bfloat16', remat='full', vocabulary_chunk=128),
    )

  def step(rows, rules=sharding.DEFAULT):
    (program,) = programs.train(run(rows), config, mesh, rules)
    compiled = compile.compile_for(program)
    return compiled, checks.all_checks(program, compiled)

  good, sound = step(16)
  bad, findings = step(16, sharding.Rules(embed=(), vocab=()))
  measured = {
    p.name: (p, compile.compile_for(p))
    for p in analyses.analyses(config, mesh, rows=8, length=64)
    if p.name != 'find'  # a part of diagnose
  }
  plain = measured.pop('forward')[1]
  found = {
    'good': dataclasses.asdict(good.memory), 'sound': sound,
    'bad': dataclasses.asdict(bad.memory), 'findings': findings,
    'flops': good.cost.get('flops', 0.0),
    'added': {
      name: checks.measuring(program, compiled, plain)
      for name, (program, compiled) in measured.items()
    },
  }
  if place.exact:
    found['refused'] = []
    # Too much between, and too many parameters.
    for change in ({'intermediate_size': 1 << 26}, {'num_hidden_layers': 1 << 18}):
      large, *_ = analyses.analyses(
        dataclasses.replace(config, **change), mesh, rows=4, length=64)
      large = compile.compile_for(large)
      found['refused'].append([large.refused, large.memory.peak])
  print(json.dumps(found))
"""


def found_for(name):
  place = topology.find(name)
  if place.exact and importlib.util.find_spec('libtpu') is None:
    pytest.skip('needs libtpu, the TPU compiler')
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(PROGRAM), name],
    env=os.environ
    | topology.environment(place)
    | {'PYTHONPATH': os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope='module', params=['v5e:2x2', 'h100x4'])
def found(request):
  return found_for(request.param)


def test_parts_of_memory_make_up_its_peak(found):
  good = found['good']
  parts = ('arguments', 'outputs', 'temporary', 'code')
  assert good['peak'] == sum(good[k] for k in parts) - good['aliased']
  # The state is given back where it was.
  assert good['aliased'] > 0.9 * good['outputs']
  assert found['flops'] > 0


def test_a_sound_step_has_no_findings(found):
  assert found['sound'] == []


def test_bad_rules_are_found(found):
  assert any('of the optimiser' in line for line in found['findings'])
  assert found['bad']['arguments'] > 3 * found['good']['arguments']


def test_measuring_adds_no_large_exchange(found):
  if 'refused' not in found:
    pytest.skip('stand-ins take tokens out of a row as CPUs do')
  assert found['added'] == {'diagnose': []}


def test_what_does_not_fit_is_not_an_error(found):
  if 'refused' not in found:
    pytest.skip('stand-ins have no bound')
  for words, peak in found['refused']:
    assert 'hbm' in words.lower()
    assert peak > 16 * 2**30
