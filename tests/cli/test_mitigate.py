"""`me-jax mitigate`, from flags to a relaxed model, and bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest

import me_jax
from me_jax import cli
from tests.support import folder as folder_lib
from tests.support import planted

SETTINGS = [
  '--texts=3', '--calibration=3', '--length=99', '--rate=0.5',
  '--layers=after', '--select=weight', '--budget=9',
]  # fmt: skip


def _folder(tmp_path_factory, verdict):
  model, params = planted.build(planted.VERDICTS[verdict])
  return folder_lib.write(model, params, tmp_path_factory.mktemp(verdict))


@pytest.fixture(scope='module', name='planted_folder')
def _planted_folder(tmp_path_factory):
  return _folder(tmp_path_factory, 'single')


@pytest.fixture(scope='module', name='data')
def _data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  words = np.array('one two three four five six seven eight'.split())
  random = np.random.default_rng(0)
  # BOS is the token that is massive, wherever it stands.
  texts = ['<bos>' + ' '.join(random.choice(words, 12)) for _ in range(8)]
  lines = [json.dumps({'text': text}) for text in texts]
  (folder / 'plain.jsonl').write_text('\n'.join(lines))
  # Without a chat template a role is written out, and so comes first.
  roles = ('<bos>user', 'assistant')
  chats = [
    {'messages': [
      {'role': role, 'content': part}
      for role, part in zip(roles, (text[5:30], text[30:50]))
    ]}
    for text in texts
  ]  # fmt: skip
  (folder / 'chats.jsonl').write_text('\n'.join(map(json.dumps, chats)))
  return folder


@pytest.fixture(scope='module', name='prompts')
def _prompts(tmp_path_factory):
  """Few: each mask's attention is looked at on all of them."""
  path = tmp_path_factory.mktemp('prompts') / 'prompts.txt'
  path.write_text('the first prompt\nanother one, 123\nand a third\n')
  return path


@pytest.fixture(scope='module', name='written')
def _written(planted_folder, data, prompts, tmp_path_factory):
  """Runs the verb once with a single setting, which is then taken."""
  out = tmp_path_factory.mktemp('out') / 'new'
  argv = [
    'mitigate', f'--model={planted_folder}', f'--data={data}', f'--out={out}',
    f'--prompts={prompts}',
    '--strength=0.5', '--write=orbax,hf,baked', *SETTINGS,
  ]  # fmt: skip
  assert cli.main(argv) == 0
  return out


def test_writes_a_report_with_every_number(written):
  values = json.loads((written / 'report' / 'report.json').read_text())
  numbers = values['sections']['mitigation']['numbers']
  assert set(numbers['stock']) == {'chats', 'plain'}
  masks = set(numbers['changes'])
  assert {'chosen', 'WeMask 0.5', 'random channels', 'smallest |γ|'} <= masks
  assert numbers['chosen']['recipe']['strength'] == [0.5] * 3
  assert values['command'].startswith('me-jax mitigate --model=')
  assert 'id="mitigation"' in (written / 'report' / 'report.html').read_text(
    'utf-8'
  )


@pytest.mark.parametrize('form', ['orbax', 'hf', 'baked'])
def test_every_form_can_be_loaded_and_says_what_was_done(written, form):
  lm = me_jax.load(written / form)
  has_scale = 'sink_scale' in lm.params['layers']
  assert has_scale == (form != 'baked')
  done = me_jax.read_metadata(written / form)['mitigation']
  assert done['form'] == form
  assert done['recipe']['select'] == 'weight'
  assert done['recipe']['layers'] == [5, 6, 7]


def test_the_forms_with_a_mask_are_one_model(written):
  orbax, hf = (me_jax.load(written / form) for form in ('orbax', 'hf'))
  scale_LD = np.asarray(orbax.params['layers']['sink_scale'])
  assert (scale_LD == hf.params['layers']['sink_scale']).all()
  assert (scale_LD[:5] == 1).all()
  assert ((scale_LD[5:] == 0.5).sum(axis=1) == planted.WIDTH // 2).all()


def test_says_when_nothing_helps_and_writes_no_model(
  planted_folder, data, prompts, tmp_path, capsys
):
  # The planted token is no use to these texts, nor is masking it.
  argv = [
    'mitigate', f'--model={planted_folder}', f'--data={data / "plain.jsonl"}',
    f'--prompts={prompts}', f'--out={tmp_path}/out', '--strength=0.5,1',
    '--noby_layer', *SETTINGS,
  ]  # fmt: skip
  assert cli.main(argv) == 0
  said = capsys.readouterr().out
  assert 'nothing helps here' in said and 'no model was written' in said
  assert [p.name for p in (tmp_path / 'out').iterdir()] == ['report']


@pytest.mark.parametrize(
  ('flags', 'named'),
  [
    (['--data={tmp}/missing'], 'no such file or folder'),
    (['--data={tmp}/empty'], 'nothing to choose'),
    (['--select=wieght'], "did you mean 'weight'"),
    (['--layers=afer'], "did you mean 'after'"),
    (['--layers=99'], 'layers'),
    (['--layers=2²'], 'numbers joined by +'),
    (['--layers=5+5'], 'lists one twice'),
    (['--tokens=256'], 'no position 256, texts have 0 to 255'),
    (['--rate=2'], 'from 0 to 1'),
    (['--rate=half'], 'from 0 to 1'),
    (['--strength=-1'], 'from 0 to 1'),
    (['--tokens=fist'], "did you mean 'first'"),
    (['--write=onnx'], 'orbax, hf, baked'),
    (['--budget=-1'], 'budget'),
    (['--texts=0'], 'texts'),
    (['--out={tmp}/file'], 'cannot write'),
    (['--model={tmp}/nowhere'], 'nowhere'),
  ],
)
def test_bad_input_gets_one_line_and_nothing_is_written(
  flags, named, planted_folder, tmp_path, capsys
):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'file').write_text('mine')
  given = [f'--out={tmp_path}/out', f'--model={planted_folder}']
  given += [flag.format(tmp=tmp_path) for flag in flags]
  assert cli.main(['mitigate', *given]) == 2
  said = capsys.readouterr()
  assert named in said.err.splitlines()[-1]
  assert 'Traceback' not in said.err
  assert not (tmp_path / 'out').exists()


def test_chats_that_are_all_too_long_are_missed_before_any_work(
  planted_folder, data, tmp_path, capsys
):
  argv = ['mitigate', f'--model={planted_folder}', f'--out={tmp_path}/out']
  argv += [f'--data={data / "chats.jsonl"}', *SETTINGS, '--length=2']
  assert cli.main(argv) == 2
  assert 'no text to measure' in capsys.readouterr().err.splitlines()[-1]
  assert not (tmp_path / 'out').exists()


def test_one_text_is_neither_better_nor_worse():
  from me_jax.cli import mitigate_table
  from tests.support import outcomes

  outcome = outcomes.outcome(texts=1, corpora={'notes': True})
  said = mitigate_table.headline(outcome)
  assert said.endswith(
    'On held-out texts: one text, which says nothing, on notes.'
  )


def test_a_model_without_massive_activations_is_told_so(
  tmp_path_factory, data, tmp_path, capsys
):
  folder = _folder(tmp_path_factory, 'none')
  argv = ['mitigate', f'--model={folder}', f'--data={data}']
  assert cli.main([*argv, f'--out={tmp_path}/out', *SETTINGS]) == 2
  assert 'no ME Layer' in capsys.readouterr().err.splitlines()[-1]
  assert not (tmp_path / 'out').exists()
