"""The attention branch of a block.

Scores are computed for a few queries at a time against the keys that those
queries can see, so that a chunk stays in cache and no `[B, N, T, S]` exists.

Letters: B batch, T time (query), S time (key) or slots of the cache, Q queries
of a chunk, D model width, N heads, K key-value heads, G = N / K, H head dim, R
half the rotated dims.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from me_jax.models import cache as cache_lib
from me_jax.models import config as config_lib
from me_jax.models import mlp
from me_jax.models import norms
from me_jax.models import rope
from me_jax.models import sites as sites_lib

_MAX_CHUNKS = 32  # each is traced apart: bounds the size of the program
_MASKED = float(np.finfo(np.float32).min)  # -inf would make empty rows NaN


def chunk_starts(time: int, chunk: int) -> range:
  """Returns where the query chunks of a sequence of `time` tokens start."""
  return range(0, time, max(chunk, -(-time // _MAX_CHUNKS)))


class Attention(nn.Module):
  """Causal self-attention with grouped key-value heads, within each text.

  Attributes:
    config: the model.
    sites: who reads and writes `attn_probs`.
    dtype: of the computation; the softmax is float32.
    param_dtype: of the parameters.
    chunk: queries per chunk.
  """

  config: config_lib.ModelConfig
  sites: sites_lib.Sites = sites_lib.Sites()
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  chunk: int = 64

  @nn.compact
  def __call__(
    self,
    h_BTD: jax.Array,
    rotary: tuple[jax.Array, jax.Array],
    positions_BT: jax.Array,
    windowed: jax.Array,
    context: sites_lib.SiteContext,
    cache: cache_lib.Cache | None,
  ) -> tuple[jax.Array, cache_lib.Cache | None]:
    """Maps the normalised state to the branch's write.

    Args:
      h_BTD: what the three projections receive.
      rotary: cosines and sines of this layer, `[B, T, R]`.
      positions_BT: of each token in its text.
      windowed: bool scalar, traced; whether this layer has a sliding window.
      context: of the block.
      cache: if there is one it gets this layer's keys and values; a started
        one is also what the queries see.

    Returns:
      `[B, T, D]`, and the cache.
    """
    config = self.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads

    def project(name: str, count: int, axis: str) -> jax.Array:
      features = count * config.head_dim
      x_BTF = mlp.dense(
        features,
        ('embed', axis),
        name=f'{name}_proj',
        use_bias=config.attention_bias,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
      )(h_BTD)
      normed = config.qk_norm != 'none' and name in 'qk'
      if normed and config.qk_norm == 'projection':
        x_BTF = self._norm(f'{name}_norm', x_BTF)
      x_BTNH = x_BTF.reshape(*x_BTF.shape[:2], count, config.head_dim)
      if normed and config.qk_norm == 'head':
        x_BTNH = self._norm(f'{name}_norm', x_BTNH)
      return nn.with_logical_constraint(
        x_BTNH, ('batch', 'time', f'act_{axis}', 'act_head_dim')
      )

    def rotate(x_BTNH: jax.Array) -> jax.Array:
      return rope.rotate(x_BTNH, *rotary, config.rope_in_float32)

    q_BTNH = rotate(project('q', heads, 'heads'))
    k_BSKH = rotate(project('k', kv_heads, 'kv_heads'))
    v_BSKH = project('v', kv_heads, 'kv_heads')

    # Which keys do the queries from `start` to `stop` see?
    def visible(start: int, stop: int) -> jax.Array:
      return self._visible(context.segments_BT, start, stop, windowed)

    decoding = cache is not None and cache.started
    if cache is not None:
      cache = cache.write(context.layer, k_BSKH, v_BSKH)
    if decoding:
      k_BSKH, v_BSKH = cache.read(context.layer)

      def visible(start: int, stop: int) -> jax.Array:
        window = self._window(windowed)
        return cache.visible(positions_BT[:, start:stop], window)

    out_BTNH = self._attend(
      q_BTNH, k_BSKH, v_BSKH, visible, context, all_keys=decoding
    )
    out_BTD = mlp.dense(
      config.hidden_size,
      ('heads', 'embed'),
      name='o_proj',
      use_bias=config.attention_out_bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )(out_BTNH.reshape(*h_BTD.shape[:2], heads * config.head_dim))
    return out_BTD, cache

  def _norm(self, name: str, x: jax.Array) -> jax.Array:
    axis = 'head_dim' if self.config.qk_norm == 'head' else 'norm'
    return norms.for_config(
      self.config, self.dtype, self.param_dtype, name=name, axis=axis
    )(x)

  def _attend(
    self,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    visible: Callable[[int, int], jax.Array],
    context: sites_lib.SiteContext,
    *,
    all_keys: bool,
  ) -> jax.Array:
    """Returns the heads' mixtures of values, `[B, T, N, H]`.

    Args:
      q_BTNH: queries.
      k_BSKH: keys.
      v_BSKH: values.
      visible: says which keys a chunk of queries may see, `[B, Q, S]`.
      context: of the block.
      all_keys: whether a chunk may see any key; else those up to its last
        query.
    """
    config = self.config
    batch, time, heads, dim = q_BTNH.shape
    kv_heads = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(batch, time, kv_heads, heads // kv_heads, dim)
    # A Python float keeps the activation's type, a NumPy scalar would not.
    q_BTKGH = q_BTKGH * float((config.query_pre_attn_scalar or dim) ** -0.5)
    observed = self.is_mutable_collection('intermediates')
    needs_probs = self.sites.touches('attn_probs', reading=observed)
    if time == 1 and not needs_probs and not all_keys:
      # One token sees itself alone, whatever its query and key: under jit
      # neither is computed.
      return jnp.repeat(v_BSKH, heads // kv_heads, axis=2)
    starts = chunk_starts(time, self.chunk)
    outs, measured = [], {}
    for start in starts:
      stop = min(start + starts.step, time)
      keys = k_BSKH.shape[1] if all_keys else stop
      scores_BKGQS = jnp.einsum(
        'BQKGH,BSKH->BKGQS',
        q_BTKGH[:, start:stop],
        k_BSKH[:, :keys],
        preferred_element_type=jnp.float32,
      )
      if config.attn_logit_softcapping:
        cap = config.attn_logit_softcapping
        scores_BKGQS = cap * jnp.tanh(scores_BKGQS / cap)
      mask_BQS = visible(start, stop)
      scores_BKGQS = jnp.where(mask_BQS[:, None, None], scores_BKGQS, _MASKED)
      peak_BKGQ1 = jnp.max(scores_BKGQS, axis=-1, keepdims=True)
      probs_BKGQS = jnp.exp(scores_BKGQS - jax.lax.stop_gradient(peak_BKGQ1))
      total_BKGQ1 = jnp.sum(probs_BKGQS, axis=-1, keepdims=True)
      if needs_probs:
        # Padding has no row of attention: masked scores alone would leave it a
        # uniform one.
        real_BQ = context.segments_BT[:, start:stop] > 0
        probs_BKGQS = jnp.where(
          real_BQ[:, None, None, :, None], probs_BKGQS / total_BKGQ1, 0.0
        )
        probs_BNQS = probs_BKGQS.reshape(batch, heads, stop - start, keys)
        chunk_context = context.replace(query_start=start)
        probs_BNQS = self.sites.write('attn_probs', probs_BNQS, chunk_context)
        if observed:
          part = self.sites.measure('attn_probs', probs_BNQS, chunk_context)
          if measured:
            part = jax.tree.map(jnp.add, measured, part)
          measured = part
        probs_BKGQS = probs_BNQS.reshape(probs_BKGQS.shape)
      out_BKGQH = jnp.einsum(
        'BKGQS,BSKH->BKGQH',
        probs_BKGQS.astype(self.dtype),
        v_BSKH[:, :keys],
        preferred_element_type=jnp.float32,
      )
      if not needs_probs:
        # Dividing H numbers instead of S saves a pass over the scores.
        out_BKGQH = out_BKGQH / total_BKGQ1
      out_BQKGH = jnp.moveaxis(out_BKGQH, 3, 1).astype(self.dtype)
      outs.append(out_BQKGH.reshape(batch, stop - start, heads, dim))
    if observed:
      self.sites.keep(self, self.sites.finish(measured, context), context)
    return jnp.concatenate(outs, axis=1)

  def _window(self, windowed: jax.Array) -> jax.Array | None:
    """Returns how many keys a query sees; None where no layer has a window."""
    if not self.config.sliding_window:
      return None
    return jnp.where(
      windowed, self.config.sliding_window, np.iinfo(np.int32).max
    )

  def _visible(
    self, segments_BT: jax.Array, start: int, stop: int, windowed: jax.Array
  ) -> jax.Array:
    """Returns which keys of the same call a chunk of queries may see."""
    query_Q1 = np.arange(start, stop)[:, None]
    key_1S = np.arange(stop)[None]
    visible_QS = jnp.asarray(key_1S <= query_Q1)
    window = self._window(windowed)
    if window is not None:
      visible_QS = visible_QS & (query_Q1 - key_1S < window)
    query_BQ1 = segments_BT[:, start:stop, None]
    key_B1S = segments_BT[:, None, :stop]
    return visible_QS[None] & (query_BQ1 == key_B1S) & (key_B1S > 0)
