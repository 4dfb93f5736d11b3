"""What a program needs is what the compiler made, added up by hand here."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib

import jax
import pytest

import me_jax
from me_jax import errors
from me_jax.models import params as params_lib
from me_jax.planning import compile as compile_lib
from me_jax.planning import hlo
from me_jax.planning import plan
from me_jax.planning import planned
from me_jax.planning import topology
from me_jax.planning import workload
from me_jax.training import rollouts
from me_jax.training import settings
from me_jax.training import trained
from tests.support import plans

FOLDER = pathlib.Path(me_jax.__file__).parent.parent / 'configs'
CONFIGS = sorted(path.stem for path in FOLDER.glob('*.py'))
# 8 × 64 numbers of bfloat16 on each of eight become 64 × 64.
GATHER = (
  '%gather.{i} = bf16[64,64]{{1,0}} all-gather(%part), channel_id={i},'
  ' replica_groups={groups}, dimensions={{0}}, use_global_device_ids=true'
)
MEMORY = compile_lib.Memory(
  arguments=1000, outputs=300, temporary=50, aliased=200, code=7, peak=1157
)


def read(lines, name, sizes, beside=0, memory=MEMORY, tokens=0):
  target, compiled = plans.written(
    lines, topology.find(name), memory=memory, sizes=sizes, tokens=tokens
  )
  target = dataclasses.replace(target, beside=beside)
  return planned.read(target, compiled)


def parameters():
  shapes = params_lib.param_shapes(plans.CONFIG, 'float32')
  return sum(leaf.size * 4 for leaf in jax.tree.leaves(shapes))


def test_memory_is_the_compilers_and_what_waits_beside():
  found = read([], 'h100x8', {'fsdp': 8}, beside=40)
  assert (found.inputs, found.outputs, found.temporary) == (1000, 100, 50)
  assert found.peak == 1157 + 40
  assert found.room == 80 * 10**9 - 1197
  assert found.fits


def test_what_does_not_fit_says_by_how_much():
  found = read([], 'h100x8', {'fsdp': 8}, beside=80 * 10**9 - 1156)
  assert found.room == -1
  assert not found.fits


def test_what_the_compiler_refuses_does_not_fit():
  target, compiled = plans.written(
    [], topology.find('h100x8'), memory=MEMORY, sizes={'fsdp': 8}
  )
  refused = dataclasses.replace(compiled, refused='no room', text='')
  found = planned.read(target, refused)
  assert found.room > 0
  assert not found.fits
  assert found.rate is None


def test_exchanges_are_grouped_with_axes_and_wires():
  lines = [
    GATHER.format(i=1, groups='[1,8]<=[8]'),
    GATHER.format(i=2, groups='[1,8]<=[8]'),
  ]
  (one,) = read(lines, 'h100x8', {'fsdp': 8}).exchanges
  # Each of eight sends its own 8th of 8192 bytes on, seven times.
  assert (one.times, one.bytes) == (2, 2 * 8192 * 7 / 8)
  assert (one.kind, one.axes, one.link) == ('all-gather', ('fsdp',), 'NVLink')
  assert (one.where, one.network_bytes) == ('once', 0)


def test_exchanges_between_hosts_are_apart():
  lines = [
    GATHER.format(i=1, groups='[2,8]<=[16]'),
    GATHER.format(i=2, groups='[1,16]<=[16]'),
  ]
  found = read(lines, 'h100x16', {'data': 2, 'fsdp': 8}).exchanges
  assert {(one.axes, one.link) for one in found} == {
    (('fsdp',), 'NVLink'),
    (('data', 'fsdp'), 'NIC'),
  }


def test_times_are_those_of_the_roofline():
  found = read(
    [GATHER.format(i=1, groups='[1,8]<=[8]')], 'h100x8', {'fsdp': 8}, tokens=90
  )
  # 7168 bytes over NVLink of 450 GB/s; memory is read and written beside.
  assert found.links == pytest.approx(7168 / 450e9)
  assert found.links_least == found.links
  assert found.memory == pytest.approx(found.traffic / 3350e9)
  assert found.best == max(found.links, found.memory)
  assert found.worst == pytest.approx(found.links + found.memory)
  assert found.rate == pytest.approx((90 / found.worst, 90 / found.best))


def test_a_step_holds_parameters_and_two_moments():
  (target,) = plans.step()
  assert workload.parameters(target.program) == parameters()
  moments = workload.optimizer(target.program) - 2 * parameters()
  assert 0 <= moments <= 16  # counts of steps
  assert target.beside == 0


def test_the_state_waits_while_texts_are_scored():
  held = settings.HeldOut(name='x', source=None)
  found = {
    one.program.name: one.beside
    for one in plans.step(plans.run_of(held_out=(held,)), what=('train',))
  }
  optimizer = 2 * parameters()
  assert found['step'] == 0
  # Parameters are those of the state, and not there twice.
  assert optimizer <= found['held out'] <= optimizer + 64
  assert optimizer <= found['monitor'] <= optimizer + 64


def test_grpo_keeps_its_start_and_draws_from_a_copy():
  run = plans.run_of(
    method=settings.Grpo(
      sampling=rollouts.Settings(answers=2, max_new_tokens=8, rows=4), kl=0.1
    ),
    compute=settings.Compute(dtype='bfloat16'),
  )
  found = {one.program.name: one for one in plans.step(run, what=('train',))}
  assert found['step'].beside == parameters()
  for name in ('prefill', 'decode'):
    # Master weights, moments and the start.
    assert found[name].beside >= 4 * parameters()
  assert found['score'].beside >= 3 * parameters()


def test_adapters_are_merged_into_a_copy():
  run = plans.run_of(
    train=trained.Trained(parts=('lora',)),
    held_out=(settings.HeldOut(name='x', source=None),),
  )
  found = {one.program.name: one for one in plans.step(run, what=('train',))}
  assert found['held out'].beside > parameters()


@pytest.mark.parametrize('name', CONFIGS)
def test_every_configuration_has_programs(name):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  run = dataclasses.replace(module.config(None), mesh=settings.Mesh())
  # Some name layers of the default model.
  config = dataclasses.replace(plans.CONFIG, num_hidden_layers=30)
  targets = plans.step(run, what=('train',), config=config)
  found = [one.program.name for one in targets]
  assert found[0] == 'step'
  assert ('decode' in found) == name.endswith('grpo')


def test_answers_are_drawn_by_one_host():
  assert workload.host_of(topology.find('v5e-64')).shape == (2, 2)
  assert workload.host_of(topology.find('v5p-128')).shape == (2, 2, 1)
  assert workload.host_of(topology.find('h100x64')).chips == 8
  assert workload.host_of(topology.find('v5e-1')).chips == 1


def test_a_plan_is_json_and_fits_or_not(tmp_path):
  targets = plans.step()

  def make(targets):
    return plan.make(targets, model='tiny', topology=plans.ONE, folder=tmp_path)

  content = json.loads(json.dumps(plan.to_json(make(targets))))
  assert content['fits'] is True
  assert content['exact'] is False
  assert any('an estimate' in note for note in content['notes'])
  (step,) = content['programs']
  assert step['flops'] > 0
  assert step['peak'] > 3 * parameters()
  assert step['tokens_per_second'][0] < step['tokens_per_second'][1]
  # As much less as there is left, and a byte.
  waits = dataclasses.replace(targets[0], beside=step['room'] + 1)
  assert not make([waits]).fits
  assert make([waits]).programs[0].room == -1


def test_programs_with_loops_of_unknown_length_are_named():
  known = read([], 'h100x8', {'fsdp': 8})
  unknown = dataclasses.replace(known, name='score', uncounted=1)
  place = topology.find('h100x8')
  (line,) = set(plan.notes(place, [known, unknown])) - {
    *plan.notes(place, [known])
  }
  assert 'some loops of score count once' in line


def test_without_a_compiler_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.MeJaxError, match=r"pip install 'me-jax\[tpu\]'"):
    plans.step(place=topology.find('v5e-1'))


@pytest.mark.parametrize(
  ('loops', 'where'),
  [
    ((), 'once'),
    (('jit(step)/while',), 'loop'),
    (('jit(step)/while', 'jit(step)/Decoder._layers/while'), 'layers'),
  ],
)
def test_an_exchange_is_where_it_runs_and_not_where_it_was_written(
  loops, where
):
  one = hlo.Collective(
    name='a',
    kind='all-gather',
    shape='f32[8]',
    size=32,
    bytes=24.0,
    network_bytes=0.0,
    groups=((0, 1, 2, 3),),
    axes=('fsdp',),
    links=1.0,
    times=3,
    inside_loop=bool(loops),
    op_name='jit(step)/Decoder._layers/while/body/dot_general',
    loops=loops,
  )
  (found,) = planned.exchanges((one,), topology.find('v5e-4'))
  assert (found.where, found.times, found.bytes) == (where, 3, 72)
