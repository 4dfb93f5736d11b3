"""`me-jax plan`: tables, plan.json, and one line for bad input."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

import me_jax
from me_jax import cli
from me_jax.cli import plan_table
from me_jax.planning import compile as compile_lib
from me_jax.planning import plan as plan_lib
from me_jax.planning import planned as planned_lib
from tests.support import plans
from tests.support import processes

ROOT = pathlib.Path(me_jax.__file__).parent.parent
SMALL = ('--set=data.length=16', '--set=data.batch=4', '--what=step')
_SET = (
  'JAX_PLATFORMS', 'XLA_FLAGS', 'TPU_SKIP_MDS_QUERY', 'TPU_ACCELERATOR_TYPE',
  'TPU_WORKER_HOSTNAMES', 'TPU_WORKER_ID', 'ALLOW_MULTIPLE_LIBTPU_LOAD',
)  # fmt: skip


@pytest.fixture(name='model')
def _model(tmp_path, monkeypatch):
  """Returns a folder with a config.json; the verb sets what is put back."""
  for name in _SET:
    monkeypatch.setenv(name, os.environ.get(name, ''))
  monkeypatch.setenv('ME_JAX_CACHE', str(tmp_path / 'cache'))
  return plans.folder(tmp_path / 'model')


def planned(model, *flags):
  return cli.main(['plan', f'--model_config={model}', *SMALL, *flags])


def test_it_prints_what_fits_and_writes_all_numbers(model, tmp_path, capsys):
  out = tmp_path / 'out'
  assert planned(model, '--topology=h100x1', f'--out={out}') == 0
  said = capsys.readouterr()
  assert 'It fits: step needs most' in said.out
  assert 'Memory of a device' in said.out
  assert 'an estimate' in said.out
  assert 'compiling step' in said.err
  content = json.loads((out / 'plan.json').read_text())
  assert content['fits'] is True
  assert [one['name'] for one in content['programs']] == ['step']
  assert list((tmp_path / 'cache' / 'plans').glob('*.json'))


def test_the_time_that_is_marked_is_the_one_that_bounds(capsys):
  one = planned_lib.Planned(
    name='step', topology='h100x8', devices=8, hbm=100, parameters=1,
    optimizer=1, peak=9, compute=1.0, memory=1.5, links=4.0, links_least=2.25,
    bound='links', best=2.25, worst=6.5,
  )  # fmt: skip
  found = plan_lib.Plan(
    model='tiny', topology=plans.ONE, mesh={}, programs=(one,), notes=()
  )
  plan_table.show(found)
  said = capsys.readouterr().out
  assert '2.25 s * ' in said
  assert '2.25 s to 6.50 s' in said
  # Links one after another are in the sum alone.
  assert '4.00 s' not in said


def test_a_search_names_the_flags_to_train_with(
  model, tmp_path, capsys, monkeypatch
):
  plans.compile_nothing(monkeypatch)
  out = tmp_path / 'out'
  flags = ['--topology=h100x1', '--search', '--most=2', f'--out={out}']
  assert planned(model, *flags) == 0
  said = capsys.readouterr().out
  assert 'The fastest that fits: me-jax train --mesh=data=1,fsdp=1' in said
  content = json.loads((out / 'plan.json').read_text())
  assert len(content['tried']) == 2
  assert content['front']


def test_a_cluster_is_planned_with_stand_ins(model, tmp_path):
  out = tmp_path / 'out'
  environment = processes.environment(2, PYTHONPATH=str(ROOT))
  config = ROOT / 'configs' / 'smollm2_sft_full.py'
  done = subprocess.run(
    [
      sys.executable, '-m', 'me_jax', 'plan', f'--config={config}',
      f'--model_config={model}', '--topology=h100x8', '--mesh=fsdp=4,tensor=2',
      *SMALL, f'--out={out}',
    ],
    env=environment, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  content = json.loads((out / 'plan.json').read_text())
  assert content['mesh'] == {'data': 1, 'fsdp': 4, 'sequence': 1, 'tensor': 2}
  assert content['programs'][0]['devices'] == 8
  axes = {tuple(x['axes']) for x in content['programs'][0]['exchanges']}
  assert ('fsdp',) in axes
  assert all(x['link'] == 'NVLink' for x in content['programs'][0]['exchanges'])


def _tpu():
  return pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason='libtpu is not installed here: pip install jax[tpu]',
  )


@_tpu()
def test_a_small_run_fits_a_slice(model, capsys):
  assert planned(model, '--topology=v5e:2x2') == 0
  said = capsys.readouterr().out
  assert 'It fits' in said
  assert 'all-gather' in said
  assert 'memory: a bound' in said


@_tpu()
def test_too_many_rows_do_not_fit_a_chip(model, tmp_path, capsys):
  out = tmp_path / 'out'
  flags = ['--topology=v5e-1', '--set=data.batch=4000000', f'--out={out}']
  assert planned(model, *flags) == 1
  said = capsys.readouterr().out
  assert 'It does NOT fit: step needs at least' in said
  assert 'compute.parts' in said.splitlines()[-2]
  content = json.loads((out / 'plan.json').read_text())
  assert content['fits'] is False
  assert content['programs'][0]['room'] < 0


@pytest.mark.parametrize(
  ('flags', 'named'),
  [
    (['--topology=v5e-250'], 'did you mean v5e-256'),
    (['--topology=h10x8'], 'there is no topology h10x8'),
    (['--topology=h100x1', '--mesh=fsdp=3'], 'is not the number of devices, 1'),
    (['--topology=h100x1', '--mesh=fsdp'], "'fsdp' is no axis and size"),
    (['--topology=h100x1', '--what=training'], "did you mean 'train'"),
    (['--topology=h100x1', '--what='], '--what names'),
    (['--topology=h100x1', '--model_config=nowhere'], 'no such file'),
    (['--topology=h100x1', '--config=missing.py'], 'no such file'),
    (['--topology=h100x1', '--set=data.rows=3'], 'data.rows'),
    (['--topology=h100x1', '--set=compute.parts=3'], 'cannot be divided'),
    (['--topology=h100x512'], 'before JAX is imported'),
    (['--topology=h100x1', '--most=0'], '--most'),
    (['--topology=h100x1', '--search', '--what=generate'], '--search is for'),
    (
      ['--topology=h100x1', '--what=analysis', '--length=100000'],
      'more than the context',
    ),
  ],
)
def test_bad_input_is_one_line(model, flags, named, capsys, monkeypatch):
  def fail(*args):
    raise AssertionError('compiled')

  monkeypatch.setattr(compile_lib, 'compile_for', fail)
  monkeypatch.chdir(model)
  assert planned(model, *flags) == 2
  said = capsys.readouterr()
  assert said.out == ''
  lines = [line for line in said.err.splitlines() if 'laying out' not in line]
  assert len(lines) == 1
  assert named in lines[0]


def test_an_unknown_model_says_what_would_do(model, capsys, monkeypatch):
  monkeypatch.chdir(model)
  flags = ['--model=./nowhere', '--topology=h100x1']
  assert cli.main(['plan', *SMALL, *flags]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert '--model_config' in line


def test_without_its_compiler_it_says_what_to_install(
  model, capsys, monkeypatch
):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert planned(model, '--topology=v5e-4') == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "pip install 'me-jax[tpu]'" in line
