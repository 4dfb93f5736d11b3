"""No answer stops a run, whatever it is and wherever it is graded."""

from __future__ import annotations

import signal
import threading
import time

import pytest

pytest.importorskip('math_verify', reason='needs the extra [eval]')

import me_jax  # noqa: E402
from me_jax.evaluation import grader  # noqa: E402

# Works for ever in Python, and in one call of C.
ENDLESS = '\\boxed{\\sum_{n=1}^{10^{12}} \\sin(n^n)}', '\\boxed{9^{9^{9^{9}}}}'


@pytest.fixture(scope='module', name='quick')
def _quick():
  found = grader.Grader(seconds=1.0)
  yield found
  found.close()


def test_it_grades_as_mathematics(quick):
  assert quick.is_right('It is \\boxed{\\frac{3}{4}}.', '0.75')
  assert quick.is_right('#### 1,234', '1234')
  assert not quick.is_right('It is \\boxed{12}.', '1')
  assert not quick.is_right('\ud800', '1')
  assert not quick.is_right('{' * 100_000, '1')


@pytest.mark.parametrize('answer', ENDLESS)
def test_an_endless_answer_is_wrong_and_the_next_one_is_graded(quick, answer):
  start = time.monotonic()
  assert not quick.is_right(answer, '1')
  assert time.monotonic() - start < 15
  assert quick.is_right('\\boxed{1}', '1')


def test_it_grades_in_any_thread(quick):
  found = []

  def grade():
    found.append(quick.is_right('\\boxed{7}', '7'))
    found.append(quick.is_right('\\boxed{7}', '8'))

  thread = threading.Thread(target=grade)
  thread.start()
  thread.join()
  assert found == [True, False]


def test_it_leaves_an_alarm_alone(quick):
  signal.alarm(100)
  quick.is_right('\\boxed{7}', '7')
  assert signal.alarm(0) > 90


def test_a_process_that_was_killed_is_replaced(quick):
  assert quick.is_right('\\boxed{7}', '7')
  quick._process.kill()
  quick._process.wait()
  assert quick.is_right('\\boxed{7}', '7')


def test_without_math_verify_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(grader.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(me_jax.MeJaxError, match='pip install'):
    grader.Grader().start()
