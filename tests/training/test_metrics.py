"""A resumed run's numbers are those of one that was never stopped."""

from __future__ import annotations

import importlib.machinery
import json
import math
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from me_jax import errors
from me_jax.training import metrics as metrics_lib


@pytest.fixture(autouse=True)
def _no_events(monkeypatch):
  """tensorboardX may be installed, or not."""
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  find = metrics_lib.importlib.util.find_spec
  monkeypatch.setattr(
    metrics_lib.importlib.util,
    'find_spec',
    lambda name: None if name == 'tensorboardX' else find(name),
  )


def fill(folder, first, last, **options):
  with metrics_lib.Metrics(folder, **options) as numbers:
    for step in range(first, last + 1):
      numbers.write('train', step, loss=1 / step)
      if step % 2 == 0:
        numbers.write('held_out', step, sets={'C4': {'loss': 2.0}})


def test_numbers_of_all_kinds_become_strict_json(tmp_path):
  with metrics_lib.Metrics(tmp_path) as numbers:
    numbers.write(
      'train',
      jnp.int32(3),
      loss=jnp.float32(0.5),
      mean_G=np.array([1.0, np.nan]),
      deep={'a': (math.inf, 2, 'text', None, True)},
    )
    # It is there before the file is closed.
    (line,) = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(line, parse_constant=pytest.fail) == {
    'kind': 'train',
    'step': 3,
    'loss': 0.5,
    'mean_G': [1.0, None],
    'deep': {'a': [None, 2, 'text', None, True]},
  }


def test_a_resumed_run_has_the_lines_of_an_uninterrupted_one(tmp_path):
  fill(tmp_path / 'whole', 1, 6)
  fill(tmp_path / 'cut', 1, 5)
  path = tmp_path / 'cut' / 'metrics.jsonl'
  path.write_text(path.read_text() + '{"kind": "train", "st')
  assert metrics_lib.read(tmp_path / 'cut')[-1]['step'] == 5
  fill(tmp_path / 'cut', 4, 6, step=3)
  whole = (tmp_path / 'whole' / 'metrics.jsonl').read_text()
  assert path.read_text() == whole
  assert len(metrics_lib.read(tmp_path / 'cut')) == 9


def test_a_run_that_begins_anew_begins_with_no_lines(tmp_path):
  fill(tmp_path, 1, 3)
  fill(tmp_path, 1, 1)
  assert [line['step'] for line in metrics_lib.read(tmp_path)] == [1]


def test_other_processes_write_nothing(tmp_path):
  fill(tmp_path / 'run', 1, 2, writer=False)
  assert not (tmp_path / 'run').exists()


def test_what_cannot_be_read_or_written_is_said(tmp_path):
  with pytest.raises(errors.MeJaxError, match='is .* a run'):
    metrics_lib.read(tmp_path)
  path = tmp_path / 'metrics.jsonl'
  for text in ('[1]\n', '{"a": 1}\n', '{"step\n'):
    path.write_text(text)
    with pytest.raises(errors.MeJaxError, match='line 1 of .* none of ours'):
      metrics_lib.Metrics(tmp_path, step=2)
    assert path.read_text() == text
  with pytest.raises(errors.MeJaxError, match='pip install tensorboardX'):
    metrics_lib.Metrics(tmp_path / 'other', tensorboard=True)
  with metrics_lib.Metrics(tmp_path) as numbers:
    numbers._file = open('/dev/full', 'wb', buffering=0)
    with pytest.raises(errors.MeJaxError, match='No space left'):
      numbers.write('train', 1)
    numbers._file = None


def test_one_of_several_processes_goes_on_until_all_can_stop(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(metrics_lib.jax, 'process_count', lambda: 2)
  with metrics_lib.Metrics(tmp_path) as numbers:
    numbers.check()
    whole, numbers._file = numbers._file, open('/dev/full', 'wb', buffering=0)
    numbers.write('train', 1)
    numbers._file.close()
    numbers._file = whole
    numbers.write('train', 2)
    with pytest.raises(errors.MeJaxError, match='No space left'):
      numbers.check()
  assert metrics_lib.read(tmp_path) == []


def test_event_files_get_the_scalars(tmp_path, monkeypatch):
  made = []

  class SummaryWriter:
    def __init__(self, folder, purge_step):
      made.append((folder, purge_step))

    def add_scalar(self, *point):
      made.append(point)

    def flush(self):
      pass

    close = flush

  module = types.ModuleType('tensorboardX')
  module.SummaryWriter = SummaryWriter
  monkeypatch.setitem(sys.modules, 'tensorboardX', module)
  monkeypatch.setattr(
    metrics_lib.importlib.util,
    'find_spec',
    lambda name: importlib.machinery.ModuleSpec(name, None),
  )
  with metrics_lib.Metrics(tmp_path, step=4) as numbers:
    numbers.write(
      'held_out', 5, sets={'C4': {'loss': 2, 'low': math.nan}}, a=[1]
    )
  assert made == [
    (str(tmp_path / 'tensorboard'), 5),
    ('held_out/sets/C4/loss', 2.0, 5),
  ]
  del made[:]
  metrics_lib.Metrics(tmp_path, tensorboard=False).close()
  assert made == []
