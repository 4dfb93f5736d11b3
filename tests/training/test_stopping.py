"""Signals are noted, shared, and given back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from me_jax.training import stopping
from tests.support import processes

NUMBERS = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize('number', NUMBERS)
def test_a_first_signal_is_noted_and_handlers_come_back(number):
  before = [signal.getsignal(one) for one in NUMBERS]
  with stopping.Watch() as watch:
    assert watch.requested(1) is None
    os.kill(os.getpid(), number)
    assert watch.requested(2) == number.name
    assert watch.requested(3) == number.name
  assert [signal.getsignal(one) for one in NUMBERS] == before


@pytest.mark.parametrize('first', NUMBERS)
def test_a_second_one_ends_at_once_as_before(first, request):
  # Who starts tests in the background may have SIGINT ignored.
  before = signal.default_int_handler
  given = signal.signal(signal.SIGINT, before)
  request.addfinalizer(lambda: signal.signal(signal.SIGINT, given))
  with pytest.raises(KeyboardInterrupt):
    with stopping.Watch():
      os.kill(os.getpid(), first)
      os.kill(os.getpid(), signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is before

  code = """
      import os, signal
      from me_jax.training import stopping
      with stopping.Watch():
        for _ in range(2):
          os.kill(os.getpid(), signal.SIGTERM)
        print('still here')
  """
  done = processes.run(code, timeout=60)
  assert done.returncode == -signal.SIGTERM and not done.stdout, done.stderr


def test_another_thread_leaves_signals_alone():
  before = [signal.getsignal(one) for one in NUMBERS]
  seen = []

  def work():
    with stopping.Watch() as watch:
      seen.append([signal.getsignal(one) for one in NUMBERS] == before)
      seen.append(watch.requested(1))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [True, None]


PROCESSES = """
    import os, signal, sys

    from me_jax.training import distributed, stopping

    index, address, number, served = sys.argv[1:]
    index = int(index)
    distributed.start(coordinator=address, num_processes=2, process_id=index)

    import jax, numpy as np
    from jax.experimental import multihost_utils

    if served == 'no':
      jax.config.update('jax_enable_preemption_service', False)
    with stopping.Watch() as watch:
      step = 0
      while not (why := watch.requested(step)):
        multihost_utils.process_allgather(np.array(step))
        step += 1
        # Step 3 or so: both have begun, and only one is told.
        if step == 3 and index == 1:
          os.kill(os.getpid(), int(number))
      assert watch.requested(step + 1) == why
    print('done', step, why)
"""


@pytest.mark.parametrize(
  ('number', 'served'),
  [(signal.SIGINT, 'yes'), (signal.SIGTERM, 'yes'), (signal.SIGINT, 'no')],
)
def test_processes_end_after_the_same_step(number, served):
  ends = processes.pair(PROCESSES, int(number), served)
  last = [line.split(maxsplit=2) for line in ends]
  assert last[0][:2] == last[1][:2]
  assert int(last[0][1]) >= 3
  assert last[0][2] == 'a signal to another process'
  if number == signal.SIGINT:
    assert last[1][2] == 'SIGINT'
