"""A run is measured, saved, stopped in time, and goes on as if it never was."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import resource
import shutil
import signal

import numpy as np
import pytest

import me_jax
from me_jax import errors
from me_jax.checkpoints import load
from me_jax.checkpoints import orbax
from me_jax.mitigation import gates
from me_jax.training import loop
from me_jax.training import metrics
from me_jax.training import prepare
from me_jax.training import run_folder
from me_jax.training import settings
from me_jax.training import trained
from tests.support import small_run

pytestmark = pytest.mark.usefixtures('compiled_once')


class Gone(BaseException):
  """What ends a run in the middle; nobody catches it."""


def at(step: int, what):
  """Returns a listener that does something when a step is told of."""
  return lambda line: what() if line.step == step else None


def leave():
  raise Gone


def leave_at(patch, kind: str, step: int, written: bool):
  """Ends a run right before or after it writes a line."""
  write = metrics.Metrics.write

  def dying(self, *what, **values):
    if what == (kind, step) and not written:
      leave()
    write(self, *what, **values)
    if what == (kind, step):
      leave()

  patch.setattr(metrics.Metrics, 'write', dying)


def refused(run, out, **listeners) -> str:
  with pytest.raises(errors.MeJaxError) as caught:
    small_run.train(run, out, **listeners)
  message = str(caught.value)
  assert '\n' not in message
  return message


def supervised(small):
  # With lines that are about several steps, of which a stop may part some.
  return small_run.run(small, log_every=3)


def preferred(small):
  run = small_run.run(small, 'pairs', method=settings.Dpo(), monitor_every=0)
  pairs = run.data.mix.sources[0]
  held = settings.HeldOut(
    name='pairs',
    kind='pairs',
    source=dataclasses.replace(pairs, rows=(-8, None)),
  )
  return dataclasses.replace(run, held_out=(held,))


@dataclasses.dataclass
class Whole:
  """A run that nobody has stopped."""

  run: settings.Run
  out: pathlib.Path
  result: loop.Result

  def assert_equals(self, result: loop.Result, out: pathlib.Path) -> None:
    assert result.why == self.result.why
    assert small_run.numbers(out) == small_run.numbers(self.out)
    small_run.assert_same(result.tree, self.result.tree)
    small_run.assert_same(result.before, self.result.before)
    small_run.assert_same(result.after, self.result.after)

  def copied(self, to: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(self.out, to / 'run'))


@pytest.fixture(scope='module', name='whole')
def _whole(small, tmp_path_factory):
  run, out = small_run.run(small), tmp_path_factory.mktemp('whole')
  return Whole(run, out, small_run.train(run, out))


@pytest.mark.parametrize(
  ('make', 'lost', 'stop'),
  [
    # Before the first checkpoint, in the middle of what belongs to a later one,
    # and with a line too many or too few.
    (
      supervised,
      [('train', 3, True), ('held_out', 4, True), ('train', 6, False)],
      6,
    ),
    (preferred, [('train', 1, True), ('held_out', 8, False)], 7),
    (small_run.sampled, [('train', 1, True), ('train', 5, True)], 5),
  ],
)
def test_a_run_that_ends_anywhere_goes_on_as_if_it_had_not(
  make, lost, stop, small, tmp_path, monkeypatch
):
  run, out = make(small), tmp_path / 'parts'
  result = small_run.train(run, tmp_path / 'whole')
  whole = Whole(run, tmp_path / 'whole', result)
  for kind, step, written in lost:
    with monkeypatch.context() as patch, pytest.raises(Gone):
      leave_at(patch, kind, step, written)
      small_run.train(run, out)
  # A stop is only where new rows begin.
  asks = at(stop, lambda: os.kill(os.getpid(), signal.SIGTERM))
  stopped = small_run.train(run, out, tell=asks)
  updates = getattr(run.method, 'updates', 1)
  assert stopped.step == -(-stop // updates) * updates
  assert (stopped.why, stopped.ended, stopped.after) == ('SIGTERM', False, {})
  last = small_run.train(run, out)
  assert (last.resumed, last.step) == (stopped.step, run.steps)
  whole.assert_equals(last, out)
  # There was something to lose.
  moved = small_run.flat(last.tree)
  assert all(np.ptp(leaf) > 0 for leaf in moved.values())


def test_a_finished_run_does_nothing_but_say_so_again(whole, tmp_path):
  out, told = whole.copied(tmp_path), []
  again = small_run.train(whole.run, out, tell=told.append)
  assert not told and again.ended
  assert (again.resumed, again.step, again.chosen) == (8, 8, 8)
  whole.assert_equals(again, out)


def test_a_damaged_checkpoint_costs_only_time(whole, tmp_path):
  out, said = whole.copied(tmp_path), []
  files = (out / 'checkpoints' / '8').rglob('*')
  largest = max(files, key=lambda path: path.stat().st_size)
  with open(largest, 'r+b') as file:
    file.truncate(largest.stat().st_size // 2)
  again = small_run.train(whole.run, out, warn=said.append)
  assert len(said) == 1 and 'checkpoints/8 is passed over' in said[0]
  assert again.resumed == 6
  whole.assert_equals(again, out)


def test_another_run_is_refused_by_what_differs(whole, small, tmp_path):
  out = whole.copied(tmp_path)
  kept = (out / 'metrics.jsonl').read_bytes()
  run = whole.run
  other = dataclasses.replace(
    run, seed=1, optim=dataclasses.replace(run.optim, lr=0.5)
  )
  said = refused(other, out)
  assert 'optim.lr: 0.02 there, 0.5 now; seed: 0 there, 1 now' in said
  assert 'steps' not in said
  # What is in files is part of a run, too.
  moved = tmp_path / 'moved'
  shutil.copytree(small, moved)
  out = tmp_path / 'short'
  run = small_run.run(
    moved, train=trained.Trained(parts=('gates',), gates=small_run.GATES),
    steps=1, monitor_every=0,
  )  # fmt: skip
  small_run.train(run, out)
  for name, words in (
    ('chats', 'another data'),
    ('others', 'other rows of others'),
  ):
    path = moved / f'{name}.jsonl'
    text = path.read_text()
    path.write_text(text.replace('two', 'ten').replace('zz', 'ab'))
    assert words in refused(run, out)
    path.write_text(text)
  weights = moved / 'model' / 'model.safetensors'
  content = bytearray(weights.read_bytes())
  content[-3] ^= 1
  weights.write_bytes(content)
  assert 'fingerprint' in refused(run, out)
  assert (whole.copied(tmp_path / 'a') / 'metrics.jsonl').read_bytes() == kept


def test_what_changes_no_result_may_change(whole, tmp_path):
  out, said = tmp_path / 'run', []
  with pytest.raises(Gone):
    small_run.train(whole.run, out, tell=at(5, leave))
  saved = settings.Checkpoint(every=3, keep=1)
  run = dataclasses.replace(whole.run, checkpoint=saved)
  again = small_run.train(run, out, warn=said.append)
  assert again.resumed == 4
  assert [line.split(': ')[1:] for line in said] == [
    ['checkpoint.every', '2 there, 3 now'],
    ['checkpoint.keep', '2 there, 1 now'],
  ]
  whole.assert_equals(again, out)
  assert os.listdir(out / 'checkpoints') == ['8']


def test_one_process_works_in_a_folder(whole, tmp_path):
  out = tmp_path / 'run'
  with run_folder.lock(out):
    assert 'another process is at work' in refused(whole.run, out)
    # Not even what the run is: the other one is about to say that.
    assert not list(out.iterdir())
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'notes.txt').write_text('mine')
  assert 'holds notes.txt' in refused(whole.run, tmp_path / 'mine')


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize(
  ('room', 'words'), [(0, 'metrics.jsonl'), (4000, 'cannot write a checkpoint')]
)
def test_a_full_disk_ends_a_run_that_can_go_on(room, words, whole, tmp_path):
  out = tmp_path / 'run'
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

  def fill():
    size = (out / 'metrics.jsonl').stat().st_size + room
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

  try:
    said = refused(whole.run, out, tell=at(5, fill))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert words in said and 'File too large' in said
  # Step 4 was perhaps still being written.
  steps = sorted(map(int, os.listdir(out / 'checkpoints')))
  assert steps in ([2], [2, 4])
  again = small_run.train(whole.run, out)
  assert again.resumed == steps[-1]
  whole.assert_equals(again, out)


def test_a_loss_that_is_not_finite_is_named_and_not_kept(whole, tmp_path):
  out = tmp_path / 'run'
  plan = prepare.plan(whole.run)
  placed = prepare.place(plan)
  letter = plan.tokenizer.convert_tokens_to_ids('7')

  def spoil():
    embedding = placed.frozen.params['embed_tokens']['embedding']
    placed.frozen.params['embed_tokens']['embedding'] = embedding.at[
      letter
    ].set(np.nan)

  with pytest.raises(errors.MeJaxError) as caught:
    loop.train(plan, placed, out, tell=at(5, spoil))
  said = str(caught.value)
  found = re.fullmatch(
    r'step (\d) is not finite \(loss nan, gradient nan\) because of row \d'
    r' \(.+\) of its batch; nothing after the last checkpoint is kept\.',
    said,
  )
  assert found, said
  last = (int(found[1]) - 1) // 2 * 2
  assert sorted(os.listdir(out / 'checkpoints')) == [f'{last - 2}', f'{last}']
  again = small_run.train(whole.run, out)
  assert again.resumed == last
  whole.assert_equals(again, out)


def test_a_rate_that_is_too_large_is_to_blame_and_not_a_row(small, tmp_path):
  run = small_run.run(
    small, optim=settings.Optimizer(lr=1e38), held_out=(), monitor_every=0
  )
  said = refused(run, tmp_path / 'run')
  assert said.startswith('step 2 is not finite') and 'optim.lr' in said


def choosing(small, **fields):
  """Returns a run that learns the task at the expense of another set."""
  run = small_run.run(small)
  task, other = run.held_out
  guard = dataclasses.replace(other, name='guard', report=False, limit=0.02)
  return dataclasses.replace(
    run,
    train=trained.Trained(parts=('full',)),
    optim=settings.Optimizer(lr=0.003, schedule='constant', eps=1e-3),
    steps=12,
    held_out=(task, guard, other),
    evaluation=settings.Evaluation(every=2, length=64, choose=True, patience=2),
    monitor_every=0,
    checkpoint=settings.Checkpoint(every=3, keep=1),
    **fields,
  )


def test_the_best_step_that_keeps_its_limits_is_the_result(small, tmp_path):
  run, out = choosing(small), tmp_path / 'run'
  result = small_run.train(run, out)
  losses = {
    line['step']: {name: one['loss'] for name, one in line['sets'].items()}
    for line in small_run.numbers(out)
    if line['kind'] == 'held_out'
  }
  # The task is learnt better and better; from step 6 on the guard has risen.
  assert list(losses) == [0, 2, 4, 6, 8]
  task = [found['chats'] for found in losses.values()]
  assert task == sorted(task, reverse=True)
  rise = [found['guard'] - losses[0]['guard'] for found in losses.values()]
  assert max(rise[:3]) < 0.02 < min(rise[3:])
  assert (result.why, result.step, result.chosen) == (loop.PATIENCE, 8, 4)
  # What is for the report is measured at both ends.
  assert [list(found) for found in losses.values()] == [
    ['chats', 'guard', 'others']
  ] + [['chats', 'guard']] * 4
  assert list(result.after) == ['chats', 'guard', 'others']
  for name in ('chats', 'guard'):
    texts = result.after[name]
    np.testing.assert_allclose(
      texts.loss_N.sum() / texts.tokens_N.sum(), losses[4][name], rtol=1e-6
    )
  # Of the steps that are kept only for it, none was the newest.
  assert sorted(os.listdir(out / 'checkpoints')) == ['4', '8']

  again = small_run.train(run, out)
  assert (again.why, again.resumed, again.chosen) == (loop.PATIENCE, 8, 4)
  small_run.assert_same(again.tree, result.tree)

  parts = tmp_path / 'parts'
  for step in (3, 7):
    with pytest.raises(Gone):
      small_run.train(run, parts, tell=at(step, leave))
  Whole(run, out, result).assert_equals(small_run.train(run, parts), parts)

  # Without it, the result is another one, and nobody is left in the dark.
  shutil.rmtree(parts / 'checkpoints' / '4' / 'state')
  said = []
  lost = small_run.train(run, parts, warn=said.append)
  assert lost.chosen == 8 and 'the best step was 4' in said[-1]


def test_gates_are_all_that_training_gates_changes(small, tmp_path):
  places = gates.Gates(layers=(5, 6, 7))
  run = small_run.run(
    small,
    train=trained.Trained(parts=('gates',), gates=places),
    optim=settings.Optimizer(lr=1.0, schedule='constant'),
    steps=4,
    held_out=(),
    monitor_every=0,
  )
  plan = prepare.plan(run)
  placed = prepare.place(plan)
  result = loop.train(plan, placed, tmp_path / 'run')
  raw_GD = np.asarray(result.tree['gates'])
  # Steps as large as the interval: they were brought back to its ends.
  assert raw_GD.min() == 0 and raw_GD.max() == 1.5
  params = prepare.merged(placed, run, result.tree)
  lm = load.LoadedModel(placed.model, params, plan.tokenizer, plan.config)
  orbax.save(lm, tmp_path / 'model')
  base = small_run.flat(me_jax.load(str(small / 'model')).params)
  written = small_run.flat(me_jax.load(tmp_path / 'model').params)
  added = {name for name in written if 'sink_' in name}
  assert written.keys() - base.keys() == added
  for name, value in base.items():
    assert value.tobytes() == written[name].tobytes(), name
  scale_LD = written["['layers']['sink_scale']"]
  assert (scale_LD[:5] == 1).all() and (scale_LD[5:] == raw_GD).all()
