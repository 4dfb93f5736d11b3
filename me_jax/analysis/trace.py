"""What do many texts show of the residual stream?

Streams a batch through `residual.measure`, a few rows at a time, and keeps
what is small. Which token of a text is the massive one is known only after the
pass; the first token is tried, and where another turns out to be it the same
compiled pass runs once more with the right positions.

Ordinary tokens, spread evenly over each row, go through the same arithmetic,
as a control.

Letters: B rows, T time, L layers, Z = L + 1 states, P chosen tokens of a row,
X texts or tokens, K texts whose states in mid-layer are kept, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import numpy as np

from me_jax import errors
from me_jax.analysis import passes
from me_jax.analysis import residual
from me_jax.models import batch as batch_lib
from me_jax.models import decoder

# Sun et al. 2024 (arXiv 2402.17762): both must be exceeded.
MASSIVE_VALUE = 100.0
MASSIVE_RATIO = 1000.0

_KEPT_TEXTS = 64
# Groups of tokens whose profiles are averaged.
_ALL, _MASSIVE, _CONTROL = range(3)

Measure = Callable[..., dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenTrace:
  """What happened to some tokens, `X` of them.

  Attributes:
    norm_ZX: norm of its state.
    projection_ZX: its state along the direction of its plateau.
    attn_share_LX: share of the plateau that each attention wrote.
    ffn_share_LX: share that each FFN wrote.
    embedding_share_X: share that the embedding holds; all sum to one.
    plateau_XD: its state of largest norm, among the massive ones.
    profile_ZD: |state|, averaged over the tokens.
  """

  norm_ZX: np.ndarray
  projection_ZX: np.ndarray
  attn_share_LX: np.ndarray
  ffn_share_LX: np.ndarray
  embedding_share_X: np.ndarray
  plateau_XD: np.ndarray
  profile_ZD: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
  """The measurements of all texts, on the host, in reading order.

  A text's *token* is its massive one: the earliest whose massive norm is at
  least half of the largest in the text.

  Attributes:
    massive_X: whether the text holds massive activations.
    massive_LX: whether any of its tokens is massive in each layer's output.
    massive_tokens: every massive token as (text, index in the text, id).
    position_X: index of the text's token, -1 where none is massive.
    first_id_X: id of the text's first token.
    peak_LX: largest |x| of the text in each layer's output.
    median_LX: median |x| of the text in each layer's output.
    others_Z: median norm of the tokens that are not massive.
    used_X: the texts that `token` is about: those with massive activations,
      or all of them, with their first tokens, when none has any.
    token: what happened to the token of each text in `used_X`.
    control: the same of tokens that are neither massive nor first in a text;
      empty when there are none.
    mid_LKD: the token's state between attention and FFN, for the first K of
      the texts with massive activations.
  """

  massive_X: np.ndarray
  massive_LX: np.ndarray
  massive_tokens: tuple[tuple[int, int, int], ...]
  position_X: np.ndarray
  first_id_X: np.ndarray
  peak_LX: np.ndarray
  median_LX: np.ndarray
  others_Z: np.ndarray
  used_X: np.ndarray
  token: TokenTrace
  control: TokenTrace
  mid_LKD: np.ndarray


def trace(
  model: decoder.Decoder,
  params: decoder.Params,
  batch: batch_lib.Batch,
  *,
  rows: int | None = None,
  measure: Measure = residual.measure,
  progress: Callable[[int, int], Any] | None = None,
) -> Trace:
  """Measures a batch of texts, however many.

  Args:
    model: the decoder.
    params: its parameters.
    batch: the texts.
    rows: rows per pass, which bounds the memory; by default at most
      512 tokens.
    measure: `residual.measure`, or the same compiled ahead of time.
    progress: called with (rows done, rows in all).

  Returns:
    The measurements.

  Raises:
    MeJaxError: the batch is not sound, see `check_batch`.
  """
  batch = batch_lib.check_batch(model.config, batch)
  slots = passes.slots_of(batch)
  rows = passes.rows_of(batch, rows)
  count = len(batch.tokens_BT)
  pieces: list[dict[str, Any]] = []
  room = _KEPT_TEXTS
  for start in range(0, count, rows):
    piece = passes.take_rows(batch, start, rows)
    found = _measure_texts(measure, model, params, piece, slots)
    # Whole states are by far the largest thing here, and a few dozen texts say
    # enough about the neurons.
    kept = np.flatnonzero(found['massive_X'])[:room]
    found['mid_LXD'] = found['mid_LXD'][:, kept]
    room -= len(kept)
    pieces.append(found)
    if progress:
      progress(min(start + rows, count), count)
  return _join(pieces)


def _measure_texts(
  measure: Measure,
  model: decoder.Decoder,
  params: decoder.Params,
  piece: batch_lib.Batch,
  slots: int,
) -> dict[str, Any]:
  """Measures the texts of some rows."""
  spans = batch_lib.text_spans(piece.segments_BT)
  row_X, start_X, _, slot_X = spans
  controls = passes.controls(piece, slots)

  def choose(token_X: np.ndarray) -> np.ndarray:
    # A slot without a text repeats a control: padding is never looked at.
    positions_BP = np.repeat(controls[:, -1:], slots, axis=1)
    positions_BP[row_X, slot_X] = start_X + token_X
    return np.concatenate([positions_BP, controls], axis=1)

  first_X = np.zeros_like(start_X)
  chosen_BP = choose(first_X)
  members_BPT = passes.members(piece, spans, slots)
  operands = {'positions': chosen_BP, 'members': members_BPT}
  seen = measure(model, params, *piece, operands)
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
    chosen_BP = choose(token_X)
    seen = measure(model, params, *piece, operands | {'positions': chosen_BP})

  token_massive_LX = massive_LBT[:, row_X, start_X + token_X]
  massive_X = token_massive_LX.any(axis=0)
  # Ordinary tokens have no massive state: then the largest of all counts.
  allowed_LBP = np.ones(seen['state'].shape[:3], bool)
  allowed_LBP[:, row_X, slot_X] = token_massive_LX | ~massive_X
  ordinary_BT = (piece.segments_BT > 0) & (reach_BT == 0)
  later_BT = ordinary_BT.copy()
  later_BT[row_X, start_X] = False
  is_control = np.take_along_axis(later_BT, controls, axis=1)
  # Slots that repeat another's tokens do not count again.
  each = controls.shape[1] // slots
  used = members_BPT.any(axis=2).repeat(each, axis=1)
  control_row, control_slot = np.nonzero(is_control & used)
  groups_GBP = np.zeros((3, *chosen_BP.shape), np.float32)
  groups_GBP[_ALL, row_X, slot_X] = 1
  groups_GBP[_MASSIVE, row_X, slot_X] = massive_X
  groups_GBP[_CONTROL, control_row, slots + control_slot] = 1
  tokens_BP = np.take_along_axis(piece.tokens_BT, chosen_BP, axis=1)
  found = jax.device_get(
    residual.attribute(model, params, tokens_BP, seen, allowed_LBP, groups_GBP)
  )
  peak_LX = np.stack(
    [
      peak_LBT[:, row, start : start + length].max(axis=1)
      for row, start, length, _ in zip(*spans)
    ],
    axis=1,
  )
  return {
    'massive_X': massive_X,
    'massive_LX': peak_LX > bound_LX,
    'massive_tokens': massive_tokens,
    'position_X': np.where(massive_X, token_X, -1),
    'first_id_X': piece.tokens_BT[row_X, start_X],
    'peak_LX': peak_LX,
    'median_LX': median_LX,
    'others_ZN': norm_ZBT[:, ordinary_BT],
    'token': _of_texts(found, row_X, slot_X),
    'control': _of_texts(found, control_row, slots + control_slot),
    'profile_GZD': found['profile'],
    'mid_LXD': np.asarray(seen['mid'])[:, row_X, slot_X],
  }


def _pick(
  piece: batch_lib.Batch, spans: batch_lib.TextSpans, reach_BT: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
  """Chooses the token of each text.

  Args:
    piece: the rows.
    spans: where its texts stand.
    reach_BT: largest massive norm of each token, 0 where it is never massive.

  Returns:
    Each text's token, and all massive ones as (text, index in the text, id).
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


