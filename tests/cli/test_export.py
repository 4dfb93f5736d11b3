"""`me-jax export`, from flags to files, and what it says to bad input."""

from __future__ import annotations

import json
import os

import jax.numpy as jnp
import pytest

import me_jax
from me_jax import cli
from me_jax.checkpoints import atomic
from tests.support import folder as folder_lib
from tests.support import planted


@pytest.fixture(scope='module', name='model')
def _model(tmp_path_factory):
  model, params = planted.build([])
  return folder_lib.write(model, params, tmp_path_factory.mktemp('planted'))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


def test_a_folder_is_exported_as_it_is(model, tmp_path, capsys):
  out = tmp_path / 'new' / 'm'
  assert cli.main(['export', f'--model={model}', f'--out={out}']) == 0
  said = capsys.readouterr()
  assert f'wrote {out}' in said.out and 'writing' in said.err
  for name in ('model.safetensors', 'config.json', 'tokenizer.json'):
    assert (out / name).read_bytes() == (model / name).read_bytes()


def test_the_stored_type_is_kept_unless_another_is_asked_for(model, tmp_path):
  def dtype(folder):
    return json.loads((tmp_path / folder / 'config.json').read_text())['dtype']

  half = ['export', f'--model={model}', '--out=half', '--dtype=bfloat16']
  assert cli.main(half) == 0
  assert dtype('half') == 'bfloat16'
  assert cli.main(['export', '--model=half', '--out=again']) == 0
  assert dtype('again') == 'bfloat16'
  me_jax.save(me_jax.load('half', dtype='bfloat16'), 'orbax')
  assert cli.main(['export', '--model=orbax', '--out=third']) == 0
  assert dtype('third') == 'bfloat16'
  wide = ['export', '--model=half', '--out=wide', '--dtype=float32']
  assert cli.main(wide) == 0
  assert dtype('wide') == 'float32'


def test_metadata_and_mitigation_are_carried_over(model, tmp_path, capsys):
  lm = me_jax.load(model)
  scale = jnp.full((planted.LAYERS, planted.WIDTH), 0.5)
  lm.params['layers']['sink_scale'] = scale
  me_jax.save(lm, 'saved', metadata={'source': 'planted'})
  # A folder of either kind, and a type that is not the stored one.
  half = ['export', '--model=saved', '--out=half', '--dtype=bfloat16']
  assert cli.main(half) == 0
  assert 'mitigation' in capsys.readouterr().out
  assert cli.main(['export', '--model=half', '--out=again']) == 0
  for folder in ('half', 'again'):
    assert me_jax.read_metadata(folder) == {'source': 'planted'}
    back = me_jax.load(folder, dtype='bfloat16').params
    assert (back['layers']['sink_scale'] == scale).all()
  capsys.readouterr()
  assert cli.main(['export', f'--model={model}', '--out=stock']) == 0
  assert 'mitigation' not in capsys.readouterr().out
  assert me_jax.read_metadata('stock') == {}


def test_large_models_are_split(model, tmp_path):
  status = cli.main([
    'export', f'--model={model}', '--out=m', '--max_shard_gb=0.0001',
  ])  # fmt: skip
  assert status == 0
  assert (tmp_path / 'm' / 'model.safetensors.index.json').exists()
  me_jax.load('m')


def test_an_export_is_replaced_only_when_asked(model, tmp_path, capsys):
  arguments = ['export', f'--model={model}', '--out=m']
  assert cli.main(arguments) == 0
  capsys.readouterr()
  assert cli.main([*arguments, '--dtype=bfloat16']) == 2
  assert '--overwrite' in capsys.readouterr().err
  assert cli.main([*arguments, '--dtype=bfloat16', '--overwrite']) == 0
  config = json.loads((tmp_path / 'm' / 'config.json').read_text())
  assert config['dtype'] == 'bfloat16'


@pytest.mark.parametrize(
  ('flags', 'named'),
  [
    (['--out='], '--out lacks a value'),
    (['--out=file'], 'is a file'),
    (['--out=file/m'], 'cannot write'),
    (['--out=/proc/nowhere/m'], 'cannot write'),
    (['--out=.'], 'current folder'),
    (['--out=/'], 'name a folder in it'),
    (['--out=full'], 'exists'),
    (['--out=full', '--overwrite'], 'notes.txt'),
    (['--out=s3://bucket/m'], 'mount'),
    (['--out=same', '--model=same'], 'exists'),
    (['--out=same', '--model=same', '--overwrite'], 'the model itself'),
    (['--out=link', '--model=same', '--overwrite'], 'the model itself'),
    (['--model=/no/such/model'], '/no/such/model'),
    (['--model=full'], 'not a checkpoint'),
    (['--model=file'], 'GGUF'),
    (['--dtype=nonsense'], 'bfloat16'),
    (['--max_shard_gb=0'], 'max_shard_gb'),
    (['--max_shard_gb=-1'], 'max_shard_gb'),
    (['--max_shard_gb=nan'], 'max_shard_gb'),
    (['--max_shard_gb=inf'], 'max_shard_gb'),
    (['--max_shard_gb=big'], 'max_shard_gb'),
    (['--overwite'], "did you mean 'overwrite'"),
    (['m'], "'m'"),
  ],
)
def test_bad_input_is_one_line_and_status_2(
  model, tmp_path, capsys, monkeypatch, flags, named
):
  (tmp_path / 'file').write_text('not a folder')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'notes.txt').write_text('mine')
  (tmp_path / 'same').mkdir()
  for file in model.iterdir():
    (tmp_path / 'same' / file.name).write_bytes(file.read_bytes())
  (tmp_path / 'link').symlink_to('same')
  before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob('*')}
  # Before any work.
  monkeypatch.setattr(atomic, 'writing', None)
  if not any(flag.startswith('--out') for flag in flags):
    flags = [*flags, '--out=new']
  if not any(flag.startswith('--model') for flag in flags):
    flags = [*flags, f'--model={model}']
  assert cli.main(['export', *flags]) == 2
  said = capsys.readouterr()
  assert said.out == '' and said.err.count('\n') == 1
  assert said.err.startswith('me-jax: ') and named in said.err
  assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob('*')} == before


def test_broken_weights_leave_nothing(model, tmp_path, capsys):
  (tmp_path / 'bad').mkdir()
  for file in model.iterdir():
    data = file.read_bytes()
    if file.name == 'model.safetensors':
      # The last value becomes NaN.
      data = data[:-4] + b'\xff' * 4
    (tmp_path / 'bad' / file.name).write_bytes(data)
  assert cli.main(['export', '--model=bad', '--out=m']) == 2
  last = capsys.readouterr().err.strip().splitlines()[-1]
  assert 'NaN' in last
  assert os.listdir(tmp_path) == ['bad']


def test_help_names_every_flag(capsys):
  assert cli.main(['export', '--help']) == 0
  said = capsys.readouterr().out
  for flag in ('model', 'out', 'dtype', 'max_shard_gb', 'overwrite'):
    assert f'--{flag}' in said
