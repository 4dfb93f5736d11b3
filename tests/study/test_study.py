"""`python -m study`, from flags to a page."""

from __future__ import annotations

import json

import pytest

from me_jax import errors
from study import __main__ as study
from study import options as options_lib
from study import page as page_lib
from study import steps as steps_lib
from tests.support import study_steps


@pytest.fixture(name='run')
def _run(tmp_path):
  page = tmp_path / 'page.md'

  def run(*argv, **fake):
    launcher = study_steps.Launcher(**fake)
    status = study.main(
      [f'--out={tmp_path / "out"}', f'--page={page}', *argv],
      launch=launcher,
    )
    return status, page.read_text(), launcher

  return run


def _sets(folder, text=''):
  """Writes the files that steps ask for; returns the flag."""
  for file in {file for files in steps_lib.SETS.values() for file in files}:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return f'--data={folder}'


def test_all_steps_make_a_page(run, tmp_path):
  status, page, launcher = run()
  assert status == 0 and len(launcher.asked) == 9
  assert 'of the claims of the paper, 7 hold' in page
  assert 'What was found of emergence: 0.123456.' in page
  assert '*Control.* The control of emergence.' in page
  assert (
    '![' in page
    and (tmp_path / 'page' / 'smollm2-emergence-layers.png').is_file()
  )
  # A control, an interval, and a table of each kind.
  for said in (
    '| token 5 instead | -0.100 (-0.110 to -0.090) |',
    '| token 5 instead | -0.030 (-0.040 to -0.020) |',
    'to `smollm2` (135 million parameters)',
    '*Verdict.* Holds where',
    '| GSM8K | 10 | 2.000 | 1.400 | 1.500 | -0.100 |',
    '| stream | +0.200 (+0.190 to +0.210) | +0.200 (+0.190 to +0.210) | -0.050',
    '| gsm8k | accuracy | 7 | 0.500',
    '| GSM8K | -0.1000 (-0.1100 to -0.0900) | -0.1000 (-0.1100 to -0.0900) |',
  ):
    assert said in page
  assert str(tmp_path) not in page


def test_a_second_run_runs_nothing(run):
  first = run()[1]
  status, page, launcher = run()
  assert (status, page, launcher.asked) == (0, first, [])


def test_a_step_that_fails_is_told_and_the_others_go_on(run, capsys):
  status, page, launcher = run(fails=('evaluate', 'train-lora'))
  assert status == 1 and len(launcher.asked) == 9
  assert 'Not tested: me-jax: train lacks something' in page
  assert 'Not tested: me-jax: evaluate lacks something' in page
  assert (
    '| [The relaxed model answers better](#ability) | the paper | not tested |'
    in page
  )
  assert 'the relaxed model answers better: me-jax: evaluate' in page
  assert 'What was found of emergence' in page
  assert 'me-jax: evaluate lacks something' in capsys.readouterr().out


def test_steps_that_were_not_run_are_not_tested(run):
  page = run('--steps=explain')[1]
  assert 'Not tested: mitigate: not run' in page
  assert 'Holds.' in page


def test_a_quick_run_says_that_it_is_no_result(run):
  status, page, launcher = run('--quick')
  assert status == 0 and len(launcher.asked) == 7
  assert 'Its numbers are no results' in page
  assert any('--texts=4' in argv for argv in launcher.asked)


def test_a_quick_run_leaves_real_results_alone(run, tmp_path):
  run()
  run('--quick', f'--page={tmp_path / "quick.md"}')
  assert not run()[2].asked


def test_built_in_texts_do_not_replace_results_on_public_sets(run, tmp_path):
  page = run(_sets(tmp_path / 'sets'))[1]
  with pytest.raises(errors.MeJaxError, match='give --data, or another --page'):
    run()
  assert (tmp_path / 'page.md').read_text() == page


def test_steps_of_a_page_stay_where_others_are_run_elsewhere(run, tmp_path):
  steps = steps_lib.NAMES
  first = run(f'--steps={",".join(n for n in steps if "lora" not in n)}')[1]
  assert 'train-lora-mask: not run' in first
  other = f'--out={tmp_path / "other"}'
  status, page, launcher = run('--steps=train-lora,train-lora-mask', other)
  assert status == 0 and len(launcher.asked) == 2
  assert ': not run' not in page and '| train-lora | done |' in page
  # All else is as it was: only lines of the two steps are others.
  gone = set(first.splitlines()) - set(page.splitlines())
  assert all('lora' in n or 'loop' in n or 'claims' in n for n in gone), gone


