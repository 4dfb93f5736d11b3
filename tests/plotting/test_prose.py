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


@pytest.mark.parametrize(
  ('which', 'said'),
  [
    ((), 'no layer'),
    ((3,), 'layer 3'),
    ((3, 4, 5), 'layers 3-5'),
    ((1, 3, 4), 'layers 1, 3-4'),
  ],
)
def test_runs_of_layers_are_said_by_their_ends(which, said):
  assert prose.layers(which) == said


@pytest.mark.parametrize(
  ('change', 'texts', 'word'),
  [
    ((-1.0, -2.0, -0.1), 9, 'better'),
    ((1.0, 0.1, 2.0), 9, 'worse'),
    ((1.0, -0.1, 2.0), 9, 'no difference'),
    ((1.0, 1.0, 1.0), 1, 'one text, no interval'),
    ((float('nan'),) * 3, 9, 'no number'),
  ],
)
def test_a_change_needs_its_whole_interval(change, texts, word):
  assert prose.judged(bootstrap.Estimate(*change), texts) == word
