"""What do many texts show of the residual stream?

Streams a batch through `residual.measure`, a few rows at a time, and keeps
what is small. Ordinary tokens, spread evenly over each text, go through the
same arithmetic as the massive ones, as a control.

Letters: B rows, T time, L layers, Z = L + 1 states, P chosen tokens of a row,
X texts or tokens, K texts whose states in mid-layer are kept, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import numpy as np

from me_jax.analysis import host
from me_jax.analysis import massive_tokens
from me_jax.analysis import passes
from me_jax.analysis import residual
from me_jax.models import batch as batch_lib
from me_jax.models import decoder

_KEPT_TEXTS = 64
# Groups of tokens whose profiles are averaged.
_ALL, _MASSIVE, _CONTROL = range(3)

Measure = massive_tokens.Measure
Attribute = Callable[..., dict[str, jax.Array]]


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
    look = massive_tokens.look(measure, model, params, piece, slots)
    found = _measure_texts(look, model, params, residual.attribute, room)
    room -= found['mid_LXD'].shape[1]
    pieces.append(found)
    if progress:
      progress(min(start + rows, count), count)
  return _join(pieces)


def of_look(
  look: massive_tokens.Look,
  model: decoder.Decoder,
  params: decoder.Params,
  attribute: Attribute = residual.attribute,
) -> Trace:
  """Returns the measurements of a single pass that has been run.

  Args:
    look: what it saw.
    model: the decoder.
    params: its parameters.
    attribute: `residual.attribute`, or the same with its results elsewhere.
  """
  return _join([_measure_texts(look, model, params, attribute, _KEPT_TEXTS)])


def _measure_texts(
  look: massive_tokens.Look,
  model: decoder.Decoder,
  params: decoder.Params,
  attribute: Attribute,
  room: int,
) -> dict[str, Any]:
  """Splits the plateaus of a pass and keeps what is small."""
  row_X, slot_X = look.token_at
  control_at = look.control_at
  # Ordinary tokens have no massive state: then the largest of all counts.
  allowed_LBC = np.ones(look.seen['state'].shape[:3], bool)
  allowed_LBC[:, row_X, slot_X] = look.token_massive_LX | ~look.massive_X
  groups_GBC = np.zeros((3, *look.chosen_BC.shape), np.float32)
  groups_GBC[_ALL, row_X, slot_X] = 1
  groups_GBC[_MASSIVE, row_X, slot_X] = look.massive_X
  groups_GBC[_CONTROL, *control_at] = 1
  tokens_BT = look.piece.tokens_BT
  found = attribute(
    model,
    params,
    np.take_along_axis(tokens_BT, look.chosen_BC, axis=1),
    look.seen,
    allowed_LBC,
    groups_GBC,
  )
  found = jax.device_get(host.readable(found))
  norm_ZBT = np.asarray(look.seen['norm'])
  # Whole states are by far the largest thing here, and a few dozen texts say
  # enough about the neurons.
  kept_K = np.flatnonzero(look.massive_X)[:room]
  return {
    'massive_X': look.massive_X,
    'massive_LX': look.massive_LX,
    'massive_tokens': look.massive_tokens,
    'position_X': np.where(look.massive_X, look.token_X, -1),
    'first_id_X': tokens_BT[row_X, look.spans.start],
    'peak_LX': look.peak_LX,
    'median_LX': look.median_LX,
    'others_ZN': norm_ZBT[:, look.ordinary_BT],
    'token': _of_texts(found, row_X, slot_X),
    'control': _of_texts(found, *control_at),
    'profile_GZD': found['profile'],
    'mid_LXD': np.asarray(look.seen['mid'])[:, row_X[kept_K], slot_X[kept_K]],
  }


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
