"""What happens to the residual stream in one forward pass, and who did it?

The compiled part of finding the ME Layer: one pass that measures every token
and keeps the whole states of chosen ones, and two small functions that split a
state into the writes that made it.

State 0 is the embedding, state l + 1 what layer l puts out.

Letters: B rows, T time, L layers, Z = L + 1 states, P chosen tokens of a row,
X texts, D model width, F FFN width, S sampled tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.analysis import observers
from me_jax.models import decoder
from me_jax.models import mlp
from me_jax.models import sites

_SAMPLED_TOKENS = 64
_OF_STATE = (
    observers.TokenNorm(),
    observers.TokenPeak(),
    observers.Sample(),
    observers.AtPositions('resid_pre', 'state'),
)
_OF_WRITES = (
    observers.AtPositions('attn_out', 'attn_write'),
    observers.AtPositions('ffn_in', 'ffn_in'),
    observers.AtPositions('ffn_out', 'ffn_write'),
)


@functools.partial(jax.jit, static_argnums=0)
def measure(
    model: decoder.Decoder,
    params: decoder.Params,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    operands: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
  """Runs the model and measures its residual stream.

  Args:
    model: its own observers are replaced, its edits stay.
    params: of the model.
    tokens_BT: int32.
    segments_BT: int32, 0 for padding.
    operands: from `make_operands`, and those of the edits.

  Returns:
    Of all tokens `norm` and `peak` (largest |x|), `[Z, B, T]`; of a sample of
    them |x| in some channels, `sample` `[Z, S, channels]`; of the chosen
    tokens `state` `[Z, B, P, D]`, and `attn_write`, `ffn_in`, `ffn_write`
    `[L, B, P, D]`. All float32.
  """
  seeing = dataclasses.replace(model.sites, observers=_OF_STATE + _OF_WRITES)
  with jax.default_matmul_precision('highest'):
    output, intermediates = model.clone(sites=seeing).apply(
        {'params': params},
        tokens_BT,
        segments_BT,
        operands,
        mutable='intermediates',
    )
  seen = sites.read(intermediates)
  # The observers meet the state before each layer; the one after the last is
  # theirs to see too.
  context = sites.SiteContext(
      jnp.int32(model.config.num_hidden_layers), segments_BT, operands
  )
  for observer in _OF_STATE:
    last = observer(output.resid, context)
    seen[observer.name] = jnp.concatenate([seen[observer.name], last[None]])
  return seen


def make_operands(
    segments_BT: np.ndarray, positions_BP: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns the operands that `measure` needs.

  Args:
    segments_BT: int32; which tokens may be sampled.
    positions_BP: the tokens whose whole states are kept.
  """
  row, column = np.nonzero(segments_BT)
  count = min(_SAMPLED_TOKENS, segments_BT.size)
  picked = np.linspace(0, len(row) - 1, count).astype(int)
  return {
      'positions': positions_BP.astype(np.int32),
      'sample_rows': row[picked].astype(np.int32),
      'sample_columns': column[picked].astype(np.int32),
  }


@jax.jit
def attribute(
    seen: Mapping[str, jax.Array], massive_ZBP: jax.Array
) -> dict[str, jax.Array]:
  """Says who wrote the plateau of each chosen token.

  The plateau is the token's state of largest norm among the massive ones. The
  residual stream is a sum, so its length along its own direction u splits
  exactly into what the embedding, each attention and each FFN up to there put
  along u.

  Args:
    seen: from `measure`.
    massive_ZBP: which states of the chosen tokens are massive.

  Returns:
    `norm` and `projection` (on u) `[Z, B, P]`; `attn_share` and `ffn_share`
    `[L, B, P]` and `embedding_share` `[B, P]`, which sum to one; `plateau`
    `[B, P, D]`.
  """
  state_ZBPD = seen['state']
  norm_ZBP = jnp.linalg.norm(state_ZBPD, axis=-1)
  at_BP = jnp.argmax(jnp.where(massive_ZBP, norm_ZBP, -1.0), axis=0)
  plateau_BPD = jnp.take_along_axis(
      state_ZBPD, at_BP[None, ..., None], axis=0
  )[0]
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
      'projection': projection_ZBP,
      'attn_share': share(seen['attn_write']),
      'ffn_share': share(seen['ffn_write']),
      'embedding_share': projection_ZBP[0] / length_BP,
      'plateau': plateau_BPD,
  }


@functools.partial(jax.jit, static_argnums=0)
def neuron_shares(
    model: decoder.Decoder,
    params: decoder.Params,
    layer: jax.Array,
    ffn_in_XD: jax.Array,
    plateau_XD: jax.Array,
) -> jax.Array:
  """Splits an FFN's write along the plateau into its neurons' parts.

  Args:
    model: the decoder.
    params: its parameters.
    layer: int32 scalar, traced.
    ffn_in_XD: what that layer's FFN reads at the massive tokens.
    plateau_XD: the plateaus of the same tokens.

  Returns:
    `[X, F]`, each neuron's part of the plateau's length. Biases apart, they
    sum to the FFN's share.
  """
  at_layer = jax.tree.map(
      lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False),
      params['layers']['mlp'],
  )
  act = observers.Whole('ffn_act', 'act')
  context = sites.SiteContext(
      layer, jnp.ones((1, len(ffn_in_XD)), jnp.int32), {}
  )
  with jax.default_matmul_precision('highest'):
    _, intermediates = mlp.GatedMlp(
        model.config,
        sites.Sites(observers=(act,)),
        model.dtype,
        model.param_dtype,
    ).apply(
        {'params': at_layer},
        ffn_in_XD[None].astype(model.dtype),
        context,
        mutable='intermediates',
    )
    act_XF = sites.read(intermediates)['act'][0]
    length_X1 = jnp.linalg.norm(plateau_XD, axis=-1, keepdims=True)
    down_FD = at_layer['down_proj']['kernel'].astype(jnp.float32)
    reach_XF = jnp.einsum('FD,XD->XF', down_FD, plateau_XD / length_X1)
  return act_XF * reach_XF / length_X1
