"""Does a parameter tree belong to a configuration?

Letters: L layers, D model width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from me_jax import errors
from me_jax.checkpoints import leaves as leaves_lib
from me_jax.checkpoints import sink_leaves
from me_jax.models import config as config_lib
from me_jax.models import params as params_lib

DTYPES = ('float32', 'bfloat16', 'float16')


def check(
  config: config_lib.ModelConfig, tree: Mapping[str, Any], what: str
) -> dict[str, Any]:
  """Checks paths, shapes and types of a tree's leaves.

  Args:
    config: of the model.
    tree: nested dicts of anything with `shape` and `dtype`.
    what: what the tree is, for messages.

  Returns:
    The leaves by their paths, in the order of the decoder's own tree.

  Raises:
    MeJaxError: a leaf is missing, not one of the model's, of the wrong shape,
      or of a type that parameters do not have.
  """
  if not isinstance(tree, Mapping):
    raise errors.MeJaxError(f'{what} are a {type(tree).__name__}, not a dict')
  found = leaves_lib.flatten(tree)
  _check_claims(config, found, what)
  wanted = _decoder_shapes(config, what)
  optional = sink_leaves.shapes(config)
  for path in wanted:
    if path not in found:
      raise errors.MeJaxError(f'{what} lack {path}')
  for path, leaf in found.items():
    shape = wanted.get(path, optional.get(path))
    if shape is None:
      known = [*wanted, *optional]
      raise errors.MeJaxError(
        f'{what} hold {path:.120}, which the model does not have'
        f'{errors.nearest(path, known)}'
      )
    _check_leaf(path, leaf, shape, what)
  return {p: found[p] for p in [*wanted, *optional] if p in found}


def check_dtype(dtype: str) -> None:
  """Raises MeJaxError unless `dtype` names a type that parameters may have."""
  if dtype not in DTYPES:
    raise errors.MeJaxError(
      f'dtype is {dtype!r:.40}, must be one of {", ".join(DTYPES)}'
    )


def common_dtype(dtypes: Iterable[np.dtype | None]) -> str:
  """Returns the type that all have if parameters may; else float32."""
  names = {'' if dtype is None else dtype.name for dtype in dtypes}
  name = names.pop() if len(names) == 1 else ''
  return name if name in DTYPES else 'float32'


def _decoder_shapes(
  config: config_lib.ModelConfig, what: str
) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of the decoder's own leaves by path."""
  try:
    shapes = params_lib.param_shapes(config, 'float32')
  except errors.MeJaxError:
    raise
  # Fields that contradict each other fail anywhere in the decoder.
  except Exception as error:
    raise errors.MeJaxError(
      f'{what} have a configuration that cannot be computed, with RoPE kind'
      f' {config.rope.kind!r:.40}: {str(error).splitlines()[0]:.200}'
    ) from error
  flat = leaves_lib.flatten(shapes)
  return {path: shape.shape for path, shape in flat.items()}


def _check_claims(
  config: config_lib.ModelConfig, found: Mapping[str, Any], what: str
) -> None:
  """Checks the sizes whose tracing takes memory in proportion to them."""
  width = config.hidden_size
  query = config.num_attention_heads * config.head_dim
  layers = config.num_hidden_layers
  claims = {
    'embed_tokens/embedding': (config.vocab_size, width),
    'layers/self_attn/q_proj/kernel': (layers, width, query),
    'layers/mlp/up_proj/kernel': (layers, width, config.intermediate_size),
  }
  for path, shape in claims.items():
    if path not in found:
      raise errors.MeJaxError(f'{what} lack {path}')
    _check_leaf(path, found[path], shape, what)


def _check_leaf(
  path: str, leaf: Any, shape: tuple[int | None, ...], what: str
) -> None:
  if not hasattr(leaf, 'shape') or not hasattr(leaf, 'dtype'):
    raise errors.MeJaxError(
      f'{what}: {path} is no array but a {type(leaf).__name__}'
    )
  found = tuple(leaf.shape)
  if len(found) != len(shape) or any(
    size < 1 if wanted is None else size != wanted
    for size, wanted in zip(found, shape)
  ):
    wanted = ', '.join('1 or more' if n is None else str(n) for n in shape)
    raise errors.MeJaxError(
      f'{what}: {path} has shape {list(found)}, the configuration asks for'
      f' [{wanted}]'
    )
  dtype = None if leaf.dtype is None else np.dtype(leaf.dtype).name
  if dtype not in DTYPES:
    raise errors.MeJaxError(
      f'{what}: {path} is {dtype}, must be one of {", ".join(DTYPES)}'
    )
