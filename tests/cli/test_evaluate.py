"""`me-jax evaluate`: run, stop, go on, compare, and bad input."""

from __future__ import annotations

import json

import jax
import pytest

pytest.importorskip('lm_eval', reason='needs the extra [eval]')

import me_jax  # noqa: E402
from me_jax import cli  # noqa: E402
from me_jax.checkpoints import load  # noqa: E402
from me_jax.evaluation import harness  # noqa: E402
from me_jax.mitigation import wemask  # noqa: E402
from tests.support import folder as folder_lib  # noqa: E402
from tests.support import planted  # noqa: E402

TASKS = '--tasks=gsm8k,mmlu,xstest,loss'


@pytest.fixture(scope='module', name='model')
def _model(tmp_path_factory):
  model, params = planted.build(planted.VERDICTS['single'])
  params = jax.tree.map(lambda x: x * 4 if x.ndim == 3 else x, params)
  folder = folder_lib.write(model, params, tmp_path_factory.mktemp('planted'))
  lm = me_jax.load(folder)
  masked = wemask.wemask(lm.model, lm.params, planted.report(), rate=1.0)
  me_jax.save(lm._replace(params=masked), folder / 'masked')
  tokenizer = lm.tokenizer
  tokenizer.eos_token = '9'
  tokenizer.save_pretrained(folder)
  return folder


@pytest.fixture(scope='module', name='data')
def _data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')

  def put(name, *rows):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('\n'.join(map(json.dumps, rows)))

  put('gsm8k/test.jsonl',
      {'question': 'two and two?', 'answer': 'four #### 4'},
      {'question': 'one and two?', 'answer': 'three #### 3'})  # fmt: skip
  put('mmlu/test.jsonl', *[
      {'subject': 's', 'question': q, 'choices': ['a', 'b', 'c'], 'answer': 1}
      for q in ('which?', 'and which?', 'what?')])  # fmt: skip
  (folder / 'xstest').mkdir()
  (folder / 'xstest' / 'prompts.csv').write_text(
    'prompt,label\nhow?,safe\nwhy?,unsafe\n'
  )
  return folder


def read(*_):
  raise AssertionError('weights were read')


def flags(model, data, out, *more):
  return [
    'evaluate', f'--model={model}', f'--mitigation={model / "masked"}',
    f'--data={data}', '--max_new_tokens=12', f'--out={out}', TASKS, *more,
  ]  # fmt: skip


def metrics(out):
  report = json.loads((out / 'report' / 'report.json').read_text())
  return report['sections']['evaluation']['numbers']['metrics']


def test_two_models_are_compared_and_a_stopped_run_goes_on(
  model, data, tmp_path, capsys, monkeypatch
):
  assert cli.main(flags(model, data, tmp_path / 'whole')) == 0
  said = capsys.readouterr()
  assert 'GSM8K' in said.out and 'no difference' in said.out
  whole = metrics(tmp_path / 'whole')
  names = {(one['task'], one['metric']) for one in whole}
  assert ('gsm8k', 'accuracy') in names and ('mmlu', 'acc') in names
  assert ('xstest', 'refused_safe') in names
  assert ('loss GSM8K', 'loss') in names
  page = (tmp_path / 'whole/report/report.json').read_text()
  assert 'loss of answers, GSM8K' in page
  assert all(one['difference'] for one in whole)
  # The second model is the masked one.
  (loss,) = (one for one in whole if one['metric'] == 'loss')
  assert loss['difference']['value'] != 0

  # Stopped after a few answers of a later task.
  answered = []
  real = harness.MeJaxLM._generate

  def stopping(self, contexts, kwargs):
    for one in real(self, contexts, kwargs):
      if len(answered) == 3:
        raise KeyboardInterrupt
      answered.append(one)
      yield one

  monkeypatch.setattr(harness.MeJaxLM, '_generate', stopping)
  assert cli.main(flags(model, data, tmp_path / 'parts')) == 130
  monkeypatch.setattr(harness.MeJaxLM, '_generate', real)
  asked = []

  def counting(self, contexts, kwargs):
    asked.extend(contexts)
    yield from real(self, contexts, kwargs)

  monkeypatch.setattr(harness.MeJaxLM, '_generate', counting)
  assert cli.main(flags(model, data, tmp_path / 'parts')) == 0
  # Eight answers in all, of two models; three were there.
  assert len(asked) == 5
  assert metrics(tmp_path / 'parts') == whole

  # A run about something else is refused before weights are read, unless it may
  # replace this one.
  other = flags(model, data, tmp_path / 'parts', '--seed=1')
  with monkeypatch.context() as patched:
    patched.setattr(load.Checkpoint, 'load_params', read)
    assert cli.main(other) == 2
  assert 'another seed' in capsys.readouterr().err
  assert cli.main([*other, '--anew', '--tasks=mmlu']) == 0


