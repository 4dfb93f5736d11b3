"""How well does the model predict the next token, and does an edit change that?

The loss is computed from the final hidden states, a few tokens' logits at a
time: all of them, `[B, T, V]`, never exist.

Letters: B rows, T time, N tokens, Q tokens of a chunk, V vocabulary, D model
width.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.models import batch as batch_lib
from me_jax.models import decoder
from me_jax.models import sites

_CHUNK = 128  # tokens whose logits exist at a time


def targets(batch: batch_lib.Batch, bos_token_id: int | None) -> np.ndarray:
  """Says after which tokens there is a next one to predict, `[B, T]` bool.

  Not at padding nor at a text's last token, whose successor belongs to another
  text; and where the next token is BOS, which nobody needs to foresee.
  """
  tokens_BT, segments_BT = batch
  counted_BT = np.zeros(tokens_BT.shape, bool)
  counted_BT[:, :-1] = (segments_BT[:, :-1] > 0) & (
    segments_BT[:, :-1] == segments_BT[:, 1:]
  )
  if bos_token_id is not None:
    counted_BT[:, :-1] &= tokens_BT[:, 1:] != bos_token_id
  return counted_BT


@functools.partial(jax.jit, static_argnums=0)
def score(
  model: decoder.Decoder,
  params: decoder.Params,
  tokens_BT: jax.Array,
  segments_BT: jax.Array,
  operands: Mapping[str, jax.Array],
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """Predicts the next token everywhere.

  Args:
    model: the decoder, with its edits and observers.
    params: its parameters.
    tokens_BT: int32.
    segments_BT: int32, 0 for padding.
    operands: of the edits and observers.

  Returns:
    `loss` (nats, of the token that follows in the row) and `top` (the likeliest
    next token), `[B, T]`, meaningless where `targets` is False; and what the
    observers saw.
  """
  with jax.default_matmul_precision('highest'):
    output, intermediates = model.apply(
      {'params': params},
      tokens_BT,
      segments_BT,
      operands,
      mutable='intermediates',
    )
    batch, time, width = output.hidden.shape
    count = batch * time
    missing = -count % _CHUNK
    next_BT = jnp.roll(tokens_BT, -1, axis=1)
    hidden_ND = jnp.pad(
      output.hidden.reshape(count, width), ((0, missing), (0, 0))
    )
    next_N = jnp.pad(next_BT.reshape(count), (0, missing))

    def chunk(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
      hidden_QD, next_Q = inputs
      logits_QV = logits(model, params, hidden_QD)
      picked_Q1 = jnp.take_along_axis(logits_QV, next_Q[:, None], axis=1)
      loss_Q = jax.nn.logsumexp(logits_QV, axis=1) - picked_Q1[:, 0]
      return loss_Q, jnp.argmax(logits_QV, axis=1)

    loss_N, top_N = jax.lax.map(
      chunk, (hidden_ND.reshape(-1, _CHUNK, width), next_N.reshape(-1, _CHUNK))
    )
  found = {
    'loss': loss_N.reshape(-1)[:count].reshape(batch, time),
    'top': top_N.reshape(-1)[:count].reshape(batch, time),
  }
  return found, sites.read(intermediates)


def logits(
  model: decoder.Decoder, params: decoder.Params, hidden_ND: jax.Array
) -> jax.Array:
  """Returns the decoder's logits `[N, V]` of normalised states, in float32."""
  config = model.config
  if config.tie_word_embeddings:
    kernel, contract = params['embed_tokens']['embedding'], 1
  else:
    kernel, contract = params['lm_head']['kernel'], 0
  logits_NV = jax.lax.dot_general(
    hidden_ND,
    kernel.astype(model.dtype),
    (((1,), (contract,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  if config.final_logit_softcapping:
    cap = config.final_logit_softcapping
    logits_NV = cap * jnp.tanh(logits_NV / cap)
  return logits_NV
