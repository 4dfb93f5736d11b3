"""Bad input to `me-jax train`: one line, before weights are read."""

from __future__ import annotations

import pytest

from me_jax import cli
from me_jax.checkpoints import load
from me_jax.training import run_folder
from tests.support import chats
from tests.support import training_folder

DPO, GRPO = (
  f'method=settings.{name}(), train=trained.Trained(parts=("lora",)),'
  for name in ('Dpo', 'Grpo')
)
IMPORT = 'from me_jax.training import trained\n'


@pytest.fixture(scope='module', name='model')
def _model(tmp_path_factory):
  return training_folder.model(tmp_path_factory.mktemp('model'))


def _files(folder):
  """Returns what is there, and when each file was written."""
  return {
    path: path.lstat().st_mtime_ns if path.is_file() else None
    for path in folder.rglob('*')
  }


@pytest.fixture(name='refused')
def _refused(model, tmp_path, capsys, monkeypatch):
  """Returns what the verb says to flags that it must refuse at once."""

  def fail(*args, **kwargs):
    raise AssertionError('weights were read')

  monkeypatch.setattr(load.Checkpoint, 'load_params', fail)
  monkeypatch.chdir(tmp_path)

  def run(*flags):
    given = [str(flag) for flag in flags]
    names = [flag.partition('=')[0] for flag in given]
    for flag, value in (
      ('--model', model),
      ('--out', 'out'),
      ('--data', training_folder.data(tmp_path)),
    ):
      if flag not in names:
        given.append(f'{flag}={value}')
    if '--config' not in names:
      given = [*training_folder.SHORT, *given]
    before = _files(tmp_path)
    assert cli.main(['train', *given]) == 2
    assert _files(tmp_path) == before
    said = capsys.readouterr()
    assert said.out == ''
    lines = said.err.splitlines()
    # What it is doing is shown where reading may take long.
    assert [line for line in lines if line != 'me-jax: reading data'] == (
      lines[-1:]
    )
    assert lines[-1].startswith('me-jax: ')
    return lines[-1]

  return run


@pytest.mark.parametrize(
  ('flags', 'named'),
  [
    (['--data=missing'], '--data=missing: no such file or folder'),
    (['--data='], '--data lacks a value'),
    (['--config=missing.py'], 'no such file'),
    (['--model=nowhere'], 'nowhere'),
    (['--steps=-2'], 'steps is -2'),
    (['--steps=0'], 'one of them must be positive'),
    (['--steps=few'], 'steps'),
    (['--seed=-1'], 'seed is -1'),
    (['--set=epochs=2'], 'steps is 20 and epochs 2'),
    (['--set', 'optim.lr'], 'is no change'),
    (['--set=optim.clp=1'], "did you mean 'clip'"),
    (['--set=optm.lr=1'], "did you mean 'optim'"),
    (['--set=optim.lr=fast'], 'must be a number'),
    (['--set=optim.lr=nan'], 'optim.lr'),
    (['--set=optim=1'], 'name one of its fields'),
    (['--set=optim.schedule=cosin'], "did you mean 'cosine'"),
    (['--set=data.batch=2.5'], 'must be a whole number'),
    (['--set=data.batch=0'], 'data.batch is 0'),
    (['--set=compute.parts=3'], 'cannot be divided into compute.parts=3'),
    (['--set=compute.remat=al'], 'compute.remat'),
    (['--set=data.length=9999'], 'context of 256'),
    (['--set=data.length=8'], 'no row fits into 8 tokens'),
    (['--set=evaluation.length=8'], 'no row fits into 8 tokens'),
    (['--set=data.mix.sources.0.rows=(99,100)'], 'none of them in the slice'),
    (['--set=data.mix.sources.1.rows=None'], 'none of the 1 that are there'),
    (['--set=train.parts=gate'], "did you mean 'gates'"),
    (['--set=train.parts=lora,full'], 'cannot be trained together'),
    (['--set=train.gates.layers=(5,8)'], 'train.gates: layers must be some of'),
    (['--set=train.gates.layers=afte'], "did you mean 'after'"),
    (['--set=train.gates.tokens=(256,)'], 'train.gates: tokens must be'),
    (['--set=train.gates.tokens=fist'], "did you mean 'first'"),
    (['--set=train.gates.high=0.5'], 'have 1'),
    (['--set=train.parts=lora', '--set=train.lora.layers=(9,)'], 'train.lora'),
    (['--set=train.parts=lora', '--set=train.lora.rank=0'], 'rank'),
    (['--set=mask.rate=2'], 'mask.rate is 2'),
    (['--set=mask.rate=0.5', '--set=mask.layers=(8,)'], 'mask: layers'),
    (['--set=mask.rate=0.5', '--set=mask.select=wieght'], "'weight'"),
    (['--set=mask.rate=0.5', '--set=mask.strength=2'], 'strength'),
    (['--set=penalty.form=l3'], 'penalty.form'),
    (['--mesh=tensor=3,fsdp=1'], 'is not the number of devices'),
    (['--mesh=fspd=1'], "did you mean 'fsdp'"),
    (['--mesh=fsdp'], 'no axis and size'),
    (['--write=onnx'], 'none of orbax, hf, baked'),
    (['--write=orbx'], "did you mean 'orbax'"),
    (['--distributed=on'], 'coordinator'),
    (['--sets=1'], "did you mean 'set'"),
    (['here'], "'here' is no flag"),
  ],
)
def test_flags(refused, flags, named):
  assert named in refused(*flags)


