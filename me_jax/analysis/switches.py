"""What is left of the spike when parts of a layer are switched off?

The compiled part of `factorial`: any number of conditions in one compile. Which
layers' norms are changed and how, and which neurons are neutralised, are traced
operands; of the parameters only the norm's small `[L, D]` leaf is changed.

Letters: M conditions, L layers, X prefixes, E neurons of a condition, R rankings
of channels, T time, D model width, F FFN width.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.models import decoder
from me_jax.models import sites

_CHUNK = 256  # tokens that run side by side


class Conditions(NamedTuple):
  """What is switched, `[M, ...]` each. The first must be the stock model.

  Attributes:
    norm_ML: layers whose norm is changed.
    flat_M: whether the weight becomes its mean over channels.
    factor_M: what it is multiplied by then.
    ranking_M: which ranking `low_M` and `high_M` are about.
    low_M: channels from this rank (0 first, 1 behind the last) ...
    high_M: ... to below this one get weight 0.
    layer_ME: layers of the neurons that are neutralised; -1 is none.
    neuron_ME: their indices.
  """

  norm_ML: np.ndarray
  flat_M: np.ndarray
  factor_M: np.ndarray
  ranking_M: np.ndarray
  low_M: np.ndarray
  high_M: np.ndarray
  layer_ME: np.ndarray
  neuron_ME: np.ndarray


def stock(count: int, layers: int, neurons: int) -> Conditions:
  """Returns conditions that switch nothing.

  Args:
    count: M.
    layers: L.
    neurons: E.
  """
  return Conditions(
    norm_ML=np.zeros((count, layers), bool),
    flat_M=np.zeros(count, bool),
    factor_M=np.ones(count, np.float32),
    ranking_M=np.zeros(count, np.int32),
    low_M=np.zeros(count, np.float32),
    high_M=np.zeros(count, np.float32),
    layer_ME=np.full((count, neurons), -1, np.int32),
    neuron_ME=np.full((count, neurons), -1, np.int32),
  )


@dataclasses.dataclass(frozen=True)
class _Neutralise:
  """Sets listed neurons to given values, at every token."""

  site: str = 'ffn_act'

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Writes `[B, T, F]`."""
    layer_E = context.operands['neuron_layer']
    neuron_E = context.operands['neuron']
    here_E1 = (layer_E == context.layer)[:, None]
    index_1F = jnp.arange(value.shape[-1])[None]
    hit_F = jnp.any(here_E1 & (neuron_E[:, None] == index_1F), axis=0)
    neutral_F = jax.lax.dynamic_index_in_dim(
      context.operands['neutral'], context.layer, keepdims=False
    )
    return jnp.where(
      hit_F[None, None], neutral_F.astype(value.dtype)[None, None], value
    )


@dataclasses.dataclass(frozen=True)
class _AlongLast:
  """Projection of each row's last state on its own direction: `[B]`."""

  site: str = 'resid_post'
  name: str = 'along'

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Reduces `[B, T, D]`."""
    last_BD = value[:, -1].astype(jnp.float32)
    return jnp.sum(last_BD * context.operands['direction'], axis=-1)


def sweep(
  model: decoder.Decoder,
  params: decoder.Params,
  norm: str,
  tokens_XT: np.ndarray,
  segments_XT: np.ndarray,
  conditions: Conditions,
  *,
  direction_XD: np.ndarray,
  neutral_LF: np.ndarray,
  rank_RLD: np.ndarray,
) -> np.ndarray:
  """Runs every condition on every prefix.

  Args:
    model: the decoder; its own edits are replaced.
    params: its parameters.
    norm: name of the norm that is changed.
    tokens_XT: prefixes, padded on the left.
    segments_XT: 0 at the padding.
    conditions: what is switched.
    direction_XD: unit vectors.
    neutral_LF: `ffn_act` of a neutralised neuron.
    rank_RLD: rankings of the norm's channels, in [0, 1).

  Returns:
    `[M, L, X]`: the projection of each last token's state on its direction,
    after each layer, over that of the stock model.
  """
  count = len(conditions.flat_M)
  chunk = min(max(1, _CHUNK // tokens_XT.size), count)
  # A last chunk of another size would be compiled apart.
  missing = -count % chunk
  padded = Conditions(
    *(np.concatenate([x, x[:1].repeat(missing, 0)]) for x in conditions)
  )
  shared = {
    'direction': direction_XD,
    'neutral': neutral_LF,
    'rank': rank_RLD.astype(np.float32),
  }
  along_MLX = np.asarray(
    _sweep(model, norm, chunk, params, tokens_XT, segments_XT, shared, padded),
    np.float64,
  )
  return along_MLX[:count] / along_MLX[:1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sweep(
  model: decoder.Decoder,
  norm: str,
  chunk: int,
  params: decoder.Params,
  tokens_XT: jax.Array,
  segments_XT: jax.Array,
  shared: Mapping[str, jax.Array],
  conditions: Conditions,
) -> jax.Array:
  """Returns each condition's projection after each layer, `[M, L, X]`."""
  stored_LD = params['layers'][norm]['weight']
  offset = model.config.norm_offset
  weight_LD = stored_LD.astype(jnp.float32) + offset
  mean_L1 = jnp.mean(weight_LD, axis=1, keepdims=True)
  shared = dict(shared)
  rank_RLD = shared.pop('rank')
  editing = model.clone(
    sites=sites.Sites(observers=(_AlongLast(),), edits=(_Neutralise(),))
  )

  def one(switch: Conditions) -> jax.Array:
    rank_LD = rank_RLD[switch.ranking_M]
    dropped_LD = (rank_LD >= switch.low_M) & (rank_LD < switch.high_M)
    changed_LD = jnp.where(switch.flat_M, mean_L1, weight_LD) * switch.factor_M
    changed_LD = jnp.where(dropped_LD, 0.0, changed_LD) - offset
    # What is not changed stays as it is to the bit.
    weight = jnp.where(
      switch.norm_ML[:, None], changed_LD.astype(stored_LD.dtype), stored_LD
    )
    layers = {**params['layers'], norm: {'weight': weight}}
    operands = {
      **shared,
      'neuron_layer': switch.layer_ME,
      'neuron': switch.neuron_ME,
    }
    with jax.default_matmul_precision('highest'):
      _, intermediates = editing.apply(
        {'params': {**params, 'layers': layers}},
        tokens_XT,
        segments_XT,
        operands,
        mutable='intermediates',
      )
    return sites.read(intermediates)['along']

  return jax.lax.map(one, conditions, batch_size=chunk)
