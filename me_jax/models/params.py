"""The parameter tree as a value: its shapes, and its two layouts.

Letters: L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from me_jax import errors
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.models import sink


def param_shapes(config: config_lib.ModelConfig, dtype: Any) -> dict[str, Any]:
  """Returns the parameter tree as `jax.ShapeDtypeStruct`s, computing nothing.

  Args:
    config: which model.
    dtype: of every leaf.
  """
  shapes = _param_shapes(config, jnp.dtype(dtype))
  return jax.tree.map(lambda leaf: leaf, shapes)


@functools.lru_cache
def _param_shapes(
  config: config_lib.ModelConfig, dtype: jnp.dtype
) -> dict[str, Any]:
  model = decoder.Decoder(config, param_dtype=dtype)
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  key = jax.eval_shape(jax.random.key, 0)  # a real one would start the device
  variables = jax.eval_shape(model.init, key, tokens)
  # Shapes cannot be laid out over a mesh that is in use, as nn.unbox would.
  return jax.tree.map(
    lambda box: box.unbox(apply_constraint=False),
    variables['params'],
    is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata),
  )


def fingerprint(params: Mapping[str, Any]) -> str:
  """Returns a short name of the values, the same wherever they lie.

  Not a cryptographic one: it tells other weights, not forged ones.
  """
  found = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(params):
    about = f'{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}'
    found.update(f'{about} {int(_sum_of_bits(leaf))}'.encode())
  return found.hexdigest()[:16]


@jax.jit
def _sum_of_bits(leaf: jax.Array) -> jax.Array:
  """Returns a sum of the values' bits by place, modulo 2**32: in any order."""
  kind = {2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
  bits = jax.lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32)
  for axis in range(leaf.ndim):
    # Odd factors, so that no bit is lost.
    place = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    bits = bits * (place * jnp.uint32(2654435762) + jnp.uint32(1))
  return jnp.sum(bits, dtype=jnp.uint32)


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the tree of the unrolled decoder: `layers_0`, `layers_1`, ...

  Made for steps of decoding, in which a projection is a matrix times a few
  columns: kernels are `[out, in]`, and those that read the same input are one
  (`qkv_proj`, `gate_up_proj`).

  Args:
    params: the tree of the scanned decoder.
  """
  stacked = dict(params['layers'])
  attention, ffn = dict(stacked['self_attn']), dict(stacked['mlp'])
  for branch, names, fused in (
    (attention, ('q_proj', 'k_proj', 'v_proj'), 'qkv_proj'),
    (ffn, ('gate_proj', 'up_proj'), 'gate_up_proj'),
  ):
    parts = [branch.pop(name) for name in names]
    branch[fused] = jax.tree.map(
      lambda *leaves: jnp.concatenate(leaves, axis=-1), *parts
    )
  for branch in (attention, ffn):
    for name, leaves in branch.items():
      if 'kernel' in leaves:
        kernel = jnp.swapaxes(leaves['kernel'], 1, 2)
        branch[name] = {**leaves, 'kernel': kernel}
  stacked |= {'self_attn': attention, 'mlp': ffn}
  count = jax.tree.leaves(stacked)[0].shape[0]
  return {k: v for k, v in params.items() if k != 'layers'} | {
    f'layers_{i}': jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
    for i in range(count)
  }


def first_layers(
  model: decoder.Decoder, params: Mapping[str, Any], count: int
) -> tuple[decoder.Decoder, dict[str, Any]]:
  """Returns the model that ends after some layers, and its parameters.

  Its `resid` is what layer `count - 1` puts out; its final norm and head see
  that and mean nothing.

  Args:
    model: the scanned decoder.
    params: its tree.
    count: layers to keep, from the first.

  Raises:
    MeJaxError: the model has fewer layers, or they are not stacked.
  """
  config = model.config
  if not 1 <= count <= config.num_hidden_layers:
    raise errors.MeJaxError(
      f'cannot keep {count} of {config.num_hidden_layers} layers.'
    )
  if 'layers' not in params:
    raise errors.MeJaxError('the parameter tree holds no stacked layers.')
  if count == config.num_hidden_layers:
    return model, dict(params)
  config = dataclasses.replace(
    config,
    num_hidden_layers=count,
    layer_windowed=config.layer_windowed[:count],
    rope_layers=config.rope_layers[:count],
  )
  layers = jax.tree.map(lambda leaf: leaf[:count], params['layers'])
  rest = {**params, 'layers': layers}
  # One entry a layer, though it stands outside them.
  if sink.BOUND in rest:
    rest[sink.BOUND] = rest[sink.BOUND][:count]
  return model.clone(config=config), rest
