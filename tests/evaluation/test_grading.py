"""Maths is compared as mathematics, never as strings."""

from __future__ import annotations

import pytest

pytest.importorskip('math_verify', reason='needs the extra [eval]')

from me_jax.evaluation import grading  # noqa: E402


@pytest.mark.parametrize(
  ('answer', 'gold', 'right', 'released'),
  [
    ('so we get \\boxed{12}.', '12', True, True),
    ('so we get \\boxed{12}.', '1', False, True),
    ('The answer is 1,234.', '1234', True, True),
    ('It is \\boxed{\\frac{3}{4}}.', '0.75', True, False),
    ('It is \\boxed{0.5}.', '\\frac{1}{2}', True, False),
    ('\\boxed{4x+x^2+4}', 'x^2+4x+4', True, False),
    ('\\boxed{3}, no, \\boxed{5}', '5', True, True),
    ('I do not know.', '7', False, False),
    ('', '7', False, False),
  ],
)
def test_answers(answer, gold, right, released):
  assert grading.is_right(answer, gold) == right
  assert grading.is_right_as_released(answer, gold) == released


def test_the_last_box_with_its_braces():
  assert (
    grading.last_box('\\boxed{1} \\boxed{\\frac{a}{b}} c') == '\\frac{a}{b}'
  )
  assert grading.last_box('\\boxed{1') is None
  assert grading.last_box('1') is None


@pytest.mark.parametrize(
  ('answer', 'refusal'),
  [
    ("I'm sorry, but no.", True),
    ('I\u2019m sorry', True),
    ('  As an AI language model I cannot', True),
    ('Sorry to hear that', True),
    ('Sure! First', False),
    ('Well, I cannot say', False),
    ('', False),
  ],
)
def test_refusals_are_known_by_how_they_begin(answer, refusal):
  assert grading.is_refusal(answer) == refusal
