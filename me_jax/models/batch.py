"""Token ids of several texts as arrays of one shape.

Letters: B rows, T tokens of a row, P texts of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from me_jax import errors
from me_jax.models import config as config_lib

_OPEN_ROWS = 64


class Batch(NamedTuple):
  """Texts in rows.

  Attributes:
    tokens_BT: int32 token ids.
    segments_BT: int32; 0 is padding, on either side, and 1, 2, ... are the
      texts of a row, each contiguous.

  Examples:
    >>> import me_jax
    >>> batch = me_jax.Batch([[5, 6, 7, 8, 0]], [[1, 1, 2, 2, 0]])
    >>> batch.segments_BT[0].count(2)  # tokens of the second text
    2
  """

  tokens_BT: np.ndarray
  segments_BT: np.ndarray


class TextSpans(NamedTuple):
  """Where the texts of a batch stand, in reading order, `[texts]` each.

  Attributes:
    row: index of the row.
    start: index of the first token.
    length: number of tokens.
    slot: index of the text within its row, from 0.
  """

  row: np.ndarray
  start: np.ndarray
  length: np.ndarray
  slot: np.ndarray


def make_batch(
  texts: Sequence[Sequence[int]],
  *,
  pack: bool = False,
  length: int | None = None,
  pad_side: str = 'right',
  pad_id: int = 0,
) -> Batch:
  """Lays texts out in rows.

  Args:
    texts: token ids of each text; none empty.
    pack: put each text into the first row that has room, which changes their
      order; else one text a row, in order.
    length: T; by default the longest text.
    pad_side: where a row is filled up, `right` or `left`.
    pad_id: token that fills; never seen by anything.

  Returns:
    The batch.

  Raises:
    MeJaxError: there is no text, one is empty or exceeds `length`, or
      `pad_side` is neither.
  """
  if pad_side not in ('left', 'right'):
    raise errors.MeJaxError(f"pad_side is {pad_side!r}, not 'left' or 'right'.")
  if not len(texts):
    raise errors.MeJaxError('there is no text to run.')
  for i, text in enumerate(texts):
    if not len(text):
      raise errors.MeJaxError(f'text {i + 1} is empty: it has no tokens.')
  longest = max(len(text) for text in texts)
  length = longest if length is None else length
  if longest > length:
    raise errors.MeJaxError(f'a text of {longest} tokens exceeds {length}.')
  rows: list[list[Sequence[int]]] = []
  room: dict[int, int] = {}
  for text in texts:
    fits = (row for row, free in room.items() if free >= len(text))
    row = next(fits, None) if pack else None
    if row is None:
      row = len(rows)
      rows.append([])
      room[row] = length
      # A row that has waited long is taken as full: packing stays linear.
      room.pop(row - _OPEN_ROWS, None)
    rows[row].append(text)
    room[row] -= len(text)
  tokens_BT = np.full((len(rows), length), pad_id, np.int32)
  segments_BT = np.zeros((len(rows), length), np.int32)
  for b, row in enumerate(rows):
    at = length - sum(map(len, row)) if pad_side == 'left' else 0
    for number, text in enumerate(row, 1):
      tokens_BT[b, at : at + len(text)] = text
      segments_BT[b, at : at + len(text)] = number
      at += len(text)
  return Batch(tokens_BT, segments_BT)


def check_batch(config: config_lib.ModelConfig, batch: Batch) -> Batch:
  """Returns the batch as int32 NumPy arrays after looking it over.

  Raises:
    MeJaxError: shapes differ, it holds no token, a text is not contiguous or
      longer than the context, or an id is outside the vocabulary (a gather
      would silently clamp it).
  """
  tokens_BT = np.asarray(batch.tokens_BT)
  segments_BT = np.asarray(batch.segments_BT)
  if tokens_BT.shape != segments_BT.shape or tokens_BT.ndim != 2:
    raise errors.MeJaxError(
      f'tokens {tokens_BT.shape} and segments {segments_BT.shape} must both '
      'be [B, T].'
    )
  if not np.issubdtype(tokens_BT.dtype, np.integer):
    raise errors.MeJaxError(f'token ids are {tokens_BT.dtype}, not integers.')
  tokens_BT = tokens_BT.astype(np.int64)
  segments_BT = segments_BT.astype(np.int32)
  if not (segments_BT > 0).any():
    raise errors.MeJaxError('the batch holds no tokens, only padding.')
  wrong = (segments_BT > 0) & (
    (tokens_BT < 0) | (tokens_BT >= config.vocab_size)
  )
  if wrong.any():
    row, at = np.argwhere(wrong)[0]
    raise errors.MeJaxError(
      f'token id {tokens_BT[row, at]} in row {row} is outside the '
      f'vocabulary of {config.vocab_size}.'
    )
  spans = text_spans(segments_BT)
  keys = list(zip(spans.row, segments_BT[spans.row, spans.start]))
  if len(set(keys)) < len(keys):
    raise errors.MeJaxError('a text of the batch is not contiguous.')
  if spans.length.max() > config.context_length:
    raise errors.MeJaxError(
      f'a text of {spans.length.max()} tokens exceeds the context of '
      f'{config.context_length}.'
    )
  tokens_BT = np.where(segments_BT > 0, tokens_BT, 0)
  return Batch(tokens_BT.astype(np.int32), segments_BT)


def text_spans(segments_BT: np.ndarray) -> TextSpans:
  """Returns where each text of a batch stands, in reading order."""
  before_BT = np.pad(segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=0)
  is_start_BT = (segments_BT > 0) & (segments_BT != before_BT)
  row, start = np.nonzero(is_start_BT)
  same = segments_BT[row] == segments_BT[row, start][:, None]
  after = np.arange(segments_BT.shape[1])[None] >= start[:, None]
  slot = np.cumsum(is_start_BT, axis=1)[row, start] - 1
  # A run ends where the number first changes after the start.
  ended = np.cumsum(after & ~same, axis=1) > 0
  return TextSpans(row, start, (after & same & ~ended).sum(axis=1), slot)
