"""`me-jax train`, from flags to a trained model in its folder."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

import me_jax
from me_jax import cli
from me_jax.training import stopping
from tests.support import training_folder


@pytest.fixture(scope='module', name='model')
def _model(tmp_path_factory):
  return training_folder.model(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module', name='data')
def _data(tmp_path_factory):
  return training_folder.data(tmp_path_factory.mktemp('data'))


@pytest.fixture(name='train')
def _train(model, data):
  """Returns the verb on the tiny model and rows."""

  def run(*flags):
    flags = [str(flag) for flag in flags]
    given = [*training_folder.SHORT, '--set=monitor_every=0', '--steps=2']
    if not any(flag.startswith('--data') for flag in flags):
      given.append(f'--data={data}')
    return cli.main(['train', f'--model={model}', *given, *flags])

  return run


@pytest.fixture(scope='module', name='written')
def _written(model, data, tmp_path_factory):
  """Runs the verb once, with gates, the monitor and all forms."""
  out = tmp_path_factory.mktemp('out') / 'new'
  argv = [
    'train', f'--model={model}', f'--data={data}', f'--out={out}',
    '--steps=4', '--set=monitor_every=2', '--set', 'evaluation.every=2',
    '--write=orbax,hf,baked', *training_folder.SHORT,
  ]  # fmt: skip
  assert cli.main(argv) == 0
  return out


def _lines(out):
  lines = (out / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def _scale(folder):
  return np.asarray(me_jax.load(folder).params['layers']['sink_scale'])


def test_a_run_leaves_its_settings_metrics_and_checkpoints(written):
  run = json.loads((written / 'run.json').read_text())['config']
  assert run['steps'] == 4 and run['train']['parts'] == ['gates']
  assert run['method']['name'] == 'Sft'
  seen = [(line['kind'], line['step']) for line in _lines(written)]
  assert [step for kind, step in seen if kind == 'train'] == [1, 2, 3, 4]
  assert [step for kind, step in seen if kind == 'held_out'] == [0, 2, 4]
  assert [step for kind, step in seen if kind == 'monitor'] == [0, 2, 4]
  assert (written / 'checkpoints' / '4').is_dir()


def test_the_page_has_the_numbers(written):
  values = json.loads((written / 'report' / 'report.json').read_text())
  assert '4 of 4 steps' in values['headline']
  assert values['provenance']['run']['optim']['lr'] == 0.05
  assert 'held out' in json.dumps(values['sections']['training']['numbers'])
  page = (written / 'report' / 'report.html').read_text('utf-8')
  assert 'id="training"' in page


def test_the_command_on_the_page_can_be_given_again(written, capsys):
  values = json.loads((written / 'report' / 'report.json').read_text())
  program, *argv = shlex.split(values['command'])
  assert program == 'me-jax' and argv.count('--set=monitor_every=2') == 1
  assert argv.count('--set=evaluation.every=2') == 1
  capsys.readouterr()
  assert cli.main([*argv, '--set=help']) == 0
  said = capsys.readouterr().out.splitlines()
  assert {'monitor_every=2', 'evaluation.every=2', 'steps=4'} <= set(said)


def test_trained_gates_are_in_both_forms_that_keep_them(written):
  scale_LD = _scale(written / 'model' / 'orbax')
  assert (scale_LD == _scale(written / 'model' / 'hf')).all()
  # The emergence span is layer 4.
  assert (scale_LD[:5] == 1).all() and (scale_LD[5:] != 1).mean() > 0.9


def test_the_baked_form_is_a_plain_model_with_other_weights(written, model):
  baked = me_jax.load(written / 'model' / 'baked')
  assert 'sink_scale' not in baked.params['layers']
  stock = me_jax.load(model).params['layers']['self_attn']
  changed = [
    name
    for name in ('q_proj', 'k_proj', 'v_proj')
    if (
      stock[name]['kernel']
      != baked.params['layers']['self_attn'][name]['kernel']
    ).any()
  ]
  assert changed


def test_a_form_says_what_it_was_trained_by(written):
  for form in ('orbax', 'hf', 'baked'):
    done = me_jax.read_metadata(written / 'model' / form)['training']
    assert done['step'] == 4 and done['run']['steps'] == 4
    assert done['command'].startswith('me-jax train ')


def test_a_stopped_run_goes_on_to_the_same_gates(train, tmp_path, monkeypatch):
  assert train(f'--out={tmp_path}/whole', '--steps=4') == 0
  with monkeypatch.context() as patch:
    patch.setattr(
      stopping.Watch, 'requested', lambda _, step: step == 2 and 'SIGTERM'
    )
    status = train(f'--out={tmp_path}/cut', '--steps=4')
  assert status == 128 + 15
  assert not (tmp_path / 'cut' / 'model').exists()
  assert train(f'--out={tmp_path}/cut', '--steps=4') == 0
  assert 'resumed' in {line['kind'] for line in _lines(tmp_path / 'cut')}
  one, other = (
    _scale(tmp_path / run / 'model' / 'orbax') for run in ('whole', 'cut')
  )
  assert (one == other).all() and (one != 1).any()


def test_a_stopped_run_says_how_it_goes_on(
  train, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(stopping.Watch, 'requested', lambda _, step: 'SIGINT')
  assert train(f'--out={tmp_path}/out') == 130
  assert 'the same command goes on' in capsys.readouterr().out


def test_flags_override_what_the_configuration_says(
  train, model, data, tmp_path
):
  config = training_folder.config(tmp_path, "model='/nowhere', seed=5,")
  out = tmp_path / 'out'
  assert train(
    f'--config={config}', f'--out={out}', '--seed=7', '--write=none',
    '--mesh=data=1', '--set', 'optim.lr=0.01', '--set=held_out=()',
  ) == 0  # fmt: skip
  run = json.loads((out / 'run.json').read_text())['config']
  assert run['model'] == str(model) and run['seed'] == 7
  assert run['optim']['lr'] == 0.01 and run['mesh']['data'] == 1
  assert run['data']['mix']['sources'][0]['data'] == str(data)
  assert not (out / 'model').exists() and (out / 'report').is_dir()


def test_other_parts_and_the_mask_are_a_setting_away(train, tmp_path, capsys):
  out = tmp_path / 'out'
  assert train(
    f'--out={out}', '--set=train.parts=lora', '--set=mask.rate=0.5',
    '--set=train.lora.rank=1',
  ) == 0  # fmt: skip
  assert '(lora)' in capsys.readouterr().out.splitlines()[0]
  scale_LD = _scale(out / 'model' / 'orbax')
  assert (scale_LD[5:] == 0).mean() == 0.5 and (scale_LD[:5] == 1).all()


def test_without_any_data_there_are_built_in_chats(
  model, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  flags = ['--set=data.length=250', '--set=monitor_every=0', '--write=none']
  assert cli.main(['train', f'--model={model}', '--steps=1', *flags]) == 0
  assert 'chats.jsonl: 64 in 64 rows' in capsys.readouterr().out
  assert (tmp_path / 'train' / 'gates' / 'report' / 'report.html').exists()


def test_rows_that_are_too_long_are_counted(train, tmp_path, capsys):
  long = {'question': 'why ' * 30, 'answer': 'so'}
  data = training_folder.data(tmp_path, [long, *training_folder.rows()])
  assert train(f'--data={data}', f'--out={tmp_path}/out', '--write=none') == 0
  said = capsys.readouterr().out
  assert '1 left out, longer than 96 tokens (the longest has 1' in said


def test_epochs_say_how_many_steps(model, data, tmp_path):
  config, out = training_folder.config(tmp_path), tmp_path / 'out'
  argv = [
    'train', f'--config={config}', f'--model={model}', f'--data={data}',
    f'--out={out}', '--set=steps=0', '--set=epochs=0.25',
    '--set=data.pack=false', '--write=none',
  ]  # fmt: skip
  assert cli.main(argv) == 0
  # 24 rows, two a step.
  assert json.loads((out / 'run.json').read_text())['config']['steps'] == 3


def test_help_names_every_flag(capsys):
  assert cli.main(['train', '--help']) == 0
  said = capsys.readouterr().out
  for flag in ('config', 'set', 'data', 'out', 'write', 'mesh', 'coordinator'):
    assert f'--{flag}' in said


def test_all_fields_are_listed_with_their_values(capsys):
  assert cli.main(['train', '--set=help', '--steps=7', '--set=seed=3']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert {'steps=7', 'seed=3', 'optim.lr=0.05', 'mask.rate=0.0'} <= set(lines)
