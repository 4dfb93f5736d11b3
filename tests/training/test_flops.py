"""FLOPs of a step against a sum by hand and against what XLA counts."""

from __future__ import annotations

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.mitigation import gates
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.models import params as params_lib
from me_jax.training import flops
from me_jax.training import trained

TOKENS, LENGTH = 256, 128
CONFIG = config_lib.ModelConfig(
  model_type='llama',
  vocab_size=512,
  hidden_size=128,
  intermediate_size=256,
  num_hidden_layers=1,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=32,
  max_position_embeddings=256,
  bos_token_id=1,
)


def test_a_sum_by_hand():
  # Queries and outputs, keys and values of half as many heads; the FFN's three;
  # the norms of a layer, which are next to nothing; and the head, but not the
  # embedding, which is no product.
  kernels = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256
  weights = 2 * (kernels + 2 * 128) + 128 * 512
  # Of 64 keys on average, with each of 4 heads: a score, and a sum of values.
  scores = 2 * (64 * 2 * 4 * 32 + 64 * 2 * 4 * 32)
  two = dataclasses.replace(CONFIG, num_hidden_layers=2)
  # Forward once, backward for inputs and for weights.
  want = 1000 * (2 * weights * 3 + scores * 3)
  assert flops.of_step(two, 1000, LENGTH, full=True) == want
  # Weights that are frozen have no gradient.
  want = 1000 * (2 * weights * 2 + scores * 3)
  assert flops.of_step(two, 1000, LENGTH, full=False) == want


@pytest.mark.parametrize('tied', [True, False])
def test_an_embedding_costs_nothing_but_as_a_head(tied):
  config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
  assert flops.of_step(config, TOKENS, LENGTH, True) == (
    flops.of_step(CONFIG, TOKENS, LENGTH, True)
  )


@pytest.mark.parametrize('part', ['full', 'gates'])
def test_what_xla_counts_is_near(part):
  """Of one layer, whose loop is none: XLA counts a loop's body once."""
  model = decoder.Decoder(CONFIG, attention_chunk=LENGTH)
  shapes = params_lib.param_shapes(CONFIG, 'float32')
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  what = trained.Trained(parts=(part,), gates=gates.Gates(layers=(0,)))
  tree, frozen = trained.split(model, params, what)
  tokens_BT = np.ones((TOKENS // LENGTH, LENGTH), np.int32)

  def loss(tree, frozen, tokens_BT):
    params = trained.merge(tree, frozen, what)
    logits_BTV = model.apply({'params': params}, tokens_BT).logits
    return jnp.mean(jax.nn.log_softmax(logits_BTV)[..., 3])

  compiled = jax.jit(jax.grad(loss)).lower(tree, frozen, tokens_BT).compile()
  counted = compiled.cost_analysis()['flops']
  want = flops.of_step(CONFIG, TOKENS, LENGTH, full=part == 'full')
  # XLA counts scores of all keys and not of half, and what is no product. In
  # the only layer nothing before the gates needs a gradient.
  assert 0.75 < counted / want < 1.25


@pytest.mark.parametrize(
  ('kind', 'want'),
  [
    ('TPU v4', 275e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5e', 197e12),
    ('TPU v5', 459e12),
    ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H200', 989e12),
    ('NVIDIA B200', 2250e12),
    ('cpu', None),
    ('NVIDIA GeForce RTX 3060', None),
  ],
)
def test_peaks_by_kind(kind, want):
  assert flops.peak(types.SimpleNamespace(device_kind=kind)) == want