@pytest.mark.parametrize(
  ('text', 'named'),
  [
    ('def config(data', 'SyntaxError'),
    ('import no_such_module', 'ModuleNotFoundError'),
    ('raise SystemExit(3)', 'SystemExit'),
    ('run = 1', 'has no function config(data)'),
    ('config = 1', 'has no function config(data)'),
    ('def config():\n  pass', 'TypeError'),
    ('def config(data):\n  return data.x', 'AttributeError'),
    ('def config(data):\n  return 1', 'returns a int'),
    (
      'from me_jax.training import settings\n'
      'def config(data):\n  return settings.Run(steps=1)',
      "argument: 'data'",
    ),
    (
      'from me_jax.training import public_sets\n'
      'def config(data):\n  return public_sets.source("gsm8k-train", data)',
      'lacks gsm8k/train.jsonl',
    ),
  ],
)
def test_configurations(refused, tmp_path, text, named):
  (tmp_path / 'own.py').write_text(text)
  assert named in refused('--config=own.py', f'--data={tmp_path}')


def test_a_configuration_must_be_python(refused, tmp_path):
  (tmp_path / 'own.yaml').write_text('steps: 1')
  assert 'must be a Python file' in refused('--config=own.yaml')


def test_a_configuration_may_hold_dataclasses(model, tmp_path, capsys):
  """It is a module for those who look for one, and leaves nothing behind."""
  config = training_folder.config(tmp_path)
  config.write_text(
    'from __future__ import annotations\nimport dataclasses\n'
    '@dataclasses.dataclass\nclass Own:\n  field: int = 1\n'
    + config.read_text()
  )
  data = training_folder.data(tmp_path)
  argv = ['train', f'--config={config}', f'--data={data}', '--set=help']
  assert cli.main(argv) == 0
  assert 'steps=2' in capsys.readouterr().out.splitlines()
  assert sorted(p.name for p in tmp_path.iterdir()) == ['rows.jsonl', 'tiny.py']


@pytest.mark.parametrize(
  ('rows', 'named'),
  [
    ([], 'is empty'),
    (['{'], 'line 1: not valid JSON'),
    (['{"input": 3}'], 'line 1: needs "text"'),
    (['{"prompt": "a", "chosen": "b", "rejected": "c"}'], 'line 1: needs'),
    (['{"prompt": "what is left to learn"}'], 'line 1: needs "text"'),
    (['{"text": "' + 'a' * 300 + '"}'] * 20, 'no row fits into 96 tokens'),
    (['{"text": "a"}'] * 16, 'none of them in the slice (None, -16)'),
  ],
)
def test_rows(refused, tmp_path, rows, named):
  (tmp_path / 'own.jsonl').write_text('\n'.join(rows))
  assert named in refused('--data=own.jsonl')


