"""What does a model lose on texts, text by text?

Whole texts packed into rows of one shape, which one compiled function runs with
any mask, because a mask is data.

Letters: X texts, B rows, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from me_jax import errors
from me_jax.analysis import next_token
from me_jax.analysis import passes
from me_jax.models import batch as batch_lib
from me_jax.models import decoder
from me_jax.models import sink

_ROW = 64  # row lengths are multiples of it, for fewer compiles
_PASS = 1024  # tokens of a pass

Progress = Callable[[int, int], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
  """Texts in rows, and which of their tokens count.

  Attributes:
    batch: the texts, packed.
    rows: of a pass.
    counted_BT: after which tokens there is one to predict.
    answer_BT: those of them whose next token belongs to the answer that a chat
      ends with; of a text without an answer, all.
    text_BT: which text a token belongs to, -1 for padding.
    tokens_X: predicted tokens of each text.
    answers_X: predicted tokens of each answer.
  """

  batch: batch_lib.Batch
  rows: int
  counted_BT: np.ndarray
  answer_BT: np.ndarray
  text_BT: np.ndarray
  tokens_X: np.ndarray
  answers_X: np.ndarray

  def sums(self, values_BT: np.ndarray) -> np.ndarray:
    """Sums over each text's predicted tokens, `[X]` float64."""
    return self._sums(self.counted_BT, values_BT)

  def answer_sums(self, values_BT: np.ndarray) -> np.ndarray:
    """Sums over each answer's predicted tokens, `[X]` float64."""
    return self._sums(self.answer_BT, values_BT)

  def _sums(self, which_BT: np.ndarray, values_BT: np.ndarray) -> np.ndarray:
    values = np.asarray(values_BT, np.float64)[which_BT]
    return np.bincount(self.text_BT[which_BT], values, len(self.tokens_X))


def lay_out(
  texts: Sequence[tuple[Sequence[int], int]],
  *,
  bos_token_id: int | None = None,
  length: int | None = None,
) -> Texts:
  """Packs texts into rows.

  Args:
    texts: token ids, and how many of them come before the answer.
    bos_token_id: never predicted.
    length: of a row at least; equal lengths share a compile.

  Returns:
    The texts, in the order given.

  Raises:
    MeJaxError: there is no text, or one has nothing to predict.
  """
  if not texts:
    raise errors.MeJaxError('there is no text to score')
  for number, (ids, _) in enumerate(texts, 1):
    if not ids:
      raise errors.MeJaxError(f'text {number} is empty: it has no tokens')
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
  answer_BT = counted_BT.copy()
  text_BT = np.full(batch.tokens_BT.shape, -1)
  for row, start, size, _ in zip(*batch_lib.text_spans(batch.segments_BT)):
    here = slice(start, start + size)
    x = waiting[tuple(batch.tokens_BT[row, here].tolist())].pop()
    text_BT[row, here] = x
    # The token before an answer predicts its first.
    answer_BT[row, start : start + max(texts[x][1] - 1, 0)] = False
  tokens_X, answers_X = (
    np.bincount(text_BT[which_BT], minlength=len(texts))
    for which_BT in (counted_BT, answer_BT)
  )
  if not answers_X.all():
    number = int(answers_X.argmin()) + 1
    raise errors.MeJaxError(f'text {number} has no token to predict')
  time = batch.tokens_BT.shape[1]
  return Texts(
    batch=batch,
    # The same for any number of texts, so that they share a compile.
    rows=max(1, _PASS // time),
    counted_BT=counted_BT,
    answer_BT=answer_BT,
    text_BT=text_BT,
    tokens_X=tokens_X,
    answers_X=answers_X,
  )


def losses(
  model: decoder.Decoder,
  params: decoder.Params,
  texts: Texts,
  progress: Progress | None = None,
) -> np.ndarray:
  """Returns the loss of each predicted token, nats `[B, T]` float32."""
  count = len(texts.counted_BT)
  found = []
  for start in range(0, count, texts.rows):
    piece = passes.take_rows(texts.batch, start, texts.rows)
    scores, _ = next_token.score(model, params, *piece, {})
    found.append(np.asarray(scores['loss']))
    if progress is not None:
      progress(min(start + texts.rows, count), count)
  return np.concatenate(found)[:count]


def mean_and_gradient(
  model: decoder.Decoder,
  params: decoder.Params,
  texts: Texts,
  starts: Iterable[int],
) -> tuple[float, np.ndarray]:
  """Returns the mean loss of some passes and how the mask changes it.

  Args:
    model: the decoder.
    params: with `layers/sink_scale`.
    texts: to score.
    starts: first rows of the passes to run.

  Returns:
    Nats per predicted token, and its gradient with respect to the scale
    `[L, D]`.
  """
  total, tokens = 0.0, 0
  shape = model.config.num_hidden_layers, model.config.hidden_size
  gradient_LD = np.zeros(shape)
  for start in starts:
    piece = passes.take_rows(texts.batch, start, texts.rows)
    counted_BT = np.zeros(piece.tokens_BT.shape, bool)
    part_BT = texts.counted_BT[start : start + texts.rows]
    counted_BT[: len(part_BT)] = part_BT
    loss, found_LD = _gradient(model, params, *piece, counted_BT)
    total += float(loss)
    gradient_LD = gradient_LD + np.asarray(found_LD, np.float64)
    tokens += int(counted_BT.sum())
  return total / tokens, gradient_LD / tokens


@functools.partial(jax.jit, static_argnums=0)
def _gradient(
  model: decoder.Decoder,
  params: decoder.Params,
  tokens_BT: jax.Array,
  segments_BT: jax.Array,
  counted_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns a pass's summed loss and its gradient by the scale."""

  def summed(scale_LD: jax.Array) -> jax.Array:
    layers = {**params['layers'], sink.SCALE: scale_LD}
    scores, _ = next_token.score(
      model, {**params, 'layers': layers}, tokens_BT, segments_BT, {}
    )
    return jnp.sum(scores['loss'] * counted_BT)

  return jax.value_and_grad(summed)(params['layers'][sink.SCALE])
