"""When is a step run, and when not again?"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal

import pytest

from study import options as options_lib
from study import runner
from study import steps as steps_lib
from tests.support import study_steps


@pytest.fixture(name='options')
def _options(tmp_path):
  return options_lib.Options(out=str(tmp_path / 'study'), quick=True)


DIGESTS = options_lib.Digests('weights', None)


def _run(options, name='explain', launcher=None, digests=DIGESTS, **changes):
  step = dataclasses.replace(steps_lib.make(name, options), **changes)
  launcher = launcher or study_steps.Launcher()
  return runner.run(step, options, digests, launch=launcher), launcher


def test_a_step_that_is_done_is_not_run_again(options):
  first, launcher = _run(options)
  assert first['status'] == 'done' and len(launcher.asked) == 1
  again, launcher = _run(options)
  assert again == first and not launcher.asked


def test_another_command_runs_again_and_finds_nothing_of_the_old_one(options):
  first, _ = _run(options)
  stale = options.folder / 'explain' / 'run' / 'stale'
  stale.touch()
  step = steps_lib.make('explain', options)
  second, launcher = _run(options, argv=(*step.argv, '--seed=1'))
  assert launcher.asked and not stale.exists()
  assert second['command'] == first['command'] + ' --seed=1'


def test_other_versions_run_again(options, monkeypatch):
  _run(options)
  monkeypatch.setattr(runner.machine, 'versions', lambda *names: {'jax': '99'})
  found, launcher = _run(options)
  assert launcher.asked and found['versions'] == {'jax': '99'}


def test_a_result_that_is_gone_is_made_again(options):
  _run(options)
  (options.folder / 'explain' / steps_lib.REPORT).unlink()
  assert _run(options)[1].asked


def test_other_weights_or_sets_run_again(options):
  _run(options)
  for digests in (DIGESTS._replace(model='x'), DIGESTS._replace(data='x')):
    assert _run(options, digests=digests)[1].asked


def test_a_step_runs_again_if_what_it_reads_is_another(options):
  _run(options, 'mitigate')
  _run(options, 'evaluate')
  again = options.folder / 'mitigate' / steps_lib.REPORT
  again.unlink()
  _run(options, 'mitigate')
  assert not _run(options, 'evaluate')[1].asked
  again.unlink()
  _run(options, 'mitigate', study_steps.Launcher(strength=0.25))
  assert _run(options, 'evaluate')[1].asked


def test_a_step_is_not_run_without_the_one_it_reads(options):
  found, launcher = _run(options, 'evaluate')
  assert found['status'] == 'not run' and found['why'] == 'mitigate: not run'
  _run(options, 'mitigate', study_steps.Launcher(fails=('mitigate',)))
  found, launcher = _run(options, 'evaluate')
  assert found['why'] == 'mitigate: failed' and not launcher.asked


def test_where_no_mask_is_chosen_the_published_one_is_evaluated(options):
  _run(options, 'mitigate', study_steps.Launcher(strength=None))
  found, launcher = _run(options, 'tuned-mask')
  assert found['why'] == 'no mask was chosen' and not launcher.asked
  found, _ = _run(options, 'evaluate')
  assert '--mitigation=wemask' in found['command']


def test_what_was_stopped_goes_on_where_it_was(options):
  class Stopped(study_steps.Launcher):
    def __call__(self, argv, log):
      (options.folder / 'explain' / 'run').mkdir()
      (options.folder / 'explain' / 'run' / 'part').touch()
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    _run(options, launcher=Stopped())
  card = runner.card(options.folder / 'explain')
  assert card['status'] == 'running'
  found, launcher = _run(options)
  assert launcher.asked and found['status'] == 'done'
  assert (options.folder / 'explain' / 'run' / 'part').exists()
  assert found['seconds'] >= card['seconds']


def test_a_study_that_is_told_to_end_ends_its_step(options, tmp_path):
  # A step that says which process it is, and then waits.
  (tmp_path / 'waits.py').write_text(
    'import os, pathlib, time\n'
    f'pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))\n'
    'time.sleep(60)\n'
  )

  def told(number, frame):
    raise SystemExit(143)

  before = signal.signal(signal.SIGALRM, told)
  signal.setitimer(signal.ITIMER_REAL, 2)
  try:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
      patch.chdir(tmp_path)
      step = dataclasses.replace(
        steps_lib.make('explain', options), argv=('waits',)
      )
      runner.run(step, options, DIGESTS)
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
  assert runner.card(options.folder / 'explain')['seconds'] >= 1
  with pytest.raises(ProcessLookupError):
    os.kill(int((tmp_path / 'pid').read_text()), 0)


def test_a_step_that_fails_says_why_and_is_tried_again(options):
  found, _ = _run(options, launcher=study_steps.Launcher(fails=('explain',)))
  assert found['status'] == 'failed'
  assert found['why'] == 'me-jax: explain lacks something'
  assert _run(options)[0]['status'] == 'done'


def test_a_step_without_a_report_has_failed(options):
  found, _ = _run(options, launcher=lambda argv, log: 0)
  assert found['status'] == 'failed'


def test_commands_do_not_tell_where_folders_are(tmp_path):
  data = tmp_path / 'sets'
  data.mkdir()
  options = options_lib.Options(out=str(tmp_path / 'here'), data=str(data))
  found, _ = _run(options, 'mitigate')
  command = found['command']
  assert command.startswith(
    'me-jax mitigate --model=smollm2 --data=path/to/sets '
  )
  assert command.endswith(' --out=out/study/smollm2/mitigate/run')
  assert str(tmp_path) not in command


def test_later_steps_take_the_relaxed_model_if_there_is_one(options):
  assert '--mitigation=wemask' in steps_lib.make('evaluate', options).argv
  _run(options, 'mitigate')
  folder = options.folder / 'mitigate' / 'run'
  assert f'--mitigation={folder}/orbax' in (
    steps_lib.make('evaluate', options).argv
  )
  assert f'--relaxed={folder}' in steps_lib.make('quantise', options).argv


def test_configurations_of_steps_are_there(tmp_path):
  options = options_lib.Options(out=str(tmp_path), data=str(tmp_path))
  for name in steps_lib.NAMES:
    for argument in steps_lib.make(name, options).argv:
      if argument.startswith('--config='):
        assert pathlib.Path(argument.removeprefix('--config=')).is_file()
