"""The gated feed-forward branch of a block.

Letters: B batch, T time, D model width, F FFN width, I in, O out.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from me_jax.models import config as config_lib
from me_jax.models import logical_axes
from me_jax.models import sites as sites_lib

ACTIVATIONS = {
  'silu': nn.silu,
  'gelu_pytorch_tanh': lambda x: nn.gelu(x, approximate=True),
}


def dense(
  features: int,
  axes: tuple[str, str],
  *,
  name: str,
  use_bias: bool,
  dtype: jnp.dtype,
  param_dtype: jnp.dtype,
) -> nn.Dense:
  """A linear layer whose kernel `[in, out]` knows its logical axes."""
  return nn.Dense(
    features,
    use_bias=use_bias,
    dtype=dtype,
    param_dtype=param_dtype,
    kernel_init=nn.with_logical_partitioning(
      nn.initializers.normal(0.02), axes
    ),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
    name=name,
  )


class RowDense(nn.Module):
  """A linear layer whose kernel is `[out, in]`, for few tokens at a time.

  XLA's matrix product on CPUs packs the operand on its right; here that is the
  few tokens, and the kernel is read as it lies.

  Attributes:
    features: out.
    axes: logical axes of `[in, out]`.
    use_bias: whether there is one.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  features: int
  axes: tuple[str, str]
  use_bias: bool
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTI: jax.Array) -> jax.Array:
    """Maps `[B, T, in]` to `[B, T, out]`."""
    normal, zeros = nn.initializers.normal(0.02), nn.initializers.zeros
    partitioned = nn.with_logical_partitioning
    kernel_OI = self.param(
      'kernel',
      partitioned(normal, self.axes[::-1]),
      (self.features, x_BTI.shape[-1]),
      self.param_dtype,
    )
    y_OBT = jax.lax.dot_general(
      kernel_OI.astype(self.dtype),
      x_BTI.astype(self.dtype),
      (((1,), (2,)), ((), ())),
    )
    y_BTO = jnp.moveaxis(y_OBT, 0, -1)
    if self.use_bias:
      bias_O = self.param(
        'bias',
        partitioned(zeros, self.axes[1:]),
        (self.features,),
        self.param_dtype,
      )
      y_BTO = y_BTO + bias_O.astype(self.dtype)[None, None]
    return y_BTO


class GatedMlp(nn.Module):
  """`down(act(gate(h)) * up(h))` (Shazeer 2020, arXiv 2002.05202).

  Attributes:
    config: the model.
    sites: who reads and writes `ffn_act`.
    dtype: of the computation.
    param_dtype: of the parameters.
    fused: whether parameters are laid out as `params.unstack_layers` does it.
  """

  config: config_lib.ModelConfig
  sites: sites_lib.Sites = sites_lib.Sites()
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  fused: bool = False

  @nn.compact
  def __call__(
    self, h_BTD: jax.Array, context: sites_lib.SiteContext
  ) -> jax.Array:
    """Maps the normalised state `[B, T, D]` to the branch's write."""
    config = self.config
    kwargs = dict(
      use_bias=config.mlp_bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    width = config.intermediate_size
    axes = ('embed', 'mlp')
    if self.fused:
      both = RowDense(2 * width, axes, name='gate_up_proj', **kwargs)(h_BTD)
      gate_BTF, up_BTF = jnp.split(both, 2, axis=-1)
    else:
      gate_BTF = dense(width, axes, name='gate_proj', **kwargs)(h_BTD)
      up_BTF = dense(width, axes, name='up_proj', **kwargs)(h_BTD)
    act_BTF = ACTIVATIONS[config.hidden_act](gate_BTF) * up_BTF
    act_BTF = logical_axes.constrain(act_BTF, ('batch', 'time', 'act_mlp'))
    act_BTF = self.sites.visit(self, 'ffn_act', act_BTF, context)
    project = RowDense if self.fused else dense
    return project(
      config.hidden_size, ('mlp', 'embed'), name='down_proj', **kwargs
    )(act_BTF)
