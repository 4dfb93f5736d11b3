"""Laying texts out in rows."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.models import batch as batch_lib
from me_jax.models import decoder


def test_spans_find_texts_under_any_layout():
  segments = np.array(
    [
      [0, 0, 1, 1, 2, 2, 2, 0],
      [3, 1, 1, 0, 0, 0, 0, 0],
      [0, 0, 0, 0, 0, 0, 0, 0],
    ]
  )
  spans = batch_lib.text_spans(segments)
  assert spans.row.tolist() == [0, 0, 1, 1]
  assert spans.start.tolist() == [2, 4, 0, 1]
  assert spans.length.tolist() == [2, 3, 1, 2]
  assert spans.slot.tolist() == [0, 1, 0, 1]


def test_positions_restart_in_each_text():
  segments = jnp.array([[0, 0, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
  positions = decoder.text_positions(segments)
  assert positions[0, 2:7].tolist() == [0, 1, 0, 1, 2]
  assert positions[1].tolist() == list(range(8))


@pytest.mark.parametrize('side', ['left', 'right'])
def test_packing_keeps_every_text_whole(side):
  random = np.random.default_rng(0)
  texts = [random.integers(1, 9, n).tolist() for n in (5, 3, 7, 2, 2, 6, 1)]
  batch = batch_lib.make_batch(texts, pack=True, length=8, pad_side=side)
  spans = batch_lib.text_spans(batch.segments_BT)
  found = [
    batch.tokens_BT[row, start : start + length].tolist()
    for row, start, length, _ in zip(*spans, strict=True)
  ]
  assert sorted(found) == sorted(texts)
  # 26 tokens need four rows of eight, and first fit finds them.
  assert len(batch.tokens_BT) == 4
  assert found[:3] == [[*texts[0]], [*texts[1]], [*texts[2]]]


def test_without_packing_texts_keep_their_order():
  texts = [[1, 2], [3], [4, 5, 6]]
  batch = batch_lib.make_batch(texts)
  assert batch.tokens_BT.tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]
  assert batch.segments_BT.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]


def test_bad_texts_are_refused():
  with pytest.raises(me_jax.MeJaxError, match='no text'):
    batch_lib.make_batch([])
  with pytest.raises(me_jax.MeJaxError, match='text 2 is empty'):
    batch_lib.make_batch([[1], []])
  with pytest.raises(me_jax.MeJaxError, match='exceeds 2'):
    batch_lib.make_batch([[1, 2, 3]], length=2)
