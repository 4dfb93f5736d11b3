"""Every run in `configs` can be, and is what its first lines say."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
import re
import shlex

import pytest

import me_jax
from me_jax.cli import flags as flags_lib
from me_jax.cli import train as train_cli
from me_jax.cli import train_flags
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.training import data as data_lib
from me_jax.training import settings
from me_jax.training import settings_check
from me_jax.training import trained
from tests.support import planted

FOLDER = pathlib.Path(me_jax.__file__).parent.parent / 'configs'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))
GATES = 'smollm2_sft_gates'
# Rows of each public set that are made up here.
ROWS = 200


def _module(name):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _run(name, data=None):
  return _module(name).config(data)


@pytest.fixture(scope='module', name='data')
def _data(tmp_path_factory):
  """Returns a folder of public sets whose rows say where they stand."""
  folder = tmp_path_factory.mktemp('sets')

  def write(place, row):
    path = folder / place
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(row(f'{place} {i}')) for i in range(ROWS)]
    path.write_text('\n'.join(lines))

  for split in ('train', 'test'):
    write(f'gsm8k/{split}.jsonl', lambda at: {'question': at, 'answer': '1'})
  write('math500/test.jsonl', lambda at: {'problem': at, 'solution': '1'})
  write('text/c4_demo.jsonl', lambda at: {'text': at})
  write(
    'preferences/dpo_en_demo.jsonl',
    lambda at: {'prompt': at, 'chosen': 'yes', 'rejected': 'no'},
  )
  return str(folder)


@pytest.mark.parametrize('name', NAMES)
def test_a_run_is_possible_from_the_hub_and_from_a_folder(name, data):
  for place in (None, data):
    run = _run(name, place)
    assert isinstance(run, settings.Run)
    settings_check.check(run)


@pytest.mark.parametrize('name', NAMES)
def test_nothing_that_is_learnt_is_held_out(name, data):
  run = _run(name, data)

  def rows(source, kind):
    return {record.where for record in data_lib.rows_of(source, kind)}

  learnt = set()
  for source in run.data.mix.sources:
    learnt |= rows(source, run.method.kind)
  for one in run.held_out:
    assert learnt.isdisjoint(rows(one.source, one.kind)), one.name


@pytest.mark.parametrize('name', NAMES)
def test_what_chooses_a_step_is_not_what_is_reported(name, data):
  seen = {True: set(), False: set()}
  for one in _run(name, data).held_out:
    records = data_lib.rows_of(one.source, one.kind)
    seen[one.report] |= {record.where for record in records}
  assert seen[True].isdisjoint(seen[False])


@pytest.mark.parametrize('name', NAMES)
def test_the_commands_in_its_first_lines_describe_runs(name, data):
  said = _module(name).__doc__.replace('\\\n', ' ')
  commands = re.findall(r'me-jax train (.*)', said)
  assert commands
  for command in commands:
    argv = [part for part in shlex.split(command.rstrip("'")) if part]
    assert argv[0] == f'--config=configs/{name}.py'
    argv[0] = f'--config={FOLDER / name}.py'
    argv = [f'--data={data}' if part == '--data=DIR' else part for part in argv]
    run = train_flags.run(flags_lib.parse('train', train_cli, argv))
    assert run.mesh.fsdp in (-1, 8, 64)


def _default_config():
  """Returns what the default model is, without reading it."""
  return config_lib.ModelConfig(
    model_type='llama',
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
  )


@pytest.mark.parametrize('name', [n for n in NAMES if n.startswith('smollm2')])
def test_as_many_numbers_are_trained_as_it_says(name):
  said = re.search(r'([\d,]{5,}) numbers', _module(name).__doc__)[1]
  model = decoder.Decoder(_default_config())
  report = dataclasses.replace(
    planted.report(11, (11,)), median=[0.3] * model.config.num_hidden_layers
  )
  assert trained.size(model, _run(name).train, report) == int(
    said.replace(',', '')
  )


@pytest.mark.parametrize(
  'name', [n for n in NAMES if n.startswith(GATES + '_') or 'small' in n]
)
def test_a_control_differs_in_what_is_trained_alone(name):
  gates, control = _run(GATES), _run(name)
  same = dataclasses.replace(control, train=gates.train)
  if 'lora' in control.train.parts:
    rate = gates.optim.lr
    same = dataclasses.replace(
      same, optim=dataclasses.replace(control.optim, lr=rate)
    )
  assert same == gates and control.train != gates.train


@pytest.mark.parametrize('name', NAMES)
def test_the_readme_names_it(name):
  assert f'`{name}.py`' in (FOLDER.parent / 'README.md').read_text('utf-8')
