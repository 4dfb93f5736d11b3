"""What does a model look like as a Hugging Face checkpoint?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from me_jax.checkpoints import names as names_lib
from me_jax.models import config as config_lib


def hf_tensors(
  config: config_lib.ModelConfig, params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Returns the parameters under Hugging Face's names and in its layout.

  Args:
    config: of the model.
    params: its parameter tree, layers stacked.

  Returns:
    A tensor a name, kernels `[out, in]`, in the types of `params`.
  """
  origins = names_lib.hf_table(config).origins
  tensors = {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
    path = '/'.join(key.key for key in keys)
    values = np.asarray(leaf)
    for layer, value in enumerate(
      values if path.startswith('layers/') else values[None]
    ):
      value = value.T if origins[path].transpose else value
      name = origins[path].template.format(layer=layer)
      tensors[name] = np.ascontiguousarray(value)
  return tensors
