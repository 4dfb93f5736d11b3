"""What was compiled once is found again, and only if nothing has changed."""

from __future__ import annotations

import dataclasses
import json

import pytest

from me_jax.planning import cached
from me_jax.planning import compile as compile_lib
from me_jax.planning import plan
from me_jax.planning import planned
from me_jax.planning import topology
from tests.support import plans

ENTRY = planned.Planned(
  name='step',
  topology='v5e-4',
  devices=4,
  hbm=100,
  parameters=10,
  optimizer=20,
  beside=5,
  peak=60,
  flops=1.5,
  bound='links',
  exchanges=(
    planned.Exchange(
      kind='all-gather', axes=('data', 'fsdp'), link='ICI', where='layers',
      times=3, bytes=4.5, network_bytes=0.0, largest='bf16[2,3]',
    ),
  ),
  findings=('a finding',),
)  # fmt: skip


def target(name='h100x8', **changes):
  found, _ = plans.written(
    [],
    topology.find(name),
    memory=compile_lib.Memory(peak=0),
    sizes=changes.pop('sizes', {'fsdp': 8}),
    **changes,
  )
  return found


def test_an_entry_comes_back_without_what_was_beside_it(tmp_path):
  cached.put(tmp_path / 'plans', 'key', ENTRY)
  found = cached.get(tmp_path / 'plans', 'key')
  assert found == dataclasses.replace(ENTRY, beside=0, peak=55, cached=True)
  assert [path.name for path in (tmp_path / 'plans').iterdir()] == ['key.json']


def test_an_entry_depends_on_all_that_it_is_made_of(monkeypatch):
  keys = [
    cached.key(target(), 'text'),
    cached.key(target(), 'other text'),
    cached.key(target(), 'te', 'xt'),
    cached.key(target(), 'text', 'plain'),
    cached.key(target('a100x8'), 'text'),
    cached.key(target(sizes={'data': 8}), 'text'),
    cached.key(target(tokens=5), 'text'),
  ]
  monkeypatch.setattr(cached, '_version', lambda package: 'another')
  keys.append(cached.key(target(), 'text'))
  monkeypatch.undo()
  monkeypatch.setenv('LIBTPU_INIT_ARGS', '--xla_tpu_another=1')
  keys.append(cached.key(target(), 'text'))
  assert len(set(keys)) == len(keys)


def test_two_names_of_one_grid_share_entries():
  keys = []
  for name in ('v5e-16', 'v5litepod-16', 'v5e:4x4'):
    keys.append(cached.key(target(name, sizes={'fsdp': 16}), 'text'))
  assert len(set(keys)) == 1


@pytest.mark.parametrize(
  'damage',
  [
    lambda text: text[: len(text) // 2],
    lambda text: '',
    lambda text: '[]',
    lambda text: json.dumps(json.loads(text) | {'peak': None}),
    lambda text: json.dumps(json.loads(text) | {'exchanges': [{'kind': 1}]}),
    lambda text: json.dumps({'name': 'step'}),
    lambda text: b'\xff\xfe'.decode('latin-1'),
  ],
)
def test_damaged_entries_are_as_if_there_were_none(tmp_path, damage):
  cached.put(tmp_path, 'key', ENTRY)
  path = tmp_path / 'key.json'
  path.write_bytes(damage(path.read_text()).encode('latin-1'))
  assert cached.get(tmp_path, 'key') is None


def test_a_folder_that_cannot_be_is_no_hindrance(tmp_path):
  (tmp_path / 'file').write_text('')
  cached.put(tmp_path / 'file', 'key', ENTRY)
  assert cached.get(tmp_path / 'file', 'key') is None
  assert cached.get(None, 'key') is None


def test_nothing_is_compiled_twice(tmp_path, monkeypatch):
  asked = plans.compile_nothing(monkeypatch)
  targets = plans.step()

  def make(folder):
    return plan.make(targets, model='x', topology=plans.ONE, folder=folder)

  first, again = make(tmp_path).programs[0], make(tmp_path).programs[0]
  assert asked == ['step']
  assert again == dataclasses.replace(first, cached=True)
  make(None)
  assert asked == ['step', 'step']


def test_an_analysis_needs_the_plain_pass_only_if_it_is_new(
  tmp_path, monkeypatch
):
  asked = plans.compile_nothing(monkeypatch)
  targets = plans.step(what=('analysis',))
  for _ in range(2):
    plan.make(targets, model='x', topology=plans.ONE, folder=tmp_path)
  assert asked == ['forward', 'find', 'diagnose']