def test_data_that_is_no_text(refused, tmp_path):
  (tmp_path / 'own.txt').write_bytes(b'\xff\xfe\x00')
  assert 'is not UTF-8' in refused('--data=own.txt')
  (tmp_path / 'empty').mkdir()
  assert 'holds no .jsonl or .txt file' in refused('--data=empty')
  (tmp_path / 'own.csv').write_text('a,b')
  assert '.jsonl and .txt' in refused('--data=own.csv')


@pytest.mark.parametrize(
  ('more', 'rows', 'named'),
  [
    (DPO, [{'question': 'a', 'answer': 'b'}], 'two answers to it'),
    (DPO, [{'text': 'a'}], 'two answers to it'),
    (GRPO, [{'text': 'a'}], 'needs "prompt"'),
    (GRPO, [{'question': 'a'}], 'line 1: the reward maths needs'),
  ],
)
def test_data_of_another_method(refused, tmp_path, more, rows, named):
  config = training_folder.config(tmp_path, more)
  config.write_text(IMPORT + config.read_text())
  chats.write(tmp_path / 'own.jsonl', rows)
  flags = ['--set=method.sampling.max_new_tokens=8'] if more == GRPO else []
  assert named in refused(f'--config={config}', '--data=own.jsonl', *flags)


@pytest.mark.parametrize(
  ('more', 'flags', 'named'),
  [
    (DPO, ['--set=method.beta=0'], 'beta is 0'),
    (DPO, ['--set=method.reference=besides'], "did you mean 'beside'"),
    (GRPO, ['--set=method.clip=1'], 'clip is 1'),
    (GRPO, ['--set=method.updates=0'], 'method.updates is 0'),
    (GRPO, ['--set=method.sampling.answers=1'], 'must be 2 or more'),
    (GRPO, [], 'more than the context of 256'),
  ],
)
def test_options_of_a_method(refused, tmp_path, more, flags, named):
  config = training_folder.config(tmp_path, more)
  config.write_text(IMPORT + config.read_text())
  assert named in refused(f'--config={config}', *flags)


def test_folders_that_are_not_this_run(refused, tmp_path):
  (tmp_path / 'file').write_text('mine')
  assert 'is a file' in refused('--out=file')
  assert 'cannot write' in refused('--out=/proc/nowhere/out')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'notes.txt').write_text('mine')
  assert 'holds notes.txt but no run.json' in refused('--out=full')


def test_the_folder_of_another_run(refused, model, tmp_path):
  from me_jax.cli import flags as flags_lib
  from me_jax.cli import train as train_cli
  from me_jax.cli import train_flags
  from me_jax.training import settings

  data = training_folder.data(tmp_path)
  argv = [*training_folder.SHORT, f'--model={model}', f'--data={data}']
  run = train_flags.run(flags_lib.parse('train', train_cli, argv))
  run_folder.write('old', settings.to_json(run) | {'fingerprint': '0'})
  said = refused('--out=old', '--set=optim.lr=0.1', '--seed=3')
  assert 'holds a run with other settings' in said
  assert 'optim.lr: 0.05 there, 0.1 now' in said and 'seed: 0 there' in said


def test_a_model_without_a_span_where_a_setting_is_about_it(tmp_path, capsys):
  model = training_folder.model(tmp_path / 'flat', 'none')
  data = training_folder.data(tmp_path)
  argv = ['train', f'--model={model}', f'--data={data}', '--steps=1']
  argv += [*training_folder.SHORT, f'--out={tmp_path}/out']
  assert cli.main(argv) == 2
  last = capsys.readouterr().err.splitlines()[-1]
  assert 'no ME Layer' in last and 'list the layers' in last
  assert not (tmp_path / 'out').exists()