@pytest.mark.parametrize(
  ('steps', 'said'),
  [
    ('train-lora-mask', 'train-lora-mask is compared with train-lora'),
    ('train-lora', 'train-lora is compared with train-lora-mask'),
    ('quantise', 'quantise reads what mitigate writes'),
  ],
)
def test_steps_that_belong_together_are_run_together(run, steps, said):
  page = run()[1]
  with pytest.raises(errors.MeJaxError, match=said):
    run(f'--steps={steps}')
  assert run()[1] == page


def test_a_step_stays_if_what_it_read_is_the_same_again(run, tmp_path):
  run()
  other = f'--out={tmp_path / "other"}'
  status, page, _ = run('--steps=mitigate', other, verdict='in part')
  assert status == 0 and '[A mask without training helps' in page
  assert page.count('| holds in part |') == 1
  assert '(#eight-bits) | beyond it | holds |' in page


def test_results_that_belong_to_others_are_not_on_the_page(
  run, tmp_path, capsys
):
  page = run()[1]
  other = [f'--out={tmp_path / "other"}', '--steps=mitigate']
  status, after, _ = run(*other, strength=0.25, verdict='in part')
  assert status == 1 and after == page
  assert 'not on the page' in capsys.readouterr().out
  other[1] += ',quantise,tuned-mask,evaluate,train-gates,train-token5'
  status, after, launcher = run(*other, verdict='in part')
  assert status == 0 and len(launcher.asked) == 5
  assert '| mitigate | done |' in after and after != page


@pytest.mark.parametrize('fails', ['train-lora', 'train-lora-mask'])
def test_of_two_steps_that_are_compared_neither_is_replaced_alone(
  run, tmp_path, fails
):
  page = run()[1]
  other = [f'--out={tmp_path / "other"}', '--steps=train-lora,train-lora-mask']
  status, after, _ = run(*other, fails=(fails,))
  assert status == 1 and after == page
  assert run(*other)[0] == 0


def test_a_step_that_nothing_was_read_for_is_not_run(run):
  status, page, launcher = run(fails=('mitigate',))
  assert status == 1 and len(launcher.asked) == 6
  assert 'the relaxed model answers better; ' in page
  assert 'Not tested: mitigate: failed' in page


def test_a_failed_step_leaves_the_result_of_the_page(run, tmp_path):
  page = run()[1]
  other = f'--out={tmp_path / "other"}'
  status, after, _ = run('--steps=explain', other, fails=('explain',))
  assert status == 1 and after == page


def test_an_older_folder_does_not_replace_a_page(run, tmp_path):
  run()
  other = [f'--out={tmp_path / "other"}', '--steps=train-lora,train-lora-mask']
  page = run(*other)[1]
  assert run('--steps=explain')[1] == page


def test_no_step_stays_on_other_data(run, tmp_path):
  run(_sets(tmp_path / 'sets', 'some'))
  other = [_sets(tmp_path / 'others', 'others')]
  with pytest.raises(errors.MeJaxError, match='run mitigate, .*, too'):
    run('--steps=explain', *other)


def test_a_quick_page_does_not_replace_a_real_one(run):
  page = run()[1]
  with pytest.raises(errors.MeJaxError, match='--quick would replace'):
    run('--quick')
  assert run()[1] == page


def test_steps_on_other_data_are_not_on_the_page(run, tmp_path):
  run('--steps=mitigate')
  (tmp_path / 'sets').mkdir()
  other = tmp_path / 'other.md'
  run('--steps=explain', f'--data={tmp_path / "sets"}', f'--page={other}')
  assert 'Not tested: mitigate: not run' in other.read_text()


