"""The gated feed-forward branch of a block.

Letters: B batch, T time, D model width, F FFN width, I in, O out.
"""

from __future__ import annotations

import functools
from typing import Any, cast

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
    dot_general=_dot_general,
    dtype=dtype,
    param_dtype=param_dtype,
    kernel_init=nn.with_logical_partitioning(
      nn.initializers.normal(0.02), axes
    ),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
    name=name,
  )


def _dot_general(
  x: jax.Array, kernel: jax.Array, dims: Any, precision: Any = None
) -> jax.Array:
  """Multiplies as `nn.Dense` wants it, `[..., in]` with `[in, out]`."""
  del dims
  # Backward may be traced where the surrounding default is another.
  return _product(
    precision or cast(Any, jax.config).jax_default_matmul_precision, x, kernel
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(precision: Any, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns `x @ kernel`, with the kernel's gradient in another order.

  XLA's matrix product on CPUs transposes a copy of its left operand where that
  is needed. In JAX's own derivative this is the gradient of the output, which
  is then computed anew, in strides: twice the time of the product.
  """
  dims = ((x.ndim - 1,), (0,)), ((), ())
  return jax.lax.dot_general(x, kernel, dims, precision=precision)


def _product_forward(
  precision: Any, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _product(precision, x, kernel), (x, kernel)


def _product_backward(
  precision: Any, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = residuals
  last, rest = x.ndim - 1, tuple(range(x.ndim - 1))
  dot = functools.partial(jax.lax.dot_general, precision=precision)
  return (
    dot(gradient, kernel, (((last,), (1,)), ((), ()))),
    dot(x, gradient, ((rest, rest), ((), ()))),
  )


_product.defvjp(_product_forward, _product_backward)


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
    kwargs: dict[str, Any] = dict(
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
    # Backward computes it again, so that nothing between is kept for it.
    gated = jax.checkpoint(
      lambda gate, up: ACTIVATIONS[config.hidden_act](gate) * up,
      prevent_cse=False,
    )
    act_BTF = gated(gate_BTF, up_BTF)
    act_BTF = logical_axes.constrain(act_BTF, ('batch', 'time', 'act_mlp'))
    act_BTF = self.sites.visit(self, 'ffn_act', act_BTF, context)
    project = RowDense if self.fused else dense
    return project(
      config.hidden_size, ('mlp', 'embed'), name='down_proj', **kwargs
    )(act_BTF)
