"""What happens to the residual stream in one forward pass, and who did it?

The compiled part of finding the ME Layer: one pass that measures every token
and keeps the whole states of chosen ones, and two small functions that split a
state into the writes that made it.

State 0 is the embedding, state l + 1 what layer l puts out.

Letters: B rows, T time, L layers, Z = L + 1 states, P chosen tokens of a row,
G groups of them, X texts, D model width, F FFN width.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from me_jax.analysis import observers
from me_jax.models import block
from me_jax.models import decoder
from me_jax.models import mlp
from me_jax.models import norms
from me_jax.models import sites

# Writes are differences of states, which are half as many vectors to keep.
_NORM = observers.TokenNorm()
_PEAK = observers.TokenPeak()
_MEDIAN = observers.TextMedian()
_MID = observers.AtPositions('resid_mid', 'mid')
_STATE = observers.AtPositions('resid_post', 'state')


def observe(
  model: decoder.Decoder,
  params: decoder.Params,
  tokens_BT: jax.Array,
  segments_BT: jax.Array,
  operands: Mapping[str, jax.Array],
  also: tuple[sites.Observer, ...] = (),
) -> tuple[decoder.Output, dict[str, Any]]:
  """Runs the model and measures its residual stream.

  Args:
    model: its own observers are replaced, its edits stay.
    params: of the model.
    tokens_BT: int32.
    segments_BT: int32, 0 for padding.
    operands: `positions` int32 `[B, P]`, the tokens to keep whole; `members`
      bool `[B, texts, T]`, which tokens belong to which text; and those of the
      edits.
    also: further observers, whose names must be others than below.

  Returns:
    The model's output, and in float32: of all tokens `norm` `[Z, B, T]` and
    `peak` (largest |x| in each layer's output) `[L, B, T]`; of each text
    `median` (of |x| in each layer's output) `[L, B, texts]`; of the chosen
    tokens `state` (each layer's output) and `mid` (between attention and FFN)
    `[L, B, P, D]`.
  """
  sites_used = dataclasses.replace(
    model.sites, observers=(_NORM, _PEAK, _MEDIAN, _MID, _STATE, *also)
  )
  with jax.default_matmul_precision('highest'):
    output, intermediates = model.clone(sites=sites_used).apply(
      {'params': params},
      tokens_BT,
      segments_BT,
      operands,
      mutable='intermediates',
    )
  seen = sites.read(intermediates)
  # The norm is read before each layer, where it is nearly free, so the one
  # after the last is missing.
  context = sites.SiteContext(
    jnp.int32(model.config.num_hidden_layers), segments_BT, operands
  )
  last_BT = _NORM(output.resid, context)
  seen['norm'] = jnp.concatenate([seen['norm'], last_BT[None]])
  return output, seen


@functools.partial(jax.jit, static_argnums=0)
def measure(
  model: decoder.Decoder,
  params: decoder.Params,
  tokens_BT: jax.Array,
  segments_BT: jax.Array,
  operands: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
  """Returns only what `observe` measures; the logits are not computed."""
  return observe(model, params, tokens_BT, segments_BT, operands)[1]


@functools.partial(jax.jit, static_argnums=0)
def attribute(
  model: decoder.Decoder,
  params: decoder.Params,
  tokens_BP: jax.Array,
  seen: Mapping[str, jax.Array],
  massive_LBP: jax.Array,
  groups_GBP: jax.Array,
) -> dict[str, jax.Array]:
  """Says who wrote the plateau of each chosen token.

  The plateau is the token's state of largest norm among the massive ones. The
  residual stream is a sum, so its length along its own direction u splits
  exactly into what the embedding, each attention and each FFN up to there put
  along u.

  Args:
    model: the decoder.
    params: its parameters.
    tokens_BP: ids of the chosen tokens.
    seen: from `measure`.
    massive_LBP: after which layers each chosen token is massive.
    groups_GBP: float32 masks, the groups whose profiles are summed.

  Returns:
    `norm` and `projection` (on u) `[Z, B, P]`; `attn_share` and `ffn_share`
    `[L, B, P]` and `embedding_share` `[B, P]`, which sum to one; `plateau`
    `[B, P, D]`; `profile` (sums of |state|) `[G, Z, D]`.
  """
  table_VD = params['embed_tokens']['embedding']
  embedding_BPD = decoder.embed(model.config, table_VD, tokens_BP, model.dtype)
  embedding_BPD = embedding_BPD.astype(jnp.float32)
  state_ZBPD = jnp.concatenate([embedding_BPD[None], seen['state']])
  norm_ZBP = jnp.linalg.norm(state_ZBPD, axis=-1)
  allowed_LBP = jnp.where(massive_LBP, norm_ZBP[1:], -1.0)
  at_BP = 1 + jnp.argmax(allowed_LBP, axis=0)
  plateau_BPD = jnp.take_along_axis(state_ZBPD, at_BP[None, ..., None], axis=0)[
    0
  ]
  length_BP = jnp.linalg.norm(plateau_BPD, axis=-1)
  length_BP = jnp.maximum(length_BP, jnp.finfo(jnp.float32).tiny)
  u_BPD = plateau_BPD / length_BP[..., None]

  def along(value: jax.Array) -> jax.Array:
    return jnp.sum(value * u_BPD[None], axis=-1)

  def share(write_LBPD: jax.Array) -> jax.Array:
    before = jnp.arange(len(write_LBPD))[:, None, None] < at_BP[None]
    return jnp.where(before, along(write_LBPD), 0.0) / length_BP[None]

  projection_ZBP = along(state_ZBPD)
  return {
    'norm': norm_ZBP,
    'profile': jnp.einsum(
      'ZBPD,GBP->GZD',
      jnp.abs(state_ZBPD),
      groups_GBP,
      precision=jax.lax.Precision.HIGHEST,
    ),
    'projection': projection_ZBP,
    'attn_share': share(seen['mid'] - state_ZBPD[:-1]),
    'ffn_share': share(seen['state'] - seen['mid']),
    'embedding_share': projection_ZBP[0] / length_BP,
    'plateau': plateau_BPD,
  }


@functools.partial(jax.jit, static_argnums=0)
def neuron_shares(
  model: decoder.Decoder,
  params: decoder.Params,
  layer: jax.Array,
  mid_XD: jax.Array,
  plateau_XD: jax.Array,
) -> jax.Array:
  """Splits an FFN's write along the plateau into its neurons' parts.

  Args:
    model: the decoder.
    params: its parameters.
    layer: int32 scalar, traced.
    mid_XD: that layer's state between attention and FFN, at massive tokens.
    plateau_XD: the plateaus of the same tokens.

  Returns:
    `[X, F]`, each neuron's part of the plateau's length. Biases apart, they
    sum to the FFN's share; a norm after the FFN is linear once its root mean
    square is known, so that holds with one too.
  """
  config = model.config
  blocks = jax.tree.map(
    lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False),
    params['layers'],
  )
  dtypes: dict[str, Any] = dict(
    dtype=model.dtype, param_dtype=model.param_dtype
  )

  def norm(name: str | None, x_XD: jax.Array) -> jax.Array:
    if name is None:
      return x_XD.astype(model.dtype)
    module = norms.for_config(config, **dtypes)
    return module.apply({'params': blocks[name]}, x_XD)

  h_XD = norm(block.FFN_NORMS[config.norm_placement], mid_XD)
  act = observers.Whole('ffn_act', 'act')
  context = sites.SiteContext(layer, jnp.ones((1, len(h_XD)), jnp.int32), {})
  with jax.default_matmul_precision('highest'):
    y_BXD, intermediates = mlp.GatedMlp(
      config, sites.Sites(observers=(act,)), **dtypes
    ).apply(
      {'params': blocks['mlp']}, h_XD[None], context, mutable='intermediates'
    )
    act_XF = sites.read(intermediates)['act'][0]
    length_X1 = jnp.linalg.norm(plateau_XD, axis=-1, keepdims=True)
    u_XD = plateau_XD / length_X1
    if config.norm_placement != 'pre':
      y_XD = y_BXD[0].astype(jnp.float32)
      after = blocks['post_feedforward_layernorm']['weight'].astype(jnp.float32)
      mean_X1 = jnp.mean(y_XD * y_XD, axis=-1, keepdims=True)
      u_XD = u_XD * (config.norm_offset + after[None])
      u_XD = u_XD * jax.lax.rsqrt(mean_X1 + config.rms_norm_eps)
    down_FD = blocks['mlp']['down_proj']['kernel'].astype(jnp.float32)
    reach_XF = jnp.einsum('FD,XD->XF', down_FD, u_XD)
  return act_XF * reach_XF / length_X1
