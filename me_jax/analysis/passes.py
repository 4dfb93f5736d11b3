"""How is a batch cut into passes of one shape?

A few rows at a time, so that memory is bounded and one compile serves them
all, with the ordinary tokens that each pass looks at as a control.

Letters: B rows, T time, P texts of a row.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from me_jax.models import batch as batch_lib

_TOKENS = 512  # of a pass, unless the caller says otherwise
# What a pass costs besides its tokens, in tokens; and the length of a row that
# doubles the cost of a token. Measured on two cores, only a choice of layout.
_PASS, _LONG = 64, 3000
# Ordinary tokens of each text: as many whatever the pass, so that how texts are
# batched does not change what is looked at.
_CONTROLS = 2


def operand_shapes(batch: batch_lib.Batch, rows: int | None = None) -> Any:
  """Returns tokens, segments and operands of a pass as shapes.

  For compiling `residual.measure` ahead of time, with the same `rows`.
  """
  piece = take_rows(batch, 0, rows_of(batch, rows))
  slots = slots_of(batch)
  rows, time = piece.tokens_BT.shape
  chosen = slots + controls(piece, slots).shape[1]
  operands = {
    'positions': jax.ShapeDtypeStruct((rows, chosen), np.int32),
    'members': jax.ShapeDtypeStruct((rows, slots, time), np.bool_),
  }
  struct = jax.ShapeDtypeStruct((rows, time), np.int32)
  return struct, struct, operands


def cost(batch: batch_lib.Batch) -> float:
  """Returns what running a batch costs, in tokens, padding included."""
  count, time = batch.tokens_BT.shape
  return _cost(count, time, rows_of(batch, None))


def _cost(count: int, time: int, rows: int) -> float:
  """Returns the cost of `count` rows, `rows` a pass."""
  tokens = rows * time * (1 + time / _LONG)
  return -(-count // rows) * (tokens + _PASS)


def rows_of(batch: batch_lib.Batch, rows: int | None) -> int:
  """Returns the rows of a pass, by default those that cost least."""
  count, time = batch.tokens_BT.shape
  if rows is None:
    fitting = range(1, max(1, _TOKENS // time) + 1)
    rows = min(fitting, key=lambda rows: _cost(count, time, rows))
  return min(rows, count)


def slots_of(batch: batch_lib.Batch) -> int:
  """Returns the most texts in a row, as a power of two (fewer compiles)."""
  most = int(batch_lib.text_spans(batch.segments_BT).slot.max()) + 1
  return 1 << (most - 1).bit_length()


def take_rows(batch: batch_lib.Batch, start: int, rows: int) -> batch_lib.Batch:
  """Returns some rows, filled up with padding to one shape."""
  taken = [x[start : start + rows] for x in batch]
  missing = rows - len(taken[0])
  return batch_lib.Batch(*(np.pad(x, ((0, missing), (0, 0))) for x in taken))


def controls(piece: batch_lib.Batch, slots: int) -> np.ndarray:
  """Spreads control tokens over each text: positions, `[B, controls]`.

  Each text has as many, evenly spaced, not its first token if it has others.
  Where a row has fewer texts than slots, its last text fills the rest.
  """
  rows = len(piece.segments_BT)
  chosen = np.zeros((rows, slots, _CONTROLS), np.int32)
  parts = np.arange(1, _CONTROLS + 1) / (_CONTROLS + 1)
  for row, start, length, slot in zip(*batch_lib.text_spans(piece.segments_BT)):
    inside = np.minimum(1 + (parts * (length - 1)).astype(int), length - 1)
    chosen[row, slot:] = start + inside
  return chosen.reshape(rows, -1)


def members(
  piece: batch_lib.Batch, spans: batch_lib.TextSpans, slots: int
) -> np.ndarray:
  """Says which tokens belong to which text of their row, `[B, slots, T]`."""
  rows, time = piece.tokens_BT.shape
  members_BPT = np.zeros((rows, slots, time), bool)
  for row, start, length, slot in zip(*spans):
    members_BPT[row, slot, start : start + length] = True
  return members_BPT


def places(
  piece: batch_lib.Batch, spans: batch_lib.TextSpans
) -> dict[str, np.ndarray]:
  """Returns each token's `index` in its text and that text's `length`.

  `[B, T]` int32, 0 at padding; observers of attention ask for them.
  """
  index_BT = np.zeros_like(piece.segments_BT)
  length_BT = np.zeros_like(index_BT)
  for row, start, length, _ in zip(*spans):
    index_BT[row, start : start + length] = np.arange(length)
    length_BT[row, start : start + length] = length
  return {'index': index_BT, 'length': length_BT}
