"""What is kept of a pass: sums that add up over passes.

Letters: as in `diagnosis`, and K inputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from me_jax.analysis import massive_tokens
from me_jax.analysis import residual
from me_jax.analysis import rigidity
from me_jax.analysis import sinks
from me_jax.models import decoder

Arrays = dict[str, np.ndarray]


class Sums(NamedTuple):
  """Sums over texts and tokens, in float64.

  Attributes:
    texts: over texts, each `[G, ...]`: with and without massive activations.
    controls: over control tokens.
    ordinary: over all tokens that are never massive.
    least: minima over texts, `[G, ...]`.
    own: the texts' own token in different inputs, of each group.
    control: the same of one control token a text.
  """

  texts: Arrays
  controls: Arrays
  ordinary: Arrays
  least: Arrays
  own: tuple[rigidity.InputSample, rigidity.InputSample]
  control: rigidity.InputSample


def add(a: Sums, b: Sums, inputs: int) -> Sums:
  """Returns the sums of both."""

  def both(x: Arrays, y: Arrays) -> Arrays:
    return {name: value + y[name] for name, value in x.items()}

  def join(
    x: rigidity.InputSample, y: rigidity.InputSample
  ) -> rigidity.InputSample:
    return rigidity.add(x, *y, inputs)

  return Sums(
    texts=both(a.texts, b.texts),
    controls=both(a.controls, b.controls),
    ordinary=both(a.ordinary, b.ordinary),
    least={name: np.minimum(x, b.least[name]) for name, x in a.least.items()},
    own=(join(a.own[0], b.own[0]), join(a.own[1], b.own[1])),
    control=join(a.control, b.control),
  )


def of_pass(
  look: massive_tokens.Look,
  model: decoder.Decoder,
  params: decoder.Params,
  inputs: int,
) -> Sums:
  """Returns the sums of one pass of `diagnosis.measure`.

  Args:
    look: what it saw.
    model: the decoder.
    params: its parameters.
    inputs: different inputs that are kept, at most.
  """
  row_X, slot_X = look.token_at
  allowed_LBC = np.ones(look.seen['state'].shape[:3], bool)
  allowed_LBC[:, row_X, slot_X] = look.token_massive_LX | ~look.massive_X
  tokens_BC = np.take_along_axis(look.piece.tokens_BT, look.chosen_BC, axis=1)
  nobody_GBC = np.zeros((1, *look.chosen_BC.shape), np.float32)
  found = jax.device_get(
    residual.attribute(
      model, params, tokens_BC, look.seen, allowed_LBC, nobody_GBC
    )
  )
  seen = jax.device_get({k: v for k, v in look.seen.items() if k != 'mid'})
  group_GX = np.stack([look.massive_X, ~look.massive_X])
  own = _tokens(found, seen, look.token_at)
  texts = {
    name: np.einsum('GX,X...->G...', group_GX, value.astype(np.float64))
    for name, value in (own | _texts(look, seen, found)).items()
  }
  control = {
    name: value.astype(np.float64).sum(axis=0)
    for name, value in _tokens(found, seen, look.control_at).items()
  }
  ordinary_ZX = seen['norm'][:, look.ordinary_BT].astype(np.float64)
  between_XLL = own['between_layers']
  huge = np.full_like(between_XLL[:1], np.inf)

  def of_group(mask_X: np.ndarray) -> Any:
    return inputs_of(look, seen, row_X[mask_X], slot_X[mask_X], inputs)

  return Sums(
    texts=texts,
    controls=control,
    ordinary={
      'count': np.asarray(ordinary_ZX.shape[1], np.float64),
      'norm': ordinary_ZX.sum(axis=1),
    },
    least={
      'between_layers': np.stack(
        [
          np.concatenate([huge, between_XLL[mask_X]]).min(axis=0)
          for mask_X in group_GX
        ]
      )
    },
    own=(of_group(group_GX[0]), of_group(group_GX[1])),
    control=inputs_of(look, seen, *one_a_text(look), inputs),
  )


def _tokens(
  found: dict[str, Any],
  seen: dict[str, Any],
  at: tuple[np.ndarray, np.ndarray],
) -> Arrays:
  """Returns what is known of chosen tokens, tokens first."""
  norm_ZX = found['norm'][:, *at]
  received = seen['received']
  state_XLD = seen['state'][:, *at].swapaxes(0, 1)
  # In the order [X, L, N]; advanced indices stand together, so they stay there.
  attention_XLN = received.chosen[:, *at].swapaxes(0, 1)
  return {
    'count': np.ones(norm_ZX.shape[1]),
    'norm': norm_ZX.T,
    'attention': attention_XLN,
    'largest': received.largest[:, *at].swapaxes(0, 1),
    'between_layers': rigidity.between_layers(state_XLD),
  }


def _texts(
  look: massive_tokens.Look, seen: dict[str, Any], found: dict[str, Any]
) -> Arrays:
  """Returns what is known of texts besides their token, texts first."""
  row_X, start_X, length_X, slot_X = look.spans
  at = look.token_at
  received = seen['received']
  norm_ZX = np.maximum(found['norm'][:, *at], np.finfo(np.float32).tiny)
  window_XLNW = received.window[:, *at].swapaxes(0, 1)
  attention_XLN = received.chosen[:, *at].swapaxes(0, 1)
  plateau_XD = found['plateau'][at]
  spread = {
    name: value[:, *at].swapaxes(0, 1)
    for name, value in seen['diversity']._asdict().items()
  }
  near_XLT = np.abs(seen['cosine'][:, row_X]).swapaxes(0, 1) > sinks.SECONDARY
  near_XLT &= look.members_BPT[at][:, None]
  near_XLT[np.arange(len(row_X)), :, start_X + look.token_X] = False
  alpha_XLT = received.token[:, row_X].swapaxes(0, 1)
  places_W = np.arange(window_XLNW.shape[-1])
  return spread | {
    'effective_rank': np.exp(spread['entropy']),
    'log_jump': np.log(norm_ZX[1:] / norm_ZX[:-1]).T,
    'attn_share': found['attn_share'][:, *at].T,
    'ffn_share': found['ffn_share'][:, *at].T,
    'embedding_share': found['embedding_share'][at],
    'massive': look.token_massive_LX.T,
    'peak': look.peak_LX.T,
    'median': look.median_LX.T,
    'plateau': plateau_XD,
    'plateau_square': plateau_XD.astype(np.float64) ** 2,
    'attention_square': attention_XLN.astype(np.float64) ** 2,
    'rate': attention_XLN > sinks.SINK,
    'by_position': window_XLNW,
    'rate_by_position': window_XLNW > sinks.SINK,
    'long_enough': places_W < length_X[:, None],
    'secondary': near_XLT.sum(axis=-1),
    'secondary_attention': np.where(near_XLT, alpha_XLT, 0.0).sum(axis=-1),
  }


def one_a_text(look: massive_tokens.Look) -> tuple[np.ndarray, np.ndarray]:
  """Returns where the middle control token of each text stands."""
  row, column = look.control_at
  slots = look.members_BPT.shape[1]
  each = (look.chosen_BC.shape[1] - slots) // slots
  middle = (column - slots) % each == each // 2
  return row[middle], column[middle]


def inputs_of(
  look: massive_tokens.Look,
  seen: dict[str, Any],
  row_X: np.ndarray,
  column_X: np.ndarray,
  inputs: int,
) -> rigidity.InputSample:
  """Samples the inputs of some chosen tokens.

  Args:
    look: what a pass saw.
    seen: of it on the host, `state` and `attn_in` at least.
    row_X: rows of the tokens.
    column_X: their columns of `chosen_BC`.
    inputs: how many are kept, at most.
  """
  keys = []
  for row, column in zip(row_X, column_X):
    stop = look.chosen_BC[row, column] + 1
    segments_T = look.piece.segments_BT[row, :stop]
    inside_T = segments_T == segments_T[-1]
    keys.append(rigidity.key(look.piece.tokens_BT[row, :stop][inside_T]))
  at = (row_X, column_X)
  return rigidity.add(
    None,
    keys,
    seen['state'][:, *at].swapaxes(0, 1),
    seen['attn_in'][:, *at].swapaxes(0, 1),
    inputs,
  )
