"""Splitting a state into the writes that made it, in every architecture."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.analysis import residual
from me_jax.models import batch as batch_lib
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.models import params as params_lib

FAMILIES = {
  'pre': {},
  'post': dict(norm_placement='post', norm_in_float32=True),
  'sandwich': dict(
    norm_placement='sandwich', norm_offset=1.0, norm_in_float32=True,
    hidden_act='gelu_pytorch_tanh', embedding_scale=4.0,
  ),
}  # fmt: skip


@pytest.mark.parametrize('placement', FAMILIES)
def test_neurons_add_up_to_what_their_ffn_wrote(placement):
  config = config_lib.ModelConfig(
    model_type='llama',
    vocab_size=30,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=64,
    **FAMILIES[placement],
  )
  model = decoder.Decoder(config)
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(0, 0.5, leaf.shape), leaf.dtype),
    params_lib.param_shapes(config, 'float32'),
  )
  batch = batch_lib.make_batch([random.integers(0, 30, 9).tolist()])
  operands = {
    'positions': np.array([[0, 4]], np.int32),
    'members': np.ones((1, 1, 9), bool),
  }
  seen = residual.measure(model, params, *batch, operands)
  for layer in range(3):
    # Any direction will do; the plateau of the last layer is one.
    plateau_XD = seen['state'][2, 0]
    parts_XF = residual.neuron_shares(
      model, params, jnp.int32(layer), seen['mid'][layer, 0], plateau_XD
    )
    write_XD = seen['state'][layer, 0] - seen['mid'][layer, 0]
    square_X = jnp.sum(plateau_XD * plateau_XD, axis=-1)
    whole_X = jnp.sum(write_XD * plateau_XD, axis=-1) / square_X
    np.testing.assert_allclose(parts_XF.sum(axis=-1), whole_X, atol=1e-5)
    assert np.abs(whole_X).max() > 0.01
