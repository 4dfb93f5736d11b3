"""What do one layer's norm and FFN do to given tokens?

The compiled part of `attribution`: one function for all layers, the index of the
layer being traced.

Letters: N tokens, E numbers of top channels, K massive channels, I neurons, D
model width, F FFN width.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.models import decoder
from me_jax.models import mlp
from me_jax.models import sites

TOP_CHANNELS = (1, 5, 10)
_SMALL = 1e-18  # a length whose square float32 still holds


@functools.partial(jax.jit, static_argnums=0)
def measure(
  model: decoder.Decoder,
  params: decoder.Params,
  layer: jax.Array,
  seen: Mapping[str, jax.Array],
  massive_N: jax.Array,
  neurons_I: jax.Array,
  channels_K: jax.Array,
) -> dict[str, jax.Array]:
  """Measures one layer.

  Args:
    model: the decoder.
    params: its parameters.
    layer: int32 scalar, traced.
    seen: `[N, D]` by site: `attn_in`, `resid_mid`, `ffn_in`, `ffn_out`.
    massive_N: which tokens are of group 0.
    neurons_I: those wanted; the best aligned one is put behind them.
    channels_K: the massive channels.

  Returns:
    Of tokens `scale`, `gain`, `ffn_gain`, `alignment` `[N]`, `energy` `[N, E]`,
    `attn_in`, `ffn_in` `[N, K]`; of neurons `gate`, `up`, `gate_cos`, `up_cos`
    `[N, I + 1]`, `neuron`, the cosines between rows and the rows' sizes
    `[I + 1]`. What they are is said in `attribution`.
  """
  config = model.config
  mlp_params = jax.tree.map(
    lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False),
    params['layers']['mlp'],
  )
  given_ND = seen['ffn_in']
  x_ND, h_ND = seen['resid_mid'], given_ND
  with jax.default_matmul_precision('highest'):
    if config.norm_placement == 'post':
      x_ND, h_ND = _raw_output(model, mlp_params, given_ND), seen['ffn_out']
    pre = {
      name: given_ND @ mlp_params[f'{name}_proj']['kernel'].astype(jnp.float32)
      for name in ('gate', 'up')
    }
  rows = {
    name: mlp_params[f'{name}_proj']['kernel'].astype(jnp.float32).T
    for name in ('gate', 'up')
  }
  rows['down'] = mlp_params['down_proj']['kernel'].astype(jnp.float32)
  length = {name: _length(value) for name, value in rows.items()}
  given_N1 = _length(given_ND)[:, None]
  cos = {
    name: pre[name] / (given_N1 * length[name][None]) for name in ('gate', 'up')
  }
  match_NF = jnp.abs(cos['gate']) * jnp.abs(cos['up'])
  best = jnp.argmax(jnp.sum(match_NF * massive_N[:, None], axis=0))
  neurons_I = jnp.append(neurons_I, best.astype(jnp.int32))
  energy_ND = (h_ND / _length(h_ND)[:, None]) ** 2
  most = min(max(TOP_CHANNELS), energy_ND.shape[-1])
  top_ND = jnp.cumsum(jax.lax.top_k(energy_ND, most)[0], axis=-1)
  counts = np.minimum(TOP_CHANNELS, most) - 1
  found = {
    'scale': jax.lax.rsqrt(
      jnp.mean(x_ND * x_ND, axis=-1) + config.rms_norm_eps
    ),
    'gain': _length(h_ND) / _length(x_ND),
    'energy': top_ND[:, counts],
    'ffn_gain': _length(seen['ffn_out']) / _length(given_ND),
    'alignment': jnp.max(match_NF, axis=-1),
    'attn_in': jnp.abs(seen['attn_in'][:, channels_K]),
    'ffn_in': jnp.abs(given_ND[:, channels_K]),
    'neuron': neurons_I,
  }
  for name in ('gate', 'up'):
    bias_F = mlp_params[f'{name}_proj'].get('bias')
    if bias_F is not None:
      pre[name] = pre[name] + bias_F.astype(jnp.float32)[None]
    found[name] = pre[name][:, neurons_I]
    found[f'{name}_cos'] = cos[name][:, neurons_I]
  for one, other in (('gate', 'up'), ('gate', 'down'), ('up', 'down')):
    dot_I = jnp.sum(rows[one][neurons_I] * rows[other][neurons_I], axis=-1)
    found[f'{one}_{other}_cos'] = dot_I / (
      length[one][neurons_I] * length[other][neurons_I]
    )
  for name, length_F in length.items():
    found[f'{name}_size'] = length_F[neurons_I] / jnp.median(length_F)
  return found


def _length(value: jax.Array) -> jax.Array:
  """Returns the norm over the last axis, never zero."""
  return jnp.maximum(jnp.linalg.norm(value, axis=-1), _SMALL)


def _raw_output(
  model: decoder.Decoder, mlp_params: decoder.Params, given_ND: jax.Array
) -> jax.Array:
  """Returns what an FFN puts out before the norm behind it."""
  module = mlp.GatedMlp(
    model.config, dtype=model.dtype, param_dtype=model.param_dtype
  )
  context = sites.SiteContext(
    jnp.int32(0), jnp.ones((1, len(given_ND)), jnp.int32), {}
  )
  given_BND = given_ND[None].astype(model.dtype)
  raw_BND = module.apply({'params': mlp_params}, given_BND, context)
  return raw_BND[0].astype(jnp.float32)
