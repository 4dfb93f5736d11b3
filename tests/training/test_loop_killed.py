"""A command that is killed goes on when it is given again, bit for bit."""

from __future__ import annotations

import pathlib
import re
import signal

import numpy as np
import pytest

from me_jax.training import metrics
from tests.support import processes
from tests.support import small_run

pytestmark = pytest.mark.usefixtures('compiled_once')

STEPS = 24
# The command line, to which something happens once it has done some steps. An
# alarm that nobody handles ends a process as SIGKILL does: by the kernel and at
# once, in whatever thread; and it may come a few milliseconds later, while a
# checkpoint is being written.
PROGRAM = """
    import os, signal, sys

    from me_jax import cli
    from me_jax.training import journal

    step, what, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    note, due = journal.Journal.step, [True]

    def noted(self, done, means, fed):
      note(self, done, means, fed)
      if done >= step and due:
        due.clear()
        if what == 'kill':
          signal.setitimer(signal.ITIMER_REAL, seconds)
        else:
          os.kill(os.getpid(), int(what))

    journal.Journal.step = noted
    sys.argv[1:] = sys.argv[4:]
    cli.entry()
"""


def test_a_command_that_is_killed_goes_on_as_if_it_had_not_been(
  small, tmp_path
):
  config = pathlib.Path(small_run.__file__)
  out = tmp_path / 'parts'
  argv = [
    'train', f'--config={config}', f'--data={small}', f'--out={out}',
    f'--steps={STEPS}', '--write=none',
  ]  # fmt: skip

  def run(step: int, what: str, seconds: float = 0.0):
    done = processes.run(PROGRAM, step, what, seconds, *argv, XDG_CACHE_HOME='')
    return done.returncode, done.stdout, done.stderr

  random = np.random.default_rng(0)
  for number in range(3):
    step = int(random.integers(1, 5)) + 4 * number
    status, _, said = run(step, 'kill', float(random.uniform(1e-6, 0.03)))
    assert status == -signal.SIGALRM, said[-2000:]
  ends = []
  for number, step in ((signal.SIGTERM, 17), (signal.SIGINT, 20)):
    status, told, said = run(step, str(int(number)))
    assert status == 128 + number, said[-2000:]
    found = re.search(
      f'stopped by {number.name} after step (.*) of {STEPS}; .* the same'
      ' command goes on$',
      told.strip(),
    )
    ends.append(int(found[1]))
  settings = small_run.run(small, steps=STEPS)
  last = small_run.train(settings, out)
  # What a signal has saved is what goes on.
  assert last.resumed == ends[1] < STEPS
  lines = metrics.read(out)
  resumed = [line['step'] for line in lines if line['kind'] == 'resumed']
  assert resumed == sorted(resumed) and resumed[-2:] == ends

  whole = small_run.train(settings, tmp_path / 'whole')
  assert small_run.numbers(out) == small_run.numbers(tmp_path / 'whole')
  small_run.assert_same(last.tree, whole.tree)
  small_run.assert_same(last.after, whole.after)
