"""Texts in rows of one length: whole, once each, and close together."""

from __future__ import annotations

import numpy as np
import pytest

import me_jax
from me_jax.models import batch as batch_lib
from me_jax.training import examples
from me_jax.training import packing

LENGTH = 64


def draw(count, seed=0):
  """Returns examples of 1 to 64 tokens, with random tokens and masks."""
  random = np.random.default_rng(seed)
  sizes = np.clip(random.lognormal(2.8, 0.7, count).astype(int), 1, LENGTH)
  return [
    examples.Example(
      random.integers(1, 99, size).astype(np.int32), random.random(size) < 0.5
    )
    for size in sizes
  ]


def sizes(texts):
  return [len(text.tokens_T) for text in texts]


def test_every_text_is_in_one_row_and_no_row_is_too_long():
  lengths = sizes(draw(300))
  rows = packing.plan(lengths, LENGTH)
  assert sorted(i for row in rows for i in row) == list(range(300))
  assert all(sum(lengths[i] for i in row) <= LENGTH for row in rows)
  assert rows == packing.plan(lengths, LENGTH), 'the same every time'


def test_rows_are_no_fewer_than_first_fit_makes_and_nearly_full():
  texts = draw(400)
  rows = packing.plan(sizes(texts), LENGTH)
  first_fit = batch_lib.make_batch(
    [text.tokens_T for text in texts], pack=True, length=LENGTH
  )
  assert len(rows) < len(first_fit.tokens_BT)
  # One row more than the fewest that could hold these tokens.
  assert len(rows) <= -(-sum(sizes(texts)) // LENGTH) + 1


def test_a_text_goes_where_it_fits_best():
  # 4 fills the row of 6; the first row with room would be that of 5.
  assert packing.plan([5, 6, 4], 10) == [(1, 2), (0,)]
  assert packing.plan([10, 10], 10) == [(0,), (1,)]
  assert packing.plan([], 10) == []


def test_a_text_longer_than_a_row_is_refused():
  with pytest.raises(me_jax.MeJaxError, match='11 tokens does not fit'):
    packing.plan([3, 11], 10)


def test_rows_hold_the_texts_and_what_is_wanted_of_them():
  texts = draw(50, seed=1)
  rows = packing.plan(sizes(texts), LENGTH)
  packed = packing.lay_out([[texts[i] for i in row] for row in rows], LENGTH)
  assert [a.dtype for a in packed] == [np.int32, np.int32, bool]
  assert {a.shape for a in packed} == {(len(rows), LENGTH)}
  for b, row in enumerate(rows):
    for number, i in enumerate(row, 1):
      here = packed.segments_BT[b] == number
      np.testing.assert_array_equal(packed.tokens_BT[b, here], texts[i][0])
      np.testing.assert_array_equal(packed.wanted_BT[b, here], texts[i][1])
    assert packed.segments_BT[b].max() == len(row)
  padding = packed.segments_BT == 0
  assert padding.sum() == packed.tokens_BT.size - sum(sizes(texts))
  assert not packed.tokens_BT[padding].any()
  assert not packed.wanted_BT[padding].any()
  # Each text in one piece, padding on the right.
  spans = batch_lib.text_spans(packed.segments_BT)
  assert len(spans.row) == 50 and not spans.start[spans.slot == 0].any()


def test_pairs_stand_in_the_same_rows():
  chosen, rejected = draw(4, seed=2), draw(4, seed=3)
  pairs = [examples.Pair(*both) for both in zip(chosen, rejected)]
  packed = packing.lay_out_pairs(pairs, LENGTH)
  for b in range(4):
    for rows, text in (
      (packed.chosen, chosen[b]),
      (packed.rejected, rejected[b]),
    ):
      size = len(text.tokens_T)
      assert rows.tokens_BT[b, :size].tolist() == text.tokens_T.tolist()
      assert rows.segments_BT[b].tolist() == [1] * size + [0] * (LENGTH - size)
