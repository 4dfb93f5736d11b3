"""How much of what a chip can do does a run use?

Model FLOPs utilisation (Chowdhery et al. 2022, arXiv 2204.02311, appendix B):
what the model's own products need, over what the chips could do in that time;
what is computed twice to save memory does not count.
"""

from __future__ import annotations

import math
from typing import Any

import jax

from me_jax.models import config as config_lib
from me_jax.models import params as params_lib
from me_jax.training import peaks


def of_step(
  config: config_lib.ModelConfig, tokens: int, length: int, full: bool
) -> float:
  """Returns the FLOPs of forward and backward.

  Two for each weight of a product and token forward, as many again for the
  gradient of what the product receives, and of its weights where they are
  trained; attention's products with half of all keys.

  Args:
    config: of the model.
    tokens: of the batch.
    length: of a row.
    full: whether weights are trained.
  """
  shapes = params_lib.param_shapes(config, 'float32')
  weights = (
    sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes['layers']))
    + config.hidden_size * config.vocab_size
  )
  width = config.num_attention_heads * config.head_dim
  scores = 2 * 2 * config.num_hidden_layers * width * length / 2
  products = (6 if full else 4) * weights
  return tokens * (products + 3 * scores)


def peak(device: Any) -> float | None:
  """Returns what a device can do at most, FLOP/s; None where it is not known.

  Args:
    device: of JAX.
  """
  return peaks.of(device.device_kind)
