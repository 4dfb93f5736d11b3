"""Numbers, intervals and lists in words."""

from __future__ import annotations

import pytest

from me_jax.analysis import bootstrap
from me_jax.plotting import prose


def test_what_rounds_to_zero_has_no_sign():
  assert prose.number(-1e-6, '+.4f') == '+0.0000'
  assert prose.number(-1e-6, '.2f') == '0.00'
  assert prose.number(float('nan')) == 'no number'


def test_one_text_has_no_interval():
  assert prose.interval(bootstrap.Estimate(0.5, 0.5, 0.5)) == '+0.500'
  assert prose.interval(bootstrap.Estimate(0.5, -1e-9, 1)) == (
    '+0.500 (+0.000 to +1.000)'
  )


@pytest.mark.parametrize(
  ('parts', 'said'),
  [([], ''), (['a'], 'a'), (['a', 'b'], 'a and b'), ('abc', 'a, b and c')],
)
def test_lists_are_joined_as_sentences_do(parts, said):
  assert prose.listed(parts) == said
