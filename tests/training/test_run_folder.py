"""A folder knows its run, and lets one process in."""

from __future__ import annotations

import subprocess
import sys

import pytest

from me_jax import errors
from me_jax.training import run_folder

CONFIG = {
  'model': 'smollm2',
  'steps': 100,
  'parts': ('gates', 'lora'),
  'optim': {'lr': 0.001, 'warmup': 10, 'nesterov': False, 'extra': {}},
}


def changed(**optim):
  return CONFIG | {'optim': CONFIG['optim'] | optim}


def refusal(call, *args, **kwargs):
  with pytest.raises(errors.MeJaxError) as caught:
    call(*args, **kwargs)
  return str(caught.value)


def test_a_folder_knows_its_run(tmp_path):
  folder = tmp_path / 'a' / 'run'
  assert not run_folder.has_run(folder)
  run_folder.write(folder, CONFIG)
  assert run_folder.has_run(folder)
  assert run_folder.read(folder)['optim']['lr'] == 0.001
  assert run_folder.check(folder, CONFIG) == []
  assert run_folder.check(folder, CONFIG | {'steps': 100.0}) == []


def test_what_differs_is_named(tmp_path):
  run_folder.write(tmp_path, CONFIG)
  said = refusal(run_folder.check, tmp_path, changed(lr=0.002, nesterov=0))
  assert 'optim.lr: 0.001 there, 0.002 now; optim.nesterov: false there' in said
  assert 'steps' not in said and 'warmup' not in said
  other = CONFIG | {'parts': ['gates'], 'new': None}
  other.pop('model')
  said = refusal(run_folder.check, tmp_path, other)
  assert 'model: "smollm2" there, absent now' in said
  assert 'new: absent there, null now' in said
  assert 'parts: ["gates", "lora"] there, ["gates"] now' in said


def test_some_may_differ(tmp_path):
  run_folder.write(tmp_path, CONFIG)
  now = changed(lr=0.002) | {'steps': 200}
  both = ['optim.lr: 0.001 there, 0.002 now', 'steps: 100 there, 200 now']
  for names in (('steps', 'optim'), ('optim.lr', 'steps')):
    assert run_folder.check(tmp_path, now, may_differ=names) == both
  # No part of a name.
  said = refusal(run_folder.check, tmp_path, now, may_differ=('step', 'optim'))
  assert 'steps: 100 there' in said and 'optim' not in said


def test_many_differences_and_long_values_are_cut(tmp_path):
  run_folder.write(tmp_path, {f'n{i:02}': 'x' * 999 for i in range(30)})
  said = refusal(run_folder.check, tmp_path, {})
  assert 'n00: ' in said and 'n08' not in said and 'and 22 more' in said


def test_folders_of_others_are_refused_and_untouched(tmp_path):
  (tmp_path / 'notes.txt').write_text('mine')
  for call in (run_folder.has_run, lambda f: run_folder.write(f, CONFIG)):
    assert 'holds notes.txt but no run.json' in refusal(call, tmp_path)
    assert 'is a file' in refusal(call, tmp_path / 'notes.txt')
  assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']
  empty = tmp_path / 'empty'
  empty.mkdir()
  assert 'holds no run' in refusal(run_folder.check, empty, CONFIG)


@pytest.mark.parametrize(
  'text', ['{', '[]', '{"format": 2, "config": {}}', '{}']
)
def test_a_broken_file_is_no_run_to_go_on_with(tmp_path, text):
  (tmp_path / 'run.json').write_text(text)
  assert 'run.json' in refusal(run_folder.check, tmp_path, CONFIG)


def test_what_json_cannot_hold_is_refused(tmp_path):
  for value in (float('nan'), object()):
    said = refusal(run_folder.write, tmp_path / 'run', {'a': value})
    assert 'as JSON' in said
  assert not (tmp_path / 'run').exists()


def test_a_lock_ends_with_its_block_or_its_process(tmp_path):
  with run_folder.lock(tmp_path / 'run'):
    said = refusal(run_folder.lock(tmp_path / 'run').__enter__)
    assert 'another process is at work' in said
  code = (
    'import os, sys\n'
    'from me_jax.training import run_folder\n'
    'with run_folder.lock(sys.argv[1]):\n'
    '  print("in", flush=True)\n'
    '  sys.stdin.read()\n'
  )
  other = subprocess.Popen(
    [sys.executable, '-c', code, str(tmp_path / 'run')],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env={'PYTHONPATH': ':'.join(sys.path), 'JAX_PLATFORMS': 'cpu'},
  )
  try:
    assert other.stdout.readline() == b'in\n'
    said = refusal(run_folder.lock(tmp_path / 'run').__enter__)
    assert 'another process is at work' in said
  finally:
    other.kill()
    other.communicate()
  with run_folder.lock(tmp_path / 'run'):
    run_folder.write(tmp_path / 'run', CONFIG)
