"""What does a model lose on texts, text by text?

Whole texts packed into rows of one shape, which one compiled function runs with
any mask, because a mask is data.

Letters: X texts, B rows, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np

from me_jax import errors
from me_jax.analysis import next_token
from me_jax.analysis import passes
from me_jax.models import batch as batch_lib
from me_jax.models import decoder

_ROW = 64  # row lengths are multiples of it, for fewer compiles
_PASS = 1024  # tokens of a pass

Progress = Callable[[int, int], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
  """Texts in rows, and which of their tokens count.

  Attributes:
    batch: the texts, packed.
    rows: of a pass.
    counted_BT: after which tokens there is one to predict that counts.
    text_BT: which text a token belongs to, -1 for padding.
    counts_X: tokens that count in each text.
  """

  batch: batch_lib.Batch
  rows: int
  counted_BT: np.ndarray
  text_BT: np.ndarray
  counts_X: np.ndarray

  def per_text(self, values_BT: np.ndarray) -> np.ndarray:
    """Sums over the tokens of each text that count, `[X]` float64."""
    return np.bincount(
      self.text_BT[self.counted_BT],
      np.asarray(values_BT, np.float64)[self.counted_BT],
      len(self.counts_X),
    )


def lay_out(
  texts: Sequence[tuple[Sequence[int], int]],
  *,
  bos_token_id: int | None = None,
  length: int | None = None,
) -> Texts:
  """Packs texts into rows.

  Args:
    texts: token ids, and how many of them come before the first that counts: a
      prompt's, whose answer alone is scored; 0 scores all but the first.
    bos_token_id: never scored.
    length: of a row at least; equal lengths share a compile.

  Returns:
    The texts, in the order given.

  Raises:
    MeJaxError: a text has nothing to predict.
  """
  longest = max(len(ids) for ids, _ in texts)
  length = max(length or 0, longest)
  # Long texts first pack best; the sort also fixes which row is whose.
  order = sorted(range(len(texts)), key=lambda x: -len(texts[x][0]))
  batch = batch_lib.make_batch(
    [texts[x][0] for x in order], pack=True, length=-(-length // _ROW) * _ROW
  )
  waiting: dict[tuple[int, ...], list[int]] = {}
  for x in reversed(order):
    waiting.setdefault(tuple(texts[x][0]), []).append(x)
  counted_BT = next_token.targets(batch, bos_token_id)
  text_BT = np.full(batch.tokens_BT.shape, -1)
  for row, start, size, _ in zip(*batch_lib.text_spans(batch.segments_BT)):
    here = slice(start, start + size)
    x = waiting[tuple(batch.tokens_BT[row, here].tolist())].pop()
    text_BT[row, here] = x
    # The token before the first that counts predicts it.
    counted_BT[row, start : start + max(texts[x][1] - 1, 0)] = False
  counts_X = np.bincount(text_BT[counted_BT], minlength=len(texts))
  if not counts_X.all():
    number = int(counts_X.argmin()) + 1
    raise errors.MeJaxError(f'text {number} has no token to predict')
  count, time = batch.tokens_BT.shape
  passes_needed = -(-count // max(1, _PASS // time))
  return Texts(
    batch=batch,
    # Passes of one size, with as little padding as can be.
    rows=-(-count // passes_needed),
    counted_BT=counted_BT,
    text_BT=text_BT,
    counts_X=counts_X,
  )


def losses(
  model: decoder.Decoder,
  params: decoder.Params,
  texts: Texts,
  progress: Progress | None = None,
) -> np.ndarray:
  """Returns each text's loss summed over the tokens that count, nats `[X]`."""
  count = len(texts.counted_BT)
  found = []
  for start in range(0, count, texts.rows):
    piece = passes.take_rows(texts.batch, start, texts.rows)
    scores, _ = next_token.score(model, params, *piece, {})
    found.append(np.asarray(scores['loss']))
    if progress is not None:
      progress(min(start + texts.rows, count), count)
  return texts.per_text(np.concatenate(found)[:count])