@pytest.mark.parametrize(
  ('text', 'shown'),
  [
    (
      'me-jax train --data=data --out=out/x',
      'me-jax train --data=path/to/sets --out=out/study/x',
    ),
    ('without data, the data are out', 'without data, the data are out'),
    (
      '{here}/data/a.jsonl and {here}/database',
      'path/to/sets/a.jsonl and {here}/database',
    ),
  ],
)  # fmt: skip
def test_only_whole_paths_are_shown_as_others(
  text, shown, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  options = options_lib.Options(out='out', data='data')
  here = str(tmp_path)
  assert options.shown(text.format(here=here)) == shown.format(here=here)


def test_several_models_have_a_column_each(run, tmp_path):
  for name in ('one', 'two'):
    (tmp_path / name).mkdir()
  models = [f'--model={tmp_path / name}' for name in ('one', 'two')]
  status, page, launcher = run(*models)
  assert status == 0 and len(launcher.asked) == 18
  assert '| claim | of | `one` | `two` |' in page
  assert '#### two' in page and '--model=path/to/one' in page
  assert str(tmp_path) not in page


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--page={tmp}/page', 'does not end in .md'),
    ('--page={tmp}/file/page.md', 'cannot write --page'),
    ('--page={tmp}/folder.md', 'is a folder'),
    ('--out={tmp}/file', 'file is a file'),
    ('--data={tmp}/folder.md', 'lacks gsm8k/test.jsonl, gsm8k/train.jsonl'),
  ],
)
def test_where_nothing_can_be_read_or_written_nothing_is_run(
  tmp_path, flag, message
):
  (tmp_path / 'file').touch()
  (tmp_path / 'folder.md').mkdir()
  given = [f'--out={tmp_path}/out', f'--page={tmp_path}/page.md']
  launcher = study_steps.Launcher()
  with pytest.raises(errors.MeJaxError, match=message):
    study.main([*given, flag.format(tmp=tmp_path)], launch=launcher)
  assert not launcher.asked
  assert {p.name for p in tmp_path.iterdir()} == {'file', 'folder.md'}


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--data=nowhere'], '--data=nowhere is no folder'),
    (['--steps=explian'], "did you mean 'explain'"),
    (['--quick'], '--quick makes no results for docs/study.md'),
    (['--fast'], '--help lists the flags'),
    (['--model=a/b/x', '--model=c/d/x'], 'two models are called x'),
    (['--model=nosuch'], 'nosuch: no such file, folder or alias'),
  ],
)
def test_a_mistake_is_told_before_any_work(argv, message):
  launcher = study_steps.Launcher()
  with pytest.raises(errors.MeJaxError, match=message):
    study.main(argv, launch=launcher)
  assert not launcher.asked


@pytest.mark.parametrize(
  ('model', 'name'),
  [
    ('smollm2', 'smollm2'),
    ('Qwen/Qwen3-4B', 'Qwen-Qwen3-4B'),
    ('some/where/else/model.gguf', 'model'),
    ('some/where/folder/', 'folder'),
  ],
)
def test_models_have_names_that_fit_into_paths(model, name):
  assert options_lib.name_of(model) == name


def test_a_page_is_written_again_from_its_extracts(run, tmp_path):
  page = run()[1]
  (tmp_path / 'page.md').unlink()
  page_lib.main([f'--page={tmp_path / "page.md"}'])
  assert (tmp_path / 'page.md').read_text() == page


def test_a_claim_may_be_younger_than_an_extract(run, tmp_path):
  run()
  path = tmp_path / 'page' / 'smollm2.json'
  found = json.loads(path.read_text())
  del found['claims']['rigidity']
  path.write_text(json.dumps(found))
  page_lib.main([f'--page={tmp_path / "page.md"}'])
  page = (tmp_path / 'page.md').read_text()
  assert 'Not tested: the claim was added after these steps had run' in page


def test_a_page_follows_the_rules_of_today(run, tmp_path):
  page = run()[1]
  assert 'Weights: `planted.Q4_1.gguf`.' in page
  path = tmp_path / 'page' / 'smollm2.json'
  found = json.loads(path.read_text())
  for name in ('gates', 'baked'):
    found['claims'][name]['verdict'] = 'in part'
  # Of an earlier version, and of weights that are no GGUF.
  del found['about']['weights']
  path.write_text(json.dumps(found))
  page_lib.main([f'--page={tmp_path / "page.md"}'])
  again = (tmp_path / 'page.md').read_text()
  assert 'Weights:' not in again
  lines = [n for n in page.splitlines() if not n.startswith('Weights:')]
  assert [n for n in again.splitlines() if n] == [n for n in lines if n]


def test_a_flag_of_the_page_that_there_is_not_is_told_in_a_line():
  with pytest.raises(errors.MeJaxError, match='--pag=x; --help lists'):
    page_lib.main(['--pag=x'])


def test_a_page_without_extracts_is_refused(tmp_path):
  with pytest.raises(errors.MeJaxError, match='holds no extract'):
    page_lib.main([f'--page={tmp_path / "page.md"}'])


def test_extracts_hold_no_paths_of_the_machine(run, tmp_path):
  run(fails=('evaluate',))
  for path in (tmp_path / 'page').glob('*.json'):
    assert str(tmp_path) not in json.dumps(json.loads(path.read_text()))