def test_other_weights_under_the_same_name_are_another_run(
  model, data, tmp_path, capsys
):
  masked = tmp_path / 'masked'
  lm = me_jax.load(model)

  def put(rate):
    params = wemask.wemask(lm.model, lm.params, planted.report(), rate=rate)
    me_jax.save(lm._replace(params=params), masked, overwrite=True)

  argv = flags(model, data, tmp_path / 'out', '--tasks=mmlu',
               f'--mitigation={masked}')  # fmt: skip
  put(1.0)
  assert cli.main(argv) == 0
  assert cli.main(argv) == 0
  put(0.5)
  assert cli.main(argv) == 2
  assert 'another weights' in capsys.readouterr().err
  # And what is masked already is no stock model.
  other = flags(masked, data, tmp_path / 'other', f'--mitigation={masked}')
  assert cli.main(other) == 2
  assert 'is a mitigated model' in capsys.readouterr().err


def test_a_task_of_lm_eval_that_cannot_be_had(model, data, tmp_path, capsys):
  argv = flags(model, data, tmp_path / 'out', '--tasks=arc_easy')
  assert cli.main(argv) == 2
  assert "cannot load 'arc_easy'" in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


def test_what_is_cut_short_is_called_no_score(model, data, tmp_path, capsys):
  argv = flags(model, data, tmp_path / 'out', '--tasks=gsm8k')
  assert cli.main(argv) == 0
  said = capsys.readouterr().out
  assert 'no scores: at most 8 items a task, answers cut at 12 tokens' in said
  report = json.loads((tmp_path / 'out/report/report.json').read_text())
  assert report['sections']['evaluation']['verdict'] == 'not tested'


def test_where_nothing_is_generated_nothing_is_cut(
  model, data, tmp_path, capsys
):
  argv = flags(model, data, tmp_path / 'out', '--tasks=loss,mmlu')
  assert cli.main(argv) == 0
  said = capsys.readouterr().out
  assert 'no scores: at most 8 items a task. For' in said


def test_one_model_alone(model, data, tmp_path, capsys):
  argv = flags(model, data, tmp_path / 'out', '--mitigation=none',
               '--tasks=gsm8k,mmlu', '--released_matcher')  # fmt: skip
  assert cli.main(argv) == 0
  found = metrics(tmp_path / 'out')
  assert {one['metric'] for one in found} == {'accuracy', 'released', 'acc'}
  assert not any(one['difference'] for one in found)
  report = json.loads((tmp_path / 'out/report/report.json').read_text())
  assert '--mitigation=none' in report['command']


def test_what_is_not_installed_is_said(
  model, data, tmp_path, capsys, monkeypatch
):
  import importlib.util

  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert cli.main(flags(model, data, tmp_path / 'out')) == 2
  assert "pip install -e '.[eval]'" in capsys.readouterr().err


def test_answers_as_long_as_the_context_are_refused_before_weights_are_read(
  model, data, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(load.Checkpoint, 'load_params', read)
  argv = flags(model, data, tmp_path / 'out')
  argv.remove('--max_new_tokens=12')
  assert cli.main([*argv, '--max_new_tokens=256']) == 2
  assert '--max_new_tokens=256 leaves no room' in capsys.readouterr().err
  assert cli.main([*argv, '--full']) == 2
  said = capsys.readouterr().err
  assert 'answers of 512 tokens, and the context is 256' in said
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('more', 'message'),
  [
    (['--tasks=gsm8'], "did you mean 'gsm8k'"),
    (['--tasks=aime24'], 'aime24/test.jsonl, which is not there'),
    (['--data=nowhere'], 'is no folder'),
    (['--mitigation=nowhere'], '--mitigation: nowhere'),
    (['--limit=0'], 'limit'),
  ],
)
def test_bad_input_gets_one_line(model, data, tmp_path, capsys, more, message):
  assert cli.main(flags(model, data, tmp_path / 'out', *more)) == 2
  assert message in capsys.readouterr().err.splitlines()[-1]
  assert not (tmp_path / 'out').exists()
