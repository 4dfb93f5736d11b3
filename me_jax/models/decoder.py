"""The decoder: one scanned block for every family.

The parameter tree follows Hugging Face's names, with the parameters of all
layers stacked on a leading axis:

  embed_tokens/embedding [V, D]      norm/weight [D]      lm_head/kernel [D, V]
  layers/self_attn/{q,k,v,o}_proj/kernel [L, in, out]  (+ bias [L, out])
  layers/mlp/{gate,up,down}_proj/kernel [L, in, out]
  layers/{input,post_attention}_layernorm/weight [L, D]

Kernels are `[in, out]`, the transpose of Hugging Face's. Families with other
norms have `pre_feedforward_layernorm` and `post_feedforward_layernorm` too. A
mitigated model has a few small leaves more, see `sink.py`.

Letters: B batch, T time, L layers, D model width, R half the rotated dims, V
vocabulary, W wanted columns.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from me_jax.models import block as block_lib
from me_jax.models import cache as cache_lib
from me_jax.models import config as config_lib
from me_jax.models import logical_axes
from me_jax.models import norms
from me_jax.models import rope
from me_jax.models import sink
from me_jax.models import sites as sites_lib

Params = Mapping[str, Any]

REMAT_POLICIES = {
  'none': None,
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_saveable,
  'dots_no_batch': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@struct.dataclass
class Output:
  """What a call of the decoder returns.

  Attributes:
    logits: `[B, T, V]` float32; `[B, W, V]` of wanted columns.
    resid: `[B, T, D]`, the residual stream after the last layer.
    hidden: `[B, T, D]`, the same after the final norm: what the head receives.
    cache: keys and values for decoding; None without one.
  """

  logits: jax.Array
  resid: jax.Array
  hidden: jax.Array
  cache: cache_lib.Cache | None = None


class Decoder(nn.Module):
  """A decoder-only language model.

  Attributes:
    config: which model this is.
    dtype: of the computation inside the branches.
    param_dtype: of the parameters.
    residual_dtype: of the residual stream. bfloat16 cannot hold a massive
      activation and a small write side by side, so float32 is the default.
    remat: name of a policy in `REMAT_POLICIES`, for training.
    scanned: False unrolls the layers, over parameters in a layout of their own:
      see `params.unstack_layers`.
    attention_chunk: queries whose scores exist at a time.
    sites: observers and edits.
    frozen_layers: how many layers, from the first, have nothing that is
      trained: their derivative is nothing, and is not computed. Only if
      scanned.

  Examples:
    >>> import me_jax
    >>> lm = me_jax.load('smollm2')
    >>> batch = me_jax.encode(lm, ['The capital of France is'])
    >>> logits = lm.model.apply({'params': lm.params}, *batch).logits
    >>> logits.shape  # [B, T, V]
    (1, 5, 49152)
    >>> lm.tokenizer.decode([int(logits[0, -1].argmax())])
    ' Paris'
  """

  config: config_lib.ModelConfig
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  residual_dtype: jnp.dtype = jnp.float32
  remat: str = 'none'
  scanned: bool = True
  attention_chunk: int = 64
  sites: sites_lib.Sites = sites_lib.Sites()
  frozen_layers: int = 0

  @nn.compact
  def __call__(
    self,
    tokens_BT: jax.Array,
    segments_BT: jax.Array | None = None,
    operands: Mapping[str, jax.Array] | None = None,
    cache: cache_lib.Cache | None = None,
    wanted_BW: jax.Array | None = None,
  ) -> Output:
    """Runs the model.

    Args:
      tokens_BT: int32 token ids, all in `[0, V)`: gathers clamp, so callers
        check on the host (`encode` does).
      segments_BT: int32, 0 for padding (on either side), 1, 2, ... for texts
        packed in a row, each contiguous; a boolean mask is one text. None
        means one text a row without padding. Positions restart in each text
        and attention never crosses texts.
      operands: arrays that observers and edits ask for, by name.
      cache: keys and values. An empty one (`cache.empty`) is filled with a
        prompt a row; with a started one the tokens go on where each row ends,
        and rows of segment 0 stand still.
      wanted_BW: int32, the columns whose logits are wanted; None for all.

    Returns:
      The logits and the final state. Under jit, what is not used of them is
      not computed.
    """
    config = self.config
    if segments_BT is None:
      segments_BT = jnp.ones_like(tokens_BT)
    segments_BT = segments_BT.astype(jnp.int32)
    operands = dict(operands or {})
    embed_tokens = nn.Embed(
      config.vocab_size,
      config.hidden_size,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      embedding_init=_partitioned(('vocab', 'embed')),
      name='embed_tokens',
    )

    x_BTD = embed(config, embed_tokens.embedding, tokens_BT, self.dtype)
    x_BTD = x_BTD.astype(self.residual_dtype)
    x_BTD, cache = self._layers(x_BTD, segments_BT, operands, cache)
    hidden_BTD = norms.for_config(
      config, self.dtype, self.param_dtype, name='norm'
    )(x_BTD)

    seen_BTD = hidden_BTD
    if wanted_BW is not None:
      seen_BTD = jnp.take_along_axis(hidden_BTD, wanted_BW[..., None], axis=1)

    # Logits are float32 whatever the computation is: bf16 has 8 bits.
    dot = functools.partial(
      jax.lax.dot_general, preferred_element_type=jnp.float32
    )
    if config.tie_word_embeddings:
      embedding_VD = embed_tokens.embedding.astype(self.dtype)
      logits_BTV = dot(seen_BTD, embedding_VD, (((2,), (1,)), ((), ())))
    else:
      logits_BTV = nn.Dense(
        config.vocab_size,
        use_bias=False,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        kernel_init=_partitioned(('embed', 'vocab')),
        dot_general=lambda *args, **_: dot(*args),
        name='lm_head',
      )(seen_BTD)
    if config.final_logit_softcapping:
      cap = config.final_logit_softcapping
      logits_BTV = cap * jnp.tanh(logits_BTV / cap)
    logits_BTV = logical_axes.constrain(
      logits_BTV, ('batch', 'time', 'act_vocab')
    )
    return Output(logits_BTV, x_BTD, hidden_BTD, cache)

  def _layers(
    self,
    x_BTD: jax.Array,
    segments_BT: jax.Array,
    operands: Mapping[str, jax.Array],
    cache: cache_lib.Cache | None,
  ) -> tuple[jax.Array, cache_lib.Cache | None]:
    """Runs all blocks on the residual stream, scanned or unrolled."""
    config = self.config
    positions_BT = text_positions(segments_BT)
    lengths_BT = text_lengths(segments_BT)
    decoding = cache is not None and cache.started
    call = None
    if cache is not None:
      cache, call = cache_lib.admit(cache, segments_BT)
      positions_BT = jnp.maximum(call.position_BT, 0)
      lengths_BT = jnp.broadcast_to(cache.length_B[:, None], positions_BT.shape)
    ropes = [config.rope] + ([config.rope_local] if config.rope_local else [])
    shared = block_lib.Shared(
      segments_BT,
      call,
      tuple(
        rope.tables(r, config.head_dim, positions_BT, lengths_BT) for r in ropes
      ),
      operands,
    )
    count = config.num_hidden_layers
    bound_L = self._optional(sink.BOUND)
    layers = block_lib.LayerInputs(
      jnp.arange(count),
      jnp.asarray(config.layer_windowed or (False,) * count),
      jnp.asarray(config.rope_layers or (True,) * count),
      bound_L,
    )
    wanted_W = self._optional(sink.POSITIONS)
    marked_BT = None
    # A first token is in the cache already when steps are taken.
    if not decoding or bound_L is not None or wanted_W is not None:
      marked_BT = sink.marked_from_start(
        positions_BT, segments_BT, wanted_W, by_size=bound_L is not None
      )
    block = block_lib.Block
    if self.remat != 'none':
      policy = REMAT_POLICIES[self.remat]
      block = nn.remat(block, policy=policy, prevent_cse=not self.scanned)
    attributes = (
      config,
      self.sites,
      self.dtype,
      self.param_dtype,
      self.residual_dtype,
      self.attention_chunk,
      not self.scanned,
      self.frozen_layers,
    )
    buffers = self._buffers(segments_BT, operands)
    slots = cache.slots[0] if cache is not None and self.scanned else None
    carry = block_lib.Carry(x_BTD, buffers, marked_BT, slots)
    if self.scanned:
      scan = nn.scan(
        block,
        # Without 'intermediates' sow would silently return nothing.
        variable_axes={'params': 0, 'intermediates': 0},
        split_rngs={'params': True},
        in_axes=(0, nn.broadcast),
        length=count,
        metadata_params={nn.PARTITION_NAME: 'layers'},
        # Nothing is broadcast that the body makes: to look costs a second trace.
        check_constancy_invariants=False,
      )
      carry, _ = scan(*attributes, name='layers')(carry, layers, shared)
      written = (carry.slots,)
    else:
      written = ()
      for i in range(count):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
        if cache is not None:
          carry = dataclasses.replace(carry, slots=cache.slots[i])
        carry, _ = block(*attributes, name=f'layers_{i}')(carry, layer, shared)
        written += (carry.slots,)
    for name, buffer in carry.buffers.items():
      sites_lib.sow(self, name, buffer)
    if cache is not None:
      cache = dataclasses.replace(cache, slots=written)
    return carry.x_BTD, cache

  def _optional(self, name: str) -> jax.Array | None:
    """Returns a leaf that the tree may lack."""
    if not self.has_variable('params', name):
      return None
    return self.get_variable('params', name)

  def _buffers(
    self, segments_BT: jax.Array, operands: Mapping[str, jax.Array]
  ) -> dict[str, jax.Array]:
    """Returns an empty buffer for every capture that will be read."""
    if not self.is_mutable_collection('intermediates'):
      return {}
    batch, time = segments_BT.shape
    wide = {
      'attn_probs': (batch, self.config.num_attention_heads, time, time),
      'ffn_act': (batch, time, self.config.intermediate_size),
    }
    state = (batch, time, self.config.hidden_size)
    return {
      capture.name: capture.start(wide.get(capture.site, state), operands)
      for capture in self.sites.captures
    }


def _partitioned(axes: tuple[str, str]) -> nn.initializers.Initializer:
  return nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)


def embed(
  config: config_lib.ModelConfig,
  embedding_VD: jax.Array,
  tokens: jax.Array,
  dtype: jnp.dtype,
) -> jax.Array:
  """Returns the state before the first layer, `[..., D]`, of token ids."""
  # Each device reads its own channels of all tokens, which then change places:
  # to gather the table would take longer, and all of it would be on each device,
  # its gradient too.
  axes = (*('batch', 'time')[: tokens.ndim], *(None,) * (tokens.ndim - 2))
  embedding_VD = logical_axes.constrain(embedding_VD, ('vocab', 'embed'))
  tokens = logical_axes.constrain_beside(tokens, axes, 'embed')
  x = jnp.take(embedding_VD, tokens, axis=0, mode='clip').astype(dtype)
  # One axis of the mesh at a time: XLA knows no way for two at once, and would
  # gather everything.
  for kept in range(len(logical_axes.mesh_axes('embed')), -1, -1):
    x = logical_axes.constrain_beside(x, (*axes, 'embed'), 'embed', kept)
  x = logical_axes.constrain(x, (*axes, 'act_embed'))
  if config.embedding_scale != 1.0:
    x = x * jnp.asarray(config.embedding_scale, dtype)
  return x


def text_positions(segments_BT: jax.Array) -> jax.Array:
  """Returns each token's index within its text, `[B, T]` int32."""
  index_1T = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)[None]
  before_BT = jnp.pad(segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  start_BT = jnp.where(segments_BT != before_BT, index_1T, 0)
  return index_1T - jax.lax.cummax(start_BT, axis=1)


def text_lengths(segments_BT: jax.Array) -> jax.Array:
  """Returns how many tokens each token's text has, `[B, T]` int32."""
  after_BT = text_positions(segments_BT[:, ::-1])[:, ::-1]
  return text_positions(segments_BT) + after_BT + 1
