"""A guard is kept or not, and surely or not."""

from __future__ import annotations

import math

import pytest

from tests.support import training_runs as made


@pytest.mark.parametrize(
  ('guard', 'change', 'kept', 'surely'),
  [
    (None, 5.0, None, None),
    (0.1, 0.05, True, True),
    (0.1, 0.095, True, False),
    (0.1, 0.105, False, False),
    (0.0, -0.05, True, True),
    # A model that has diverged kept nothing.
    (0.1, math.nan, False, False),
  ],
)
def test_a_guard_is_about_the_value_and_surely_about_the_interval(
  guard, change, kept, surely
):
  one = made.held_out(change=change, wide=0.01, guard=guard)
  assert one.kept is kept and one.surely_kept is surely
