"""The attention branch of a block.

Scores are computed for a few queries at a time against the keys that those
queries can see, so that a chunk stays in cache and no `[B, N, T, S]` exists.

Letters: B batch, T time (query), S time (key) or slots of the cache, Q queries
of a chunk, D model width, N heads, K key-value heads, G = N / K, H head dim, R
half the rotated dims.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from me_jax.models import cache as cache_lib
from me_jax.models import config as config_lib
from me_jax.models import logical_axes
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
    fused: whether parameters are laid out as `params.unstack_layers` does it.
  """

  config: config_lib.ModelConfig
  sites: sites_lib.Sites = sites_lib.Sites()
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  chunk: int = 64
  fused: bool = False

  @nn.compact
  def __call__(
    self,
    h_BTD: jax.Array,
    rotary: tuple[jax.Array, jax.Array],
    windowed: jax.Array,
    context: sites_lib.SiteContext,
    call: cache_lib.Call | None,
    slots: cache_lib.Slots | None,
  ) -> tuple[jax.Array, cache_lib.Slots | None]:
    """Maps the normalised state to the branch's write.

    Args:
      h_BTD: what the three projections receive.
      rotary: cosines and sines of this layer, `[B, T, R]`.
      windowed: bool scalar, traced; whether this layer has a sliding window.
      context: of the block.
      call: how it meets the cache, if there is one.
      slots: of the cache, which get this layer's keys and values; while
        decoding they are also what the queries see.

    Returns:
      `[B, T, D]`, and the slots.
    """
    config = self.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads

    kwargs = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    counts = {'q': heads, 'k': kv_heads, 'v': kv_heads}
    parts = {}
    if self.fused:
      sizes = [count * config.head_dim for count in counts.values()]
      all_BTF = mlp.RowDense(
        sum(sizes),
        ('embed', 'heads'),
        name='qkv_proj',
        use_bias=config.attention_bias,
        **kwargs,
      )(h_BTD)
      ends = [sizes[0], sizes[0] + sizes[1]]
      parts = dict(zip(counts, jnp.split(all_BTF, ends, axis=-1)))

    def project(name: str, axis: str) -> jax.Array:
      count = counts[name]
      if self.fused:
        x_BTF = parts[name]
      else:
        x_BTF = mlp.dense(
          count * config.head_dim,
          ('embed', axis),
          name=f'{name}_proj',
          use_bias=config.attention_bias,
          **kwargs,
        )(h_BTD)
      normed = config.qk_norm != 'none' and name in 'qk'
      if normed and config.qk_norm == 'projection':
        x_BTF = self._norm(f'{name}_norm', x_BTF)
      x_BTNH = x_BTF.reshape(*x_BTF.shape[:2], count, config.head_dim)
      if normed and config.qk_norm == 'head':
        x_BTNH = self._norm(f'{name}_norm', x_BTNH)
      return logical_axes.constrain(
        x_BTNH, ('batch', 'time', f'act_{axis}', 'act_head_dim')
      )

    def rotate(x_BTNH: jax.Array) -> jax.Array:
      return rope.rotate(x_BTNH, *rotary, config.rope_in_float32)

    q_BTNH = rotate(project('q', 'heads'))
    k_BSKH = rotate(project('k', 'kv_heads'))
    v_BSKH = project('v', 'kv_heads')

    if call is not None and slots is not None and call.order_BT is None:
      out_BTNH, slots = self._decode(
        q_BTNH, k_BSKH, v_BSKH, windowed, context, call, slots
      )
    else:
      if call is not None and slots is not None:
        slots = cache_lib.write(call, slots, context.layer, k_BSKH, v_BSKH)
      out_BTNH = self._attend(
        q_BTNH,
        k_BSKH.swapaxes(1, 2),
        v_BSKH.swapaxes(1, 2),
        lambda start, stop: self._visible(
          context.segments_BT, start, stop, windowed
        ),
        context,
        all_keys=False,
      )
    last = mlp.RowDense if self.fused else mlp.dense
    out_BTD = last(
      config.hidden_size,
      ('heads', 'embed'),
      name='o_proj',
      use_bias=config.attention_out_bias,
      **kwargs,
    )(out_BTNH.reshape(*h_BTD.shape[:2], heads * config.head_dim))
    return out_BTD, slots

  def _norm(self, name: str, x: jax.Array) -> jax.Array:
    axis = 'head_dim' if self.config.qk_norm == 'head' else 'norm'
    return norms.for_config(
      self.config, self.dtype, self.param_dtype, name=name, axis=axis
    )(x)

  def _decode(
    self,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    windowed: jax.Array,
    context: sites_lib.SiteContext,
    call: cache_lib.Call,
    slots: cache_lib.Slots,
  ) -> tuple[jax.Array, cache_lib.Slots]:
    """Lets new tokens see the cache and each other; returns the slots too."""
    window = self._window(windowed)
    written = cache_lib.write(call, slots, context.layer, k_BTKH, v_BTKH)
    if q_BTNH.shape[1] == 1:
      # What the new token's key replaces is what it cannot see.
      key_BS = cache_lib.table(call.after, slots)
      k_BKSH, v_BKSH = cache_lib.read(written, context.layer)
    else:
      # A later token may replace what an earlier one sees: both are looked at.
      key_BS = cache_lib.table(call.before, slots)
      key_BS = jnp.concatenate([key_BS, call.position_BT], axis=1)
      k_BKSH, v_BKSH = (
        jnp.concatenate([old, new.swapaxes(1, 2).astype(old.dtype)], axis=2)
        for old, new in zip(
          cache_lib.read(slots, context.layer), (k_BTKH, v_BTKH)
        )
      )

    def visible(start: int, stop: int) -> jax.Array:
      return cache_lib.visible(key_BS, call.position_BT[:, start:stop], window)

    out_BTNH = self._attend(
      q_BTNH,
      k_BKSH.astype(self.dtype),
      v_BKSH.astype(self.dtype),
      visible,
      context,
      all_keys=True,
    )
    return out_BTNH, written

  def _attend(
    self,
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    visible: Callable[[int, int], jax.Array],
    context: sites_lib.SiteContext,
    *,
    all_keys: bool,
  ) -> jax.Array:
    """Returns the heads' mixtures of values, `[B, T, N, H]`.

    Args:
      q_BTNH: queries.
      k_BKSH: keys.
      v_BKSH: values.
      visible: says which keys a chunk of queries may see, `[B, Q, S]`.
      context: of the block.
      all_keys: whether a chunk may see any key; else those up to its last
        query.
    """
    config = self.config
    batch, time, heads, dim = q_BTNH.shape
    kv_heads = k_BKSH.shape[1]
    q_BTKGH = q_BTNH.reshape(batch, time, kv_heads, heads // kv_heads, dim)
    # A Python float keeps the activation's type, a NumPy scalar would not.
    q_BTKGH = q_BTKGH * float((config.query_pre_attn_scalar or dim) ** -0.5)
    observed = self.is_mutable_collection('intermediates')
    needs_probs = self.sites.touches('attn_probs', reading=observed)
    if time == 1 and not needs_probs and not all_keys:
      # One token sees itself alone, whatever its query and key: under jit
      # neither is computed.
      return jnp.repeat(v_BKSH.swapaxes(1, 2), heads // kv_heads, axis=2)
    starts = chunk_starts(time, self.chunk)

    def weigh(start: int, stop: int) -> tuple[jax.Array, jax.Array]:
      scores_BKGQS = jnp.einsum(
        'BQKGH,BKSH->BKGQS',
        q_BTKGH[:, start:stop],
        k_BKSH[:, :, : keys(stop)],
        preferred_element_type=jnp.float32,
      )
      if config.attn_logit_softcapping:
        cap = config.attn_logit_softcapping
        scores_BKGQS = cap * jnp.tanh(scores_BKGQS / cap)
      mask_BQS = visible(start, stop)
      scores_BKGQS = jnp.where(mask_BQS[:, None, None], scores_BKGQS, _MASKED)
      peak_BKGQ1 = jnp.max(scores_BKGQS, axis=-1, keepdims=True)
      probs_BKGQS = jnp.exp(scores_BKGQS - jax.lax.stop_gradient(peak_BKGQ1))
      return probs_BKGQS, jnp.sum(probs_BKGQS, axis=-1, keepdims=True)

    def mix(probs_BKGQS: jax.Array, stop: int) -> jax.Array:
      return jnp.einsum(
        'BKGQS,BKSH->BKGQH',
        probs_BKGQS.astype(self.dtype),
        v_BKSH[:, :, : keys(stop)],
        preferred_element_type=jnp.float32,
      )

    def keys(stop: int) -> int:
      return k_BKSH.shape[2] if all_keys else stop

    # Backward weighs again, so that no scores are kept for it. In a scan, which
    # is what is trained, no other care is needed for the two to stay apart.
    @functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=0)
    def attend(bounds: tuple[int, int]) -> jax.Array:
      probs_BKGQS, total_BKGQ1 = weigh(*bounds)
      # Dividing H numbers instead of S saves a pass over the scores.
      return mix(probs_BKGQS, bounds[1]) / total_BKGQ1

    outs, measured = [], {}
    for start in starts:
      stop = min(start + starts.step, time)
      if needs_probs:
        if measured:
          # One chunk is done with before the next: its scores are read again
          # and again, and on a TPU would leave the chip in between.
          q_BTKGH, measured, outs = jax.lax.optimization_barrier(
            (q_BTKGH, measured, outs)
          )
        probs_BKGQS, total_BKGQ1 = weigh(start, stop)
        # Padding has no row of attention: masked scores alone would leave it a
        # uniform one.
        real_BQ = context.segments_BT[:, start:stop] > 0
        probs_BKGQS = jnp.where(
          real_BQ[:, None, None, :, None], probs_BKGQS / total_BKGQ1, 0.0
        )
        probs_BNQS = probs_BKGQS.reshape(batch, heads, stop - start, -1)
        chunk_context = dataclasses.replace(context, query_start=start)
        probs_BNQS = self.sites.write('attn_probs', probs_BNQS, chunk_context)
        if observed:
          part = self.sites.measure('attn_probs', probs_BNQS, chunk_context)
          if measured:
            part = jax.tree.map(jnp.add, measured, part)
          measured = part
        out_BKGQH = mix(probs_BNQS.reshape(probs_BKGQS.shape), stop)
      else:
        out_BKGQH = attend((start, stop))
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
