"""Which tensors fill each parameter, and do they fit?

Everything that can be known without reading weights is checked here, before
any are read: a tensor that is missing, left over, of the wrong shape or of a
type that cannot be loaded.

Letters: L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import numpy as np

from me_jax import errors
from me_jax.checkpoints import names as names_lib
from me_jax.checkpoints import sink_leaves
from me_jax.checkpoints import tensors as tensors_lib
from me_jax.models import config as config_lib


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One parameter and where it comes from.

  Attributes:
    path: its place in the tree, such as `layers/mlp/up_proj/kernel`.
    shape: in the tree, `[L, ...]` when it is stacked.
    dtype: in the tree.
    origin: how the stored values become ours.
    tensors: one a layer when it is stacked, else a single one.
  """

  path: str
  shape: tuple[int, ...]
  dtype: np.dtype
  origin: names_lib.Origin
  tensors: tuple[tensors_lib.StoredTensor, ...]

  @property
  def stacked(self) -> bool:
    """Whether the first axis counts layers."""
    return self.path.startswith('layers/')

  @property
  def nbytes(self) -> int:
    """Size in the tree."""
    return math.prod(self.shape) * self.dtype.itemsize


def plan(
  shapes: Mapping[str, Any],
  tensors: Mapping[str, tensors_lib.StoredTensor],
  names: names_lib.NameTable,
) -> list[Leaf]:
  """Finds the tensors of every parameter.

  Args:
    shapes: the tree to fill, of `jax.ShapeDtypeStruct`; layers are stacked
      `[L, ...]` under `layers`.
    tensors: what the checkpoint holds, by name.
    names: which of them each leaf comes from.

  Returns:
    A leaf for each one of `shapes`, in its order.

  Raises:
    MeJaxError: a tensor is missing, unused, of the wrong shape or of a type
      that cannot be loaded.
  """
  leaves = [
    _plan_leaf(path, shape.shape, np.dtype(shape.dtype), tensors, names)
    for path, shape in flatten(shapes).items()
  ]
  _refuse_unused(leaves, tensors, names)
  return leaves


def check_sizes(
  config: config_lib.ModelConfig,
  tensors: Mapping[str, tensors_lib.StoredTensor],
  names: names_lib.NameTable,
) -> None:
  """Checks the sizes that a configuration claims against a few tensors.

  Asking the decoder for its shapes costs memory in proportion to some of them,
  so that a lying file could exhaust it.

  Args:
    config: of the model.
    tensors: what the checkpoint holds, by name.
    names: which of them each leaf comes from.

  Raises:
    MeJaxError: as `plan` does.
  """
  width = config.hidden_size
  query = config.num_attention_heads * config.head_dim
  key = config.num_key_value_heads * config.head_dim
  shapes = {
    'embed_tokens/embedding': (config.vocab_size, width),
    'layers/self_attn/q_proj/kernel': (1, width, query),
    'layers/self_attn/k_proj/kernel': (1, width, key),
    'layers/mlp/up_proj/kernel': (1, width, config.intermediate_size),
  }
  for path, shape in shapes.items():
    _plan_leaf(path, shape, np.dtype(np.float32), tensors, names)


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns the leaves of nested dicts by their paths, joined by slashes."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{key}/')
    else:
      flat[prefix + key] = value
  return flat


def check_shardings(
  shapes: Mapping[str, tuple[int, ...]], shardings: Mapping[str, Any]
) -> dict[str, Any]:
  """Checks that shardings fit a tree.

  Args:
    shapes: of its leaves, by path.
    shardings: a tree of `jax.sharding.Sharding`; the mitigation's leaves may
      be left out.

  Returns:
    The shardings by path, of all leaves.

  Raises:
    MeJaxError: there is not one for each leaf, or one does not divide it.
  """
  if not isinstance(shardings, Mapping):
    raise errors.MeJaxError(
      f'shardings are a {type(shardings).__name__}, not a tree like the'
      ' parameters'
    )
  found = sink_leaves.with_shardings(shapes, flatten(shardings))
  odd = set(found) ^ set(shapes)
  if odd:
    raise errors.MeJaxError(f'shardings do not match the model: {min(odd)}')
  for path, shape in shapes.items():
    try:
      found[path].shard_shape(shape)
    except (AttributeError, ValueError) as error:
      raise errors.MeJaxError(
        f'the sharding of {path} does not fit its shape {list(shape)}:'
        f' {str(error)[:300]}'
      ) from error
  return found


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Undoes `flatten`."""
  tree = {}
  for path, value in leaves.items():
    *parents, last = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return tree


def _plan_leaf(
  path: str,
  shape: tuple[int, ...],
  dtype: np.dtype,
  tensors: Mapping[str, tensors_lib.StoredTensor],
  names: names_lib.NameTable,
) -> Leaf:
  """Finds the tensors of one leaf and checks all but their values."""
  origin = names.origins.get(path)
  if origin is None:
    raise errors.MeJaxError(
      f'the parameter {path} has no name in this format of checkpoint'
    )
  stacked = path.startswith('layers/')
  wanted = shape[1:] if stacked else shape
  wanted = wanted[::-1] if origin.transpose else wanted
  if origin.stored_rows is not None:
    wanted = (origin.stored_rows, *wanted[1:])
  found = []
  for layer in range(shape[0] if stacked else 1):
    name = origin.template.format(layer=layer)
    tensor = tensors.get(name)
    if tensor is None:
      raise errors.MeJaxError(
        f'the checkpoint lacks the tensor {name}: it is incomplete, or its'
        ' configuration belongs to another model'
      )
    if tensor.shape != wanted:
      raise errors.MeJaxError(
        f'{tensor.file.path}: tensor {name} has shape {list(tensor.shape)},'
        f' the configuration asks for {list(wanted)}'
      )
    if tensor.decode is None:
      raise errors.MeJaxError(
        f'{tensor.file.path}: tensor {name} is stored as {tensor.dtype},'
        f' which cannot be loaded; {", ".join(tensors_lib.PLAIN_DTYPES)} can:'
        ' use a checkpoint that is not quantised'
      )
    found.append(tensor)
  return Leaf(path, shape, dtype, origin, tuple(found))


def _refuse_unused(
  leaves: list[Leaf],
  tensors: Mapping[str, tensors_lib.StoredTensor],
  names: names_lib.NameTable,
) -> None:
  """Raises when the checkpoint holds weights that the model would ignore."""
  used = {tensor.name for leaf in leaves for tensor in leaf.tensors}
  for name in tensors:
    if name not in used and not names.harmless.fullmatch(name):
      raise errors.MeJaxError(
        f'the checkpoint holds the tensor {name[:120]}, which the configured'
        ' model does not use: the model would run but be wrong'
      )
