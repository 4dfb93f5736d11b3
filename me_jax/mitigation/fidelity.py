"""How far apart are the predictions of two parameter trees of one model?

Both run on the same texts; the logits of a few tokens exist at a time, never
`[B, T, V]`.

Letters: X texts, B rows, T time, N tokens, Q tokens of a chunk, D model width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
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

_CHUNK = 64  # tokens whose logits exist at a time, of either tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence:
  """How two trees predict the same texts, in nats summed over each text.

  Attributes:
    kl_X: Kullback-Leibler divergence of the second tree's next-token
      distribution from the first's.
    loss_a_X: loss of the first.
    loss_b_X: loss of the second.
    tokens_X: predicted tokens of each text.
  """

  kl_X: np.ndarray
  loss_a_X: np.ndarray
  loss_b_X: np.ndarray
  tokens_X: np.ndarray

  @property
  def kl(self) -> float:
    """Mean over all predicted tokens, nats."""
    return float(self.kl_X.sum() / self.tokens_X.sum())


def kl(
  model: decoder.Decoder,
  params_a: decoder.Params,
  params_b: decoder.Params,
  batch: batch_lib.Batch,
  *,
  rows: int | None = None,
  progress: Callable[[int, int], Any] | None = None,
) -> Divergence:
  """Compares the next-token distributions of two trees, KL(a || b).

  Args:
    model: the decoder of both, with its edits.
    params_a: the tree that is taken as the truth: the exact mask, or stock.
    params_b: the other; either may have the leaves of `sink.py`.
    batch: texts, several to a row or not.
    rows: of a pass; by default what costs least.
    progress: called with (rows done, rows in all).

  Returns:
    Sums of every text, in reading order, over the tokens of
    `next_token.targets`.

  Raises:
    MeJaxError: the batch is not sound, or no text has a token to predict.
  """
  batch = batch_lib.check_batch(model.config, batch)
  counted_BT = next_token.targets(batch, model.config.bos_token_id)
  if not counted_BT.any():
    raise errors.MeJaxError(
      'no text has a token to predict: give texts of two tokens or more.'
    )
  count = len(batch.tokens_BT)
  rows = passes.rows_of(batch, rows)
  found = []
  for start in range(0, count, rows):
    piece = passes.take_rows(batch, start, rows)
    states = (hidden(model, params, *piece) for params in (params_a, params_b))
    found.append(
      jax.device_get(
        compare(model, params_a, params_b, *states, piece.tokens_BT)
      )
    )
    if progress:
      progress(min(start + rows, count), count)
  spans = batch_lib.text_spans(batch.segments_BT)
  ends = list(zip(spans.row, spans.start, spans.start + spans.length))

  def per_text(values_BT: np.ndarray) -> np.ndarray:
    kept_BT = np.where(counted_BT, values_BT, 0).astype(np.float64)
    return np.array([kept_BT[b, start:stop].sum() for b, start, stop in ends])

  kl_BT, a_BT, b_BT = (np.concatenate(x)[:count] for x in zip(*found))
  return Divergence(
    kl_X=per_text(kl_BT),
    loss_a_X=per_text(a_BT),
    loss_b_X=per_text(b_BT),
    tokens_X=per_text(np.ones_like(kl_BT)).astype(int),
  )


@functools.partial(jax.jit, static_argnums=0)
def hidden(
  model: decoder.Decoder,
  params: decoder.Params,
  tokens_BT: jax.Array,
  segments_BT: jax.Array,
) -> jax.Array:
  """Returns what the head receives, `[B, T, D]`: all that `compare` needs."""
  with jax.default_matmul_precision('highest'):
    return model.apply({'params': params}, tokens_BT, segments_BT).hidden


@functools.partial(jax.jit, static_argnums=0)
def compare(
  model: decoder.Decoder,
  params_a: decoder.Params,
  params_b: decoder.Params,
  hidden_a_BTD: jax.Array,
  hidden_b_BTD: jax.Array,
  tokens_BT: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns KL(a || b) and both losses of the token that follows, `[B, T]`."""
  count = tokens_BT.size
  pad = (0, -count % _CHUNK)

  def chunks(hidden_BTD: jax.Array) -> jax.Array:
    hidden_ND = hidden_BTD.reshape(count, -1)
    hidden_ND = jnp.pad(hidden_ND, (pad, (0, 0)))
    return hidden_ND.reshape(-1, _CHUNK, hidden_ND.shape[-1])

  next_N = jnp.pad(jnp.roll(tokens_BT, -1, axis=1).reshape(count), pad)

  def chunk(inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    a_QD, b_QD, next_Q = inputs
    a_QV = next_token.logits(model, params_a, a_QD)
    b_QV = next_token.logits(model, params_b, b_QD)
    # KL = sum_v p_a (a - b) + lse(b) - lse(a): one exponential of each.
    top_Q1 = jnp.max(a_QV, axis=1, keepdims=True)
    weight_QV = jnp.exp(a_QV - top_Q1)
    total_Q = jnp.sum(weight_QV, axis=1)
    lse_a_Q = jnp.log(total_Q) + top_Q1[:, 0]
    lse_b_Q = jax.nn.logsumexp(b_QV, axis=1)
    apart_Q = jnp.sum(weight_QV * (a_QV - b_QV), axis=1) / total_Q
    losses = (
      lse_Q - jnp.take_along_axis(x_QV, next_Q[:, None], axis=1)[:, 0]
      for lse_Q, x_QV in ((lse_a_Q, a_QV), (lse_b_Q, b_QV))
    )
    return apart_Q + lse_b_Q - lse_a_Q, *losses

  with jax.default_matmul_precision('highest'):
    inputs = chunks(hidden_a_BTD), chunks(hidden_b_BTD)
    found = jax.lax.map(chunk, (*inputs, next_N.reshape(-1, _CHUNK)))
  return tuple(x.reshape(-1)[:count].reshape(tokens_BT.shape) for x in found)
