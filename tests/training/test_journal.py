"""Lines on training: what is counted, over what time, and when."""

from __future__ import annotations

import dataclasses
import types

import pytest

from me_jax.training import data
from me_jax.training import feed
from me_jax.training import flops
from me_jax.training import journal
from me_jax.training import optimizer
from me_jax.training import settings
from tests.support import chats

LENGTH = 32
CONFIG = chats.config()


@dataclasses.dataclass
class Watched:
  """A journal, its clock, and all that comes out of it."""

  clock: list[float]
  written: list
  told: list
  journal: journal.Journal | None = None

  def write(self, kind, step, **values):
    assert kind == 'train'
    self.written.append({'step': step, **values})

  def step(self, step, seconds=2.0, tokens=100, **about):
    """Takes a step of so many seconds."""
    self.clock[0] += seconds
    fed = feed.Fed(None, None, tokens, about)
    self.journal.step(step, {'loss': 1.5, 'grad_norm': 0.5}, fed)


@pytest.fixture(name='watch')
def _watch(monkeypatch):
  def make(step=0, peak=None, method=None, **fields):
    clock = [100.0]
    fake = types.SimpleNamespace(monotonic=lambda: clock[0])
    monkeypatch.setattr(journal, 'time', fake)
    monkeypatch.setattr(flops, 'peak', lambda device: peak)
    run = settings.Run(
      data=settings.Data(mix=data.Mix(sources=()), batch=6),
      method=method or settings.Sft(),
      **{'steps': 7} | fields,
    )
    devices = types.SimpleNamespace(flat=[None])
    plan = types.SimpleNamespace(
      run=run,
      config=CONFIG,
      length=LENGTH,
      mesh=types.SimpleNamespace(devices=devices, size=3),
    )
    watched = Watched(clock, [], [])
    watched.journal = journal.Journal(plan, watched, watched.told.append, step)
    return watched

  return make


def test_a_line_has_what_the_step_said_and_how_fast_it_was(watch):
  watched = watch()
  watched.step(1, seconds=2.0, tokens=100, reward=0.25)
  (line,), (told,) = watched.written, watched.told
  rate = optimizer.schedule(settings.Optimizer(), 7)
  assert line == {
    'step': 1, 'loss': 1.5, 'grad_norm': 0.5, 'reward': 0.25,
    # With which the first step was taken.
    'lr': float(rate(0)), 'tokens': 100, 'seconds': 2.0, 'tokens_per_s': 50.0,
    'mfu': None,
  }  # fmt: skip
  assert line['lr'] > 0
  # Six steps to go, of two seconds each.
  assert told == journal.Line(
    step=1, steps=7, loss=1.5, rate=50.0, left=12.0, mfu=None
  )


def test_a_line_is_about_all_steps_since_the_last(watch):
  watched = watch(log_every=3)
  for step in range(1, 8):
    watched.step(step, seconds=step, tokens=10 * step)
  # Every third, and the last one.
  assert [line['step'] for line in watched.written] == [3, 6, 7]
  assert [line['tokens'] for line in watched.written] == [60, 150, 70]
  assert [line['seconds'] for line in watched.written] == [6, 15, 7]
  assert {line['tokens_per_s'] for line in watched.written} == {10}
  # A step took 2 seconds, then 5, then 7.
  assert [line.left for line in watched.told] == [8, 5, 0]
  rate = optimizer.schedule(settings.Optimizer(), 7)
  assert [line['lr'] for line in watched.written] == [
    float(rate(step)) for step in (2, 5, 6)
  ]


def test_what_is_no_training_takes_no_time(watch):
  watched = watch(log_every=2)
  watched.step(1, seconds=2.0)
  since = watched.journal.pause()
  watched.clock[0] += 50
  watched.journal.go_on(since)
  watched.step(2, seconds=2.0)
  assert watched.written[0]['seconds'] == 4
  # And is forgotten after the line.
  watched.step(3)
  watched.step(4)
  assert watched.written[1]['seconds'] == 4


def test_a_resumed_run_counts_its_own_steps(watch):
  watched = watch(step=4)
  watched.step(5, seconds=3.0)
  assert watched.told[0].left == 6
  assert watched.written[0]['seconds'] == 3


def test_tokens_before_a_stop_count_but_were_not_seen_just_now(watch):
  watched = watch(log_every=4)
  watched.step(1, tokens=70)
  state = watched.journal.state()
  assert not watched.written
  again = watch(step=1, log_every=4)
  again.journal.restore(state)
  for step in (2, 3, 4, 5, 6, 7):
    again.step(step, seconds=2.0, tokens=10)
  first, second = again.written
  assert (first['tokens'], first['tokens_per_s']) == (100, 5)
  assert (second['tokens'], second['tokens_per_s']) == (30, 5)


@pytest.mark.parametrize('parts', [('gates',), ('full',)])
def test_utilisation_is_of_all_chips(watch, parts):
  train = dataclasses.replace(settings.Run(data=None).train, parts=parts)
  watched = watch(peak=1e9, log_every=2, train=train)
  watched.step(1)
  watched.step(2)
  needed = flops.of_step(CONFIG, 6 * LENGTH, LENGTH, full=parts == ('full',))
  # Two steps in four seconds on three chips.
  want = needed * 2 / (4 * 1e9 * 3)
  assert watched.written[0]['mfu'] == pytest.approx(want)
  assert watched.told[0].mfu == watched.written[0]['mfu']


@pytest.mark.parametrize(
  ('method', 'rows'),
  [
    (settings.Sft(), 6),
    # Both answers of a pair are learnt from.
    (settings.Dpo(), 12),
    # Of each prompt four answers.
    (settings.Grpo(), 24),
  ],
)
def test_utilisation_counts_every_row_of_a_step(watch, method, rows):
  watched = watch(peak=1e9, method=method)
  watched.step(1, seconds=1.0)
  needed = flops.of_step(CONFIG, rows * LENGTH, LENGTH, full=False)
  assert watched.written[0]['mfu'] == pytest.approx(needed / 3e9)


def test_steps_that_take_no_time_divide_by_nothing(watch):
  watched = watch()
  watched.step(1, seconds=0.0)
  assert watched.written[0]['tokens_per_s'] > 0
