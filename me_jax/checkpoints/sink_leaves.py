"""How does a checkpoint keep the mitigation?

As the optional leaves of `models/sink.py`. They differ from the model's own in
two ways: a checkpoint may lack them, and they are float32 whatever type the
model is written or loaded in. They are tiny, the decoder casts `sink_scale` to
the type it computes in, and float16 cannot hold a bound on activations.

Letters: L layers, D model width, W positions.
"""

from __future__ import annotations

from collections.abc import Mapping
import re
from typing import Any

import jax
import numpy as np

from me_jax import errors
from me_jax.checkpoints import names as names_lib
from me_jax.checkpoints import tensors as tensors_lib
from me_jax.models import config as config_lib
from me_jax.models import sink

SCALE = f'layers/{sink.SCALE}'
# By their paths in the parameter tree.
ALL = (SCALE, sink.BOUND, sink.POSITIONS)
_NAMES = (sink.SCALE, sink.BOUND, sink.POSITIONS)
# Where `[L, D]` leaves of the model's own stand; a family has one at least.
_ALIKE = (
  'layers/input_layernorm/weight',
  'layers/post_attention_layernorm/weight',
)


def shapes(
  config: config_lib.ModelConfig,
) -> dict[str, tuple[int | None, ...]]:
  """Returns the shapes of the leaves by path; None is any size from 1."""
  layers = config.num_hidden_layers
  return {
    SCALE: (layers, config.hidden_size),
    sink.BOUND: (layers,),
    sink.POSITIONS: (None,),
  }


def is_one(name: str) -> bool:
  """Whether a leaf's path, or a tensor's name, is the mitigation's."""
  return re.split('[./]', name)[-1] in _NAMES


def dtype_of(path: str, dtype: Any) -> np.dtype:
  """Returns the type of a leaf in a model that is kept in `dtype`."""
  return np.dtype(np.float32 if is_one(path) else dtype)


def act(leaves: Mapping[str, Any]) -> bool:
  """Whether the mitigation changes anything: its scale is not all ones.

  Args:
    leaves: of a parameter tree, by path; arrays of this process.
  """
  scale = leaves.get(SCALE)
  return scale is not None and not bool((scale == 1).all())


def check_values(leaves: Mapping[str, Any], what: str) -> None:
  """Raises MeJaxError for values that mean nothing.

  Args:
    leaves: of a parameter tree, by path; if they are spread over several
      processes, all must call this.
    what: holds them, for the message.
  """
  for path in (sink.BOUND, sink.POSITIONS):
    leaf = leaves.get(path)
    if leaf is not None and bool((leaf < 0).any()):
      raise errors.MeJaxError(
        f'{what}: {path} holds negative values, which mean nothing there: 0'
        ' stands for none'
      )


def stored(
  config: config_lib.ModelConfig,
  tensors: Mapping[str, tensors_lib.StoredTensor],
  names: names_lib.NameTable,
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns which of the leaves a checkpoint of tensors holds, by path.

  Args:
    config: of the model.
    tensors: what the checkpoint holds, by name.
    names: which of them each leaf comes from.

  Raises:
    MeJaxError: it holds parts of a mitigation without its scale, or positions
      that are no list. What else does not fit is `leaves.plan`'s to say.
  """
  found = {}
  for path, shape in shapes(config).items():
    origin = names.origins.get(path)
    if origin is None:
      continue
    layers = range(shape[0] or 0) if path == SCALE else (None,)
    # One layer's tensor is enough: the others are then missing, not absent.
    held = (tensors.get(origin.template.format(layer=i)) for i in layers)
    tensor = next(filter(None, held), None)
    if tensor is None:
      continue
    if path != SCALE and SCALE not in found:
      raise errors.MeJaxError(
        f'{tensor.file.path} holds the tensor {tensor.name} but no'
        f' {sink.SCALE}, without which it means nothing: the mitigation is'
        ' incomplete'
      )
    if path == sink.POSITIONS:
      shape = tensor.shape
      if len(shape) != 1 or not shape[0]:
        raise errors.MeJaxError(
          f'{tensor.file.path}: tensor {tensor.name} has shape {list(shape)},'
          ' must be [W] with W at least 1'
        )
    found[path] = jax.ShapeDtypeStruct(shape, np.float32)
  return found


def with_shardings(
  leaves: Mapping[str, Any], shardings: Mapping[str, Any]
) -> dict[str, Any]:
  """Adds what a tree of shardings that was made without the leaves lacks.

  `sink_scale` lies as the norms' weights do, the others on every device.

  Args:
    leaves: that need a sharding, by path.
    shardings: those that are given, by path.
  """
  result = dict(shardings)
  for path in ALL:
    if path not in leaves or path in result:
      continue
    alike = _ALIKE if path == SCALE else ('norm/weight',)
    given = next((result[p] for p in alike if p in result), None)
    if path != SCALE and isinstance(given, jax.sharding.NamedSharding):
      given = jax.sharding.NamedSharding(
        given.mesh,
        jax.sharding.PartitionSpec(),
        memory_kind=given.memory_kind,
      )
    if given is not None:
      result[path] = given
  return result
