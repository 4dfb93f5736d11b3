"""One decoder layer, for every family.

Letters: B batch, T time, L layers, D model width, R half the rotated dims, S
slots of the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from me_jax.models import attention
from me_jax.models import cache as cache_lib
from me_jax.models import config as config_lib
from me_jax.models import logical_axes
from me_jax.models import mlp
from me_jax.models import norms
from me_jax.models import sink
from me_jax.models import sites as sites_lib

# The norm between the residual stream and the FFN, by norm placement.
FFN_NORMS = {
  'pre': 'post_attention_layernorm',
  'sandwich': 'pre_feedforward_layernorm',
  'post': None,
}


@struct.dataclass
class LayerInputs:
  """What differs between layers besides parameters; scanned, `[L]` each.

  Attributes:
    index: of the layer.
    windowed: whether it has a sliding window.
    rotated: whether queries and keys are rotated.
    sink_bound: of `sink.py`; None without that leaf.
  """

  index: jax.Array
  windowed: jax.Array
  rotated: jax.Array
  sink_bound: jax.Array | None


@struct.dataclass
class Shared:
  """What all layers of one call share.

  Attributes:
    segments_BT: int32, 0 for padding, else the number of the text.
    call: how layers meet the cache; None without one.
    tables: cosines and sines `[B, T, R]`: of full, then of windowed layers.
    operands: of observers and edits.
  """

  segments_BT: jax.Array
  call: cache_lib.Call | None
  tables: tuple[tuple[jax.Array, jax.Array], ...]
  operands: Mapping[str, jax.Array]


@struct.dataclass
class Carry:
  """What goes from layer to layer.

  Attributes:
    x_BTD: the residual stream.
    buffers: of `sites.Capture` and its like, by name.
    marked_BT: tokens whose attention input is scaled; None in a step of
      decoding, where none is.
    slots: keys and values of all layers, stacked, or of the one that is next if
      they are unrolled; None without a cache.
  """

  x_BTD: jax.Array
  buffers: dict[str, jax.Array]
  marked_BT: jax.Array | None
  slots: cache_lib.Slots | None


class Block(nn.Module):
  """One decoder layer; attributes as in `Decoder`.

  Attributes:
    fused: whether parameters are laid out as `params.unstack_layers` does it.
    frozen_layers: how many layers, from the first, are not differentiated.
  """

  config: config_lib.ModelConfig
  sites: sites_lib.Sites
  dtype: jnp.dtype
  param_dtype: jnp.dtype
  residual_dtype: jnp.dtype
  attention_chunk: int
  fused: bool
  frozen_layers: int

  @nn.compact
  def __call__(
    self, carry: Carry, layer: LayerInputs, shared: Shared
  ) -> tuple[Carry, None]:
    """Advances the residual stream `[B, T, D]` and the rest by a layer."""
    if not self.frozen_layers:
      return self._advance(carry, layer, shared), None
    # A scan runs backward through all layers. Of a conditional it runs the
    # branch that was taken, and this one has a derivative of zero.
    carry = nn.cond(
      layer.index < self.frozen_layers,
      lambda block, *args: jax.lax.stop_gradient(block._advance(*args)),
      lambda block, *args: block._advance(*args),
      self,
      carry,
      layer,
      shared,
    )
    return carry, None

  def _advance(self, carry: Carry, layer: LayerInputs, shared: Shared) -> Carry:
    x_BTD, marked_BT = carry.x_BTD, carry.marked_BT
    context = sites_lib.SiteContext(
      layer.index, shared.segments_BT, shared.operands, marked_BT
    )
    site = functools.partial(self._site, context)
    placement = self.config.norm_placement

    x_BTD = site('resid_pre', x_BTD)
    h_BTD = x_BTD.astype(self.dtype)
    if placement != 'post':
      h_BTD = self._norm('input_layernorm')(x_BTD)
    h_BTD = site('attn_unscaled', h_BTD)
    if marked_BT is not None and self.has_variable('params', sink.SCALE):
      scale_D = self.get_variable('params', sink.SCALE)
      h_BTD = sink.scaled(h_BTD, scale_D, marked_BT)
    h_BTD = site('attn_in', h_BTD)
    a_BTD, slots = attention.Attention(
      self.config,
      self.sites,
      self.dtype,
      self.param_dtype,
      self.attention_chunk,
      self.fused,
      name='self_attn',
    )(
      h_BTD,
      self._rotary(layer, shared),
      layer.windowed,
      context,
      shared.call,
      carry.slots,
    )
    if placement != 'pre':
      a_BTD = self._norm('post_attention_layernorm')(a_BTD)
    a_BTD = site('attn_out', a_BTD)
    x_BTD = x_BTD + a_BTD.astype(self.residual_dtype)

    x_BTD = site('resid_mid', x_BTD)
    h_BTD = x_BTD.astype(self.dtype)
    if ffn_norm := FFN_NORMS[placement]:
      h_BTD = self._norm(ffn_norm)(x_BTD)
    h_BTD = site('ffn_in', h_BTD)
    y_BTD = mlp.GatedMlp(
      self.config,
      self.sites,
      self.dtype,
      self.param_dtype,
      self.fused,
      name='mlp',
    )(h_BTD, context)
    if placement != 'pre':
      y_BTD = self._norm('post_feedforward_layernorm')(y_BTD)
    y_BTD = site('ffn_out', y_BTD)
    x_BTD = x_BTD + y_BTD.astype(self.residual_dtype)
    x_BTD = site('resid_post', x_BTD)

    if marked_BT is not None and layer.sink_bound is not None:
      marked_BT |= sink.exceeding(x_BTD, shared.segments_BT, layer.sink_bound)
    captures = {capture.name: capture for capture in self.sites.captures}
    buffers = {
      name: captures[name].store(buffer, context.captured[name], context)
      for name, buffer in carry.buffers.items()
    }
    return Carry(x_BTD, buffers, marked_BT, slots)

  def _site(
    self, context: sites_lib.SiteContext, name: str, value: jax.Array
  ) -> jax.Array:
    value = logical_axes.constrain(value, ('batch', 'time', 'act_embed'))
    return self.sites.visit(self, name, value, context)

  def _norm(self, name: str) -> norms.RMSNorm:
    return norms.for_config(
      self.config, self.dtype, self.param_dtype, name=name
    )

  def _rotary(
    self, layer: LayerInputs, shared: Shared
  ) -> tuple[jax.Array, jax.Array]:
    """Picks this layer's cosines and sines."""
    cos_BTR, sin_BTR = shared.tables[0]
    if len(shared.tables) > 1:
      local_cos_BTR, local_sin_BTR = shared.tables[1]
      cos_BTR = jnp.where(layer.windowed, local_cos_BTR, cos_BTR)
      sin_BTR = jnp.where(layer.windowed, local_sin_BTR, sin_BTR)
    if self.config.rope_layers:
      cos_BTR = jnp.where(layer.rotated, cos_BTR, 1.0)
      sin_BTR = jnp.where(layer.rotated, sin_BTR, 0.0)
    return cos_BTR, sin_BTR
