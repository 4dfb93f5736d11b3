"""Linear layers, and their own derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.models import mlp


def layer(**kwargs):
  return mlp.dense(
    6,
    ('embed', 'mlp'),
    name='layer',
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    **kwargs,
  )


@pytest.mark.parametrize('shape', [(2, 3, 4), (5, 4)])
@pytest.mark.parametrize('use_bias', [True, False])
def test_gradients_are_those_of_a_plain_product(shape, use_bias):
  random = np.random.default_rng(0)
  x = random.normal(size=shape).astype(np.float32)
  by = random.normal(size=(*shape[:-1], 6)).astype(np.float32)
  params = {'kernel': random.normal(size=(4, 6)).astype(np.float32)}
  if use_bias:
    params['bias'] = random.normal(size=6).astype(np.float32)

  def ours(params, x):
    y = layer(use_bias=use_bias).apply({'params': params}, x)
    return jnp.sum(y * by)

  def plain(params, x):
    y = jnp.einsum('...i,io->...o', x, params['kernel'])
    if use_bias:
      y = y + jnp.broadcast_to(params['bias'], y.shape)
    return jnp.sum(y * by)

  found, want = (
    jax.value_and_grad(f, (0, 1))(params, x) for f in (ours, plain)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    found,
    want,
  )


def test_backward_has_the_precision_of_forward():
  x, kernel = jnp.ones((2, 3, 4)), jnp.ones((4, 6))

  def forward(x, kernel):
    with jax.default_matmul_precision('highest'):
      return layer(use_bias=False).apply({'params': {'kernel': kernel}}, x)

  _, pull_back = jax.vjp(forward, x, kernel)
  text = str(jax.make_jaxpr(pull_back)(jnp.ones((2, 3, 6))))
  assert text.count('dot_general') == 2
  assert text.count('precision=(Precision.HIGHEST, Precision.HIGHEST)') == 2
