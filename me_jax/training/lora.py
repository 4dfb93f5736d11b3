"""Low-rank adapters of projections, as a tree beside the parameters.

LoRA (Hu et al. 2021, arXiv 2106.09685, eq. 3) adds to a kernel W a product of
two thin matrices, which alone are trained:

  W' = W + alpha / rank * A B

in our layout, in which kernels are [in, out]: the paper's matrices, transposed.
A is random and B zero, so that the first step sees the very model that was
given. Adapters are merged into the kernels for a forward pass: the decoder
knows nothing of them, and the merged tree is also what an export writes.

Letters: L layers, G layers with adapters, I in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from me_jax import errors
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.models import params as params_lib

# Projection to the branch of a block that it belongs to.
BRANCHES = {
  'q_proj': 'self_attn',
  'k_proj': 'self_attn',
  'v_proj': 'self_attn',
  'o_proj': 'self_attn',
  'gate_proj': 'mlp',
  'up_proj': 'mlp',
  'down_proj': 'mlp',
}
TARGETS = tuple(BRANCHES)

Adapters = Mapping[str, Mapping[str, jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
  """Which kernels have adapters, and of what size.

  Attributes:
    rank: columns of A.
    alpha: the product is multiplied by alpha / rank.
    targets: projections, by name. All of them are needed to come up to full
      fine-tuning (Dettmers et al. 2023, arXiv 2305.14314, section 4).
    layers: `all`, a list, or by name as in `gates.Gates`.
  """

  rank: int = 8
  alpha: float = 16.0
  targets: tuple[str, ...] = TARGETS
  layers: str | tuple[int, ...] = 'all'


def check(settings: Lora) -> None:
  """Raises MeJaxError for adapters that cannot be."""
  if isinstance(settings.rank, bool) or not (
    isinstance(settings.rank, int) and settings.rank >= 1
  ):
    raise errors.MeJaxError(
      f'the rank of LoRA is {settings.rank!r}, must be a whole number from 1'
    )
  if not 0 < settings.alpha < math.inf:
    raise errors.MeJaxError(
      f'the alpha of LoRA is {settings.alpha}, must be above 0'
    )
  if not settings.targets or isinstance(settings.targets, str):
    raise errors.MeJaxError(
      f'LoRA needs a tuple of targets, of {", ".join(TARGETS)}'
    )
  for target in settings.targets:
    if target not in BRANCHES:
      raise errors.MeJaxError(
        f'LoRA has no target {target!r}, only {", ".join(TARGETS)}'
        f'{errors.nearest(str(target), TARGETS)}'
      )
  if len(set(settings.targets)) < len(settings.targets):
    raise errors.MeJaxError(
      f'LoRA has a target twice: {", ".join(settings.targets)}'
    )


def init(
  params: decoder.Params,
  settings: Lora,
  layers: Sequence[int],
  key: jax.Array,
) -> dict[str, dict[str, jax.Array]]:
  """Returns adapters that change nothing yet.

  Args:
    params: of the model, whose kernels say the sizes.
    settings: of the adapters.
    layers: that have them, in order.
    key: of the random numbers. A target's do not depend on which others there
      are.

  Returns:
    By target, `a` `[G, I, R]` of standard deviation 1 / √I, so that it hands B
    numbers of the size of its input, and `b` `[G, R, O]`, zero; float32.
  """
  adapters = {}
  for target in settings.targets:
    _, fan_in, fan_out = _kernel(params, target).shape
    shape_GIR = len(layers), fan_in, settings.rank
    own = jax.random.fold_in(key, TARGETS.index(target))
    a_GIR = jax.random.normal(own, shape_GIR, jnp.float32) / math.sqrt(fan_in)
    b_GRO = jnp.zeros((len(layers), settings.rank, fan_out), jnp.float32)
    adapters[target] = {'a': a_GIR, 'b': b_GRO}
  return adapters


def merge(
  params: decoder.Params,
  adapters: Adapters,
  settings: Lora,
  layers: Sequence[int],
  dtype: Any = None,
) -> decoder.Params:
  """Adds adapters to their kernels; pure, differentiable in the adapters.

  Under jit this is the forward pass's; outside it is for good, the result being
  a plain model. Added up in float32; bfloat16 kernels then lose what is below
  their rounding, in training as in what is exported.

  Args:
    params: of the model.
    adapters: of `init`.
    settings: that they were made with.
    layers: that they were made for.
    dtype: of the kernels that have adapters; None for each one's own.

  Returns:
    The parameters. Leaves without adapters are the same arrays.
  """
  merged = dict(params['layers'])
  for target, factors in adapters.items():
    kernel_LIO = _kernel(params, target)
    a_LIR, b_LRO = (
      _in_all_layers(factors[name], layers, len(kernel_LIO)) for name in 'ab'
    )
    change_LIO = jnp.einsum(
      'LIR,LRO->LIO', a_LIR, b_LRO, precision=jax.lax.Precision.HIGHEST
    )
    new_LIO = kernel_LIO.astype(jnp.float32) + (
      settings.alpha / settings.rank * change_LIO
    )
    branch = merged[BRANCHES[target]]
    kernel = new_LIO.astype(dtype or kernel_LIO.dtype)
    merged[BRANCHES[target]] = {
      **branch,
      target: {**branch[target], 'kernel': kernel},
    }
  return {**params, 'layers': merged}


def size(config: config_lib.ModelConfig, settings: Lora, layers: int) -> int:
  """Returns how many numbers are trained, computing nothing.

  Args:
    config: of the model.
    settings: of the adapters.
    layers: how many have them.
  """
  shapes = params_lib.param_shapes(config, 'float32')
  return sum(
    layers * settings.rank * sum(_kernel(shapes, target).shape[1:])
    for target in settings.targets
  )


def axes(
  params_axes: Mapping[str, Any], settings: Lora
) -> dict[str, dict[str, jax.sharding.PartitionSpec]]:
  """Returns the logical axes of adapters: a kernel's ends, the rank in no part.

  Args:
    params_axes: logical axes of the parameters, PartitionSpecs; of a kernel
      (layers, in, out).
    settings: of the adapters.
  """
  spec = jax.sharding.PartitionSpec
  found = {}
  for target in settings.targets:
    # The layers with adapters may be any number, which has no parts.
    _, fan_in, fan_out = _kernel(params_axes, target)
    found[target] = {
      'a': spec(None, fan_in, None),
      'b': spec(None, None, fan_out),
    }
  return found


def _kernel(params: Mapping[str, Any], target: str) -> Any:
  return params['layers'][BRANCHES[target]][target]['kernel']


def _in_all_layers(
  part: jax.Array, layers: Sequence[int], count: int
) -> jax.Array:
  """Puts zeros into other layers: cheaper than to take kernels apart."""
  if len(layers) == count:
    return part
  whole = jnp.zeros((count, *part.shape[1:]), part.dtype)
  return whole.at[np.asarray(layers)].set(part)
