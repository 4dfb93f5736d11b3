"""How much attention do tokens receive?

Attention probabilities are reduced inside the block, a chunk of queries at a
time. alpha_k, the mean over the queries i >= k of a text of A[i, k], and the
sink rate, the share of alpha_k above 0.3, follow Gu et al. 2024 (arXiv
2410.10781), who use the first 64 tokens of a text.

Letters: B rows, T time (query), S time (key), Q queries of a chunk, N heads,
D model width, P texts of a row, C chosen tokens of a row, W window of the first
tokens.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from me_jax.analysis import observers
from me_jax.models import sites

WINDOW = 64
SINK = 0.3
# |cos| to the massive token above which a token is a secondary sink's (arXiv
# 2512.22213).
SECONDARY = 0.9


class Received(NamedTuple):
  """What tokens of one layer receive.

  Attributes:
    window: `[B, P, N, W]`, alpha of each text's first W tokens from queries
      among those only; 0 beyond its end.
    chosen: `[B, C, N]`, alpha of the chosen tokens from all later queries and
      their own.
    largest: `[B, C, N]`, share of later queries that look at the chosen token
      more than at any other.
    token: `[B, T]`, alpha of every token, averaged over heads.
  """

  window: jax.Array
  chosen: jax.Array
  largest: jax.Array
  token: jax.Array


@dataclasses.dataclass(frozen=True)
class ReceivedAttention:
  """Sums attention over the queries.

  Operands: `positions` int32 `[B, C]`, the chosen tokens, the first P of each
  row one of each text; `members` bool `[B, P, T]`, which tokens belong to
  which text; `index` and `length` int32 `[B, T]`, each token's index in its
  text and that text's length, 0 for padding.
  """

  site: str = 'attn_probs'
  name: str = 'received'
  window: int = WINDOW

  def __call__(
    self, probs_BNQS: jax.Array, context: sites.SiteContext
  ) -> tuple[jax.Array, jax.Array]:
    """Returns this chunk's part of two sums over queries.

    `[B, N, 2, T]`, of all queries and of those within the window; `[B, N, C]`,
    how many later queries look at the chosen token most.
    """
    queries, keys = probs_BNQS.shape[2:]
    start = context.query_start
    positions_BC = context.operands['positions']
    segments_BT = context.segments_BT
    segments_BQ = segments_BT[:, start : start + queries]
    early_BQ = context.operands['index'][:, start : start + queries]
    weights_BRQ = jnp.stack(
      [jnp.ones_like(early_BQ), early_BQ < self.window], axis=1
    ).astype(probs_BNQS.dtype)
    sums_BNRS = jnp.einsum('BNQS,BRQ->BNRS', probs_BNQS, weights_BRQ)
    time = segments_BT.shape[1]
    sums_BNRT = jnp.pad(sums_BNRS, ((0, 0),) * 3 + ((0, time - keys),))

    hot_BCS = positions_BC[..., None] == jnp.arange(keys)[None, None]
    at_BNCQ = jnp.einsum(
      'BNQS,BCS->BNCQ', probs_BNQS, hot_BCS.astype(probs_BNQS.dtype)
    )
    top_BN1Q = jnp.max(probs_BNQS, axis=-1)[:, :, None]
    text_BC = jnp.take_along_axis(segments_BT, positions_BC, axis=1)
    query_11Q = start + jnp.arange(queries)[None, None]
    later_BCQ = query_11Q > positions_BC[..., None]
    later_BCQ &= segments_BQ[:, None] == text_BC[..., None]
    largest_BNCQ = (at_BNCQ >= top_BN1Q) & later_BCQ[:, None]
    return sums_BNRT, jnp.sum(largest_BNCQ, axis=-1, dtype=jnp.float32)

  def finish(
    self,
    total: tuple[jax.Array, jax.Array],
    context: sites.SiteContext,
  ) -> Received:
    """Turns the sums over all queries into means."""
    sums_BNRT, largest_BNC = total
    operands = context.operands
    positions_BC, members_BPT = operands['positions'], operands['members']
    index_BT, length_BT = operands['index'], operands['length']
    queries_BT = jnp.maximum(length_BT - index_BT, 1).astype(jnp.float32)
    alpha_BNT = sums_BNRT[:, :, 0] / queries_BT[:, None]
    early_BT = jnp.minimum(length_BT, self.window) - index_BT
    early_BT = jnp.maximum(early_BT, 1).astype(jnp.float32)
    window_BNT = sums_BNRT[:, :, 1] / early_BT[:, None]

    first_BP = jnp.argmax(members_BPT, axis=-1)
    length_BP = jnp.sum(members_BPT, axis=-1)
    place_11W = jnp.arange(self.window)[None, None]
    at_BPW = first_BP[..., None] + place_11W
    inside_BPW = place_11W < length_BP[..., None]
    window_BPNW = jnp.take_along_axis(
      window_BNT[:, None], at_BPW[:, :, None], axis=3, mode='clip'
    )
    window_BPNW = jnp.where(inside_BPW[:, :, None], window_BPNW, 0.0)
    later_BC = (
      jnp.take_along_axis(length_BT - index_BT, positions_BC, axis=1) - 1
    )
    later_BC1 = jnp.maximum(later_BC, 1).astype(jnp.float32)[..., None]
    chosen_BNC = jnp.take_along_axis(alpha_BNT, positions_BC[:, None], axis=2)
    return Received(
      window=window_BPNW,
      chosen=chosen_BNC.swapaxes(1, 2),
      largest=largest_BNC.swapaxes(1, 2) / later_BC1,
      token=jnp.mean(alpha_BNT, axis=1),
    )


@dataclasses.dataclass(frozen=True)
class CosineToToken:
  """Cosine of every token's state to its text's chosen one: `[B, T]`.

  Operands: `positions` and `members` as for `ReceivedAttention`. 0 at padding.
  """

  site: str = 'resid_pre'
  name: str = 'cosine'

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Reduces `[B, T, D]`."""
    members_BPT = context.operands['members']
    positions_BC = context.operands['positions']
    x_BTD = value.astype(jnp.float32)
    at_BPD = observers.at(x_BTD, positions_BC[:, : members_BPT.shape[1]])
    norm_BP = jnp.linalg.norm(at_BPD, axis=-1, keepdims=True)
    at_BPD = at_BPD / jnp.maximum(norm_BP, jnp.finfo(jnp.float32).tiny)
    along_BPT = jnp.einsum('BPD,BTD->BPT', at_BPD, x_BTD)
    along_BT = jnp.sum(jnp.where(members_BPT, along_BPT, 0.0), axis=1)
    norm_BT = jnp.sqrt(jnp.sum(x_BTD * x_BTD, axis=-1))
    return along_BT / jnp.maximum(norm_BT, jnp.finfo(jnp.float32).tiny)
