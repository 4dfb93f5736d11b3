"""What is lost when a value or a kernel is rounded to a few bits?

Symmetric linear quantisation: a scale makes the largest |x| the last of the
levels, x is divided by it, rounded to the nearest level (halves to even) and
multiplied again, so that everything around it computes as before. Tensors share
one scale, or each token or output channel has its own.

Letters: L layers, S sites, B rows, T time, D the width of a site, I in, O out.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools

import jax
import jax.numpy as jnp

from me_jax.models import decoder
from me_jax.models import sites

# What matrices receive, where a site shows it, and the residual stream as each
# layer leaves it and the next receives it. What `o_proj` receives has no site.
INPUTS = ('attn_in', 'ffn_in', 'ffn_act')
STREAM = ('resid_post',)
SITES = (*INPUTS, *STREAM)
NONE, TENSOR, TOKEN = range(3)  # entries of the operand `round_how`


def rounded(x: jax.Array, peak: jax.Array, levels: jax.Array) -> jax.Array:
  """Rounds to the nearest of `levels` steps on either side of zero.

  Args:
    x: any shape.
    peak: what the last level stands for, of a shape that x's can be divided by;
      larger values are cut, and 0 leaves zeros.
    levels: 127 for eight bits.
  """
  scale = jnp.where(peak > 0, peak, 1.0) / levels
  return jnp.clip(jnp.round(x / scale), -levels, levels) * scale


@dataclasses.dataclass(frozen=True)
class Round:
  """Rounds a site.

  Operands: `round_how` int32 `[S, L]`, `NONE`, `TENSOR` (one scale for all
  tokens of the pass) or `TOKEN` (one each); `round_levels` float32; and
  `round_BT` bool, which tokens are rounded and count for the scale. Padding
  must not be among them. `compared_BT` bool says whose error is summed.
  """

  site: str

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Writes `[B, T, D]`."""
    operands = context.operands
    chosen_BT1 = operands['round_BT'][..., None]
    compared_BT1 = operands['compared_BT'][..., None]
    x = value.astype(jnp.float32)
    size = jnp.where(chosen_BT1, jnp.abs(x), 0.0)

    def by(axes: tuple[int, ...]) -> jax.Array:
      peak = jnp.max(size, axis=axes, keepdims=True)
      new = rounded(x, peak, operands['round_levels'])
      return jnp.where(chosen_BT1, new, x).astype(value.dtype)

    how = operands['round_how'][SITES.index(self.site), context.layer]
    # Branches that are not taken cost nothing, and the one that changes nothing
    # gives the bits that a model without this edit would.
    new = jax.lax.switch(
      how, (lambda: value, lambda: by((0, 1, 2)), lambda: by((2,)))
    )
    part = jnp.where(compared_BT1, x, 0.0)
    error = jnp.where(compared_BT1, new.astype(jnp.float32) - x, 0.0)
    context.captured[Seen(self.site).name] = jnp.stack(
      [jnp.sum(error**2), jnp.sum(part**2), jnp.max(size), jnp.max(abs(part))]
    )
    return new


@dataclasses.dataclass(frozen=True)
class Seen:
  """What `Round` measured of a site, `[4]` float32.

  The squares of the error and of the values at compared tokens, summed; the
  largest |x| of the tokens that are rounded, and of the compared ones.
  """

  site: str

  @property
  def name(self) -> str:
    """Key of the result."""
    return f'rounded_{self.site}'

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Hands on what the edit put aside."""
    return context.captured[self.name]


def observed(model: decoder.Decoder) -> decoder.Decoder:
  """Returns the model with all sites rounded as the operands say."""
  return model.clone(
    sites=sites.Sites(
      observers=tuple(map(Seen, SITES)), edits=tuple(map(Round, SITES))
    )
  )


@functools.partial(jax.jit, static_argnames='by_channel')
def round_kernels(
  params: decoder.Params, levels: jax.Array, *, by_channel: bool
) -> decoder.Params:
  """Rounds every kernel of the layers; embedding and head stay as they are.

  Args:
    params: with stacked layers, `[L, I, O]` each kernel.
    levels: 127 for eight bits.
    by_channel: a scale for each output channel; else one for a matrix.

  Returns:
    The parameters with rounded kernels, in their own type.
  """

  def branch(tree: Mapping[str, Mapping[str, jax.Array]]) -> dict:
    found = {}
    for name, leaves in tree.items():
      found[name] = dict(leaves)
      if 'kernel' in leaves:
        kernel = leaves['kernel'].astype(jnp.float32)
        axes = (1,) if by_channel else (1, 2)
        peak = jnp.max(jnp.abs(kernel), axis=axes, keepdims=True)
        new = rounded(kernel, peak, levels)
        found[name]['kernel'] = new.astype(leaves['kernel'].dtype)
    return found

  layers = dict(params['layers'])
  layers |= {name: branch(layers[name]) for name in ('self_attn', 'mlp')}
  return {**params, 'layers': layers}