def _of_texts(
  found: dict[str, np.ndarray], row_X: np.ndarray, slot_X: np.ndarray
) -> dict[str, np.ndarray]:
  """Takes some tokens out of what `attribute` returned, tokens last."""
  last = {
    'norm_ZX': found['norm'],
    'projection_ZX': found['projection'],
    'attn_share_LX': found['attn_share'],
    'ffn_share_LX': found['ffn_share'],
    'embedding_share_X': found['embedding_share'],
  }
  return {name: value[..., row_X, slot_X] for name, value in last.items()} | {
    'plateau_DX': found['plateau'][row_X, slot_X].T,
  }


def _join(pieces: list[dict[str, Any]]) -> Trace:
  """Puts the texts of all passes side by side."""

  def cat(name: str) -> np.ndarray:
    return np.concatenate([piece[name] for piece in pieces], axis=-1)

  massive_X = cat('massive_X')
  used_X = massive_X if massive_X.any() else np.ones_like(massive_X)
  profile_GZD = sum(piece['profile_GZD'] for piece in pieces)

  def cat_token(name: str, group: int, used_X: Any = slice(None)) -> TokenTrace:
    tokens = [piece[name] for piece in pieces]
    joined = {
      key: np.concatenate([token[key] for token in tokens], -1)[..., used_X]
      for key in tokens[0]
    }
    plateau_XD = joined.pop('plateau_DX').T
    return TokenTrace(
      **joined,
      plateau_XD=plateau_XD,
      profile_ZD=profile_GZD[group] / max(len(plateau_XD), 1),
    )

  starts = np.cumsum([0] + [len(piece['massive_X']) for piece in pieces])
  others_ZN = cat('others_ZN')
  return Trace(
    massive_X=massive_X,
    massive_LX=cat('massive_LX'),
    massive_tokens=tuple(
      (int(x + start), t, token)
      for piece, start in zip(pieces, starts)
      for x, t, token in piece['massive_tokens']
    ),
    position_X=cat('position_X'),
    first_id_X=cat('first_id_X'),
    peak_LX=cat('peak_LX'),
    median_LX=cat('median_LX'),
    others_Z=np.median(others_ZN, axis=1)
    if others_ZN.size
    else np.zeros(len(others_ZN)),
    used_X=used_X,
    token=cat_token('token', _MASSIVE if massive_X.any() else _ALL, used_X),
    control=cat_token('control', _CONTROL),
    mid_LKD=np.concatenate([p['mid_LXD'] for p in pieces], axis=1),
  )
