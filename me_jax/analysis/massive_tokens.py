"""Which token of each text is the massive one? Known only after a pass.

The first token is tried; where another turns out to be it, the same compiled
pass runs once more with the right positions. Ordinary tokens, spread evenly
over each text, are looked at beside it as a control.

Letters: B rows, T time, L layers, Z = L + 1 states, P texts of a row, C = P +
controls chosen tokens of a row, X texts.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import numpy as np

from me_jax import errors
from me_jax.analysis import host
from me_jax.analysis import passes
from me_jax.models import batch as batch_lib
from me_jax.models import decoder

# Sun et al. 2024 (arXiv 2402.17762): both must be exceeded.
MASSIVE_VALUE = 100.0
MASSIVE_RATIO = 1000.0

Measure = Callable[..., dict[str, jax.Array]]
# Further operands of a pass, given its rows and the chosen tokens.
Operands = Callable[[batch_lib.Batch, np.ndarray], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
  """What a pass saw, and which tokens it was about.

  Attributes:
    piece: its rows.
    spans: where the texts stand.
    seen: what was measured, by name; on the device, or of several processes on
      the host.
    chosen_BC: positions of the chosen tokens: the first P of a row are its
      texts' own, massive where there is one and first in the text where not;
      the others are controls.
    members_BPT: which tokens belong to which text of their row.
    token_X: index within its text of each text's own token.
    massive_X: whether that one is massive.
    massive_tokens: every massive token as (text, index in the text, id).
    massive_LX: whether any token of the text is massive after each layer.
    token_massive_LX: the same of the text's own token.
    peak_LX: largest |x| of the text in each layer's output.
    median_LX: median |x| of the text in each layer's output.
    ordinary_BT: tokens that are in a text and never massive.
    control_at: rows and columns of `chosen_BC` that hold ordinary tokens which
      are not first in their text.
  """

  piece: batch_lib.Batch
  spans: batch_lib.TextSpans
  seen: dict[str, Any]
  chosen_BC: np.ndarray
  members_BPT: np.ndarray
  token_X: np.ndarray
  massive_X: np.ndarray
  massive_tokens: list[tuple[int, int, int]]
  massive_LX: np.ndarray
  token_massive_LX: np.ndarray
  peak_LX: np.ndarray
  median_LX: np.ndarray
  ordinary_BT: np.ndarray
  control_at: tuple[np.ndarray, np.ndarray]

  @property
  def token_at(self) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of `chosen_BC` that hold the texts' own tokens."""
    return self.spans.row, self.spans.slot


def look(
  measure: Measure,
  model: decoder.Decoder,
  params: decoder.Params,
  piece: batch_lib.Batch,
  slots: int,
  operands: Operands | None = None,
) -> Look:
  """Runs a pass, and once more if the first token is not the massive one.

  Args:
    measure: returns at least what `residual.measure` does.
    model: the decoder.
    params: its parameters.
    piece: the rows, checked.
    slots: P, at least the most texts in a row.
    operands: what `measure` needs besides `positions` and `members`.

  Raises:
    MeJaxError: the model's states are not finite.
  """
  spans = batch_lib.text_spans(piece.segments_BT)
  row_X, start_X, _, slot_X = spans
  controls_BC = passes.controls(piece, slots)
  members_BPT = passes.members(piece, spans, slots)

  def run(token_X: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    # A slot without a text repeats a control: padding is never looked at.
    positions_BP = np.repeat(controls_BC[:, -1:], slots, axis=1)
    positions_BP[row_X, slot_X] = start_X + token_X
    chosen_BC = np.concatenate([positions_BP, controls_BC], axis=1)
    given = {'positions': chosen_BC, 'members': members_BPT}
    if operands is not None:
      given |= operands(piece, chosen_BC)
    seen = measure(model, params, *piece, given)
    return chosen_BC, host.readable(seen)

  first_X = np.zeros_like(start_X)
  chosen_BC, seen = run(first_X)
  norm_ZBT, peak_LBT = np.asarray(seen['norm']), np.asarray(seen['peak'])
  if not np.isfinite(norm_ZBT).all():
    raise errors.MeJaxError(
      f'the model is not finite in {np.dtype(model.dtype).name}: use float32 '
      'or bfloat16, and check its parameters.'
    )
  median_LX = np.asarray(seen['median'])[:, row_X, slot_X]
  bound_LX = np.maximum(MASSIVE_VALUE, MASSIVE_RATIO * median_LX)
  bound_LBP = np.full((len(bound_LX), *members_BPT.shape[:2]), np.inf)
  bound_LBP[:, row_X, slot_X] = bound_LX
  # Padding belongs to no text, and its peak of 0 exceeds nothing.
  text_BT = members_BPT.argmax(axis=1)
  massive_LBT = peak_LBT > np.take_along_axis(bound_LBP, text_BT[None], axis=2)
  reach_BT = np.max(np.where(massive_LBT, norm_ZBT[1:], 0.0), axis=0)
  token_X, massive_tokens = _pick(piece, spans, reach_BT)
  if (token_X != first_X).any():
    chosen_BC, seen = run(token_X)

  token_massive_LX = massive_LBT[:, row_X, start_X + token_X]
  peak_LX = np.stack(
    [
      peak_LBT[:, row, start : start + length].max(axis=1)
      for row, start, length, _ in zip(*spans)
    ],
    axis=1,
  )
  ordinary_BT = (piece.segments_BT > 0) & (reach_BT == 0)
  later_BT = ordinary_BT.copy()
  later_BT[row_X, start_X] = False
  # Slots that repeat another's tokens do not count again.
  each = controls_BC.shape[1] // slots
  used_BC = members_BPT.any(axis=2).repeat(each, axis=1)
  used_BC &= np.take_along_axis(later_BT, controls_BC, axis=1)
  row, column = np.nonzero(used_BC)
  return Look(
    piece=piece,
    spans=spans,
    seen=seen,
    chosen_BC=chosen_BC,
    members_BPT=members_BPT,
    token_X=token_X,
    massive_X=np.any(token_massive_LX, axis=0),
    massive_tokens=massive_tokens,
    massive_LX=peak_LX > bound_LX,
    token_massive_LX=token_massive_LX,
    peak_LX=peak_LX,
    median_LX=median_LX,
    ordinary_BT=ordinary_BT,
    control_at=(row, slots + column),
  )


def _pick(
  piece: batch_lib.Batch, spans: batch_lib.TextSpans, reach_BT: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
  """Chooses the token of each text.

  Args:
    piece: the rows.
    spans: where its texts stand.
    reach_BT: largest massive norm of each token, 0 where it is never massive.

  Returns:
    Each text's token, the earliest whose norm is at least half of the largest;
    and all massive ones as (text, index in the text, id).
  """
  token_X = np.zeros_like(spans.length)
  massive_tokens = []
  for x, (row, start, length, _) in enumerate(zip(*spans)):
    reach_T = reach_BT[row, start : start + length]
    token_X[x] = np.argmax(reach_T >= reach_T.max() / 2)
    massive_tokens += [
      (x, int(t), int(piece.tokens_BT[row, start + t]))
      for t in np.flatnonzero(reach_T)
    ]
  return token_X, massive_tokens
