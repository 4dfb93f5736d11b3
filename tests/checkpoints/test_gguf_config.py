"""Metadata of GGUF files as configurations."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest

from me_jax import errors
from me_jax.checkpoints import gguf_config
from me_jax.checkpoints import load


def config(tiny, tmp_path, **options):
  return load.open_checkpoint(tiny.gguf(tmp_path / 'm.gguf', **options)).config


def refused(tiny, tmp_path, *words, **options):
  with pytest.raises(errors.MeJaxError) as caught:
    config(tiny, tmp_path, **options)
  for word in words:
    assert word in str(caught.value), str(caught.value)


def test_float32_metadata_become_the_decimal_that_was_meant(tiny, tmp_path):
  found = config(tiny, tmp_path)
  assert found.rms_norm_eps == 1e-5
  assert found.rope.theta == 10000.0


def test_the_end_of_a_turn_ends_a_text(tiny, tmp_path):
  found = config(tiny, tmp_path, metadata={'tokenizer.ggml.eot_token_id': 7})
  assert found.eos_token_ids == (2, 7)
  found = config(tiny, tmp_path, metadata={'tokenizer.ggml.eot_token_id': 2})
  assert found.eos_token_ids == (2,)
  found = config(tiny, tmp_path, metadata={'tokenizer.ggml.eos_token_id': None})
  assert found.eos_token_ids == ()


def test_the_vocabulary_says_its_size_when_no_key_does(tiny, tmp_path):
  tokens = [f't{i}' for i in range(48)]
  metadata = {'llama.vocab_size': None, 'tokenizer.ggml.tokens': tokens}
  assert config(tiny, tmp_path, metadata=metadata).vocab_size == 48


def test_optional_keys_have_llama_cpps_defaults(tiny, tmp_path):
  weights = dict(tiny.weights)
  for layer in range(2):
    for name in 'kv':
      key = f'model.layers.{layer}.self_attn.{name}_proj.weight'
      weights[key] = np.ones((32, 32), np.float32)
  missing = dict.fromkeys(
    [
      'llama.attention.head_count_kv',
      'llama.rope.freq_base',
      'llama.rope.dimension_count',
    ]
  )
  found = config(tiny, tmp_path, metadata=missing, weights=weights)
  assert found.num_key_value_heads == 4
  assert found.rope.theta == 10000.0
  assert found.head_dim == 8


def test_other_architectures_are_named_with_what_works(tiny, tmp_path):
  refused(tiny, tmp_path, 'mamba', 'llama', architecture='mamba')


@pytest.mark.parametrize(
    'key', ['block_count', 'embedding_length', 'attention.head_count',
            'attention.layer_norm_rms_epsilon', 'vocab_size']
)  # fmt: skip
def test_missing_keys_are_named(tiny, tmp_path, key):
  refused(tiny, tmp_path, key, metadata={f'llama.{key}': None})


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('attention.sliding_window', 16),
    ('attention.logit_softcapping', 50.0),
    ('logit_scale', 0.5),
    ('expert_count', 8),
    ('rope.scaling.attn_factor', 2.0),
    ('rope.scaling.type', 'longrope'),
    ('rope.dimension_count', 4),
    ('attention.value_length', 16),
    ('attention.head_count_kv', [2, 4]),
    ('block_count', 0),
    ('block_count', 'two'),
    ('block_count', True),
    ('attention.layer_norm_rms_epsilon', math.nan),
    ('rope.freq_base', 'big'),
    ('rope.freq_base', -1.0),
  ],
)
def test_what_would_change_the_computation_is_refused(
  tiny, tmp_path, key, value
):
  refused(tiny, tmp_path, key, metadata={f'llama.{key}': value})


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('expert_count', 0),
    ('rope.scaling.type', 'none'),
    ('rope.scaling.finetuned', True),
    ('attention.head_count_kv', [2, 2]),
  ],
)
def test_what_changes_nothing_is_accepted(tiny, tmp_path, key, value):
  plain = config(tiny, tmp_path)
  assert config(tiny, tmp_path, metadata={f'llama.{key}': value}) == plain


def test_linear_scaling(tiny, tmp_path):
  scaling = {
    'llama.rope.scaling.type': 'linear',
    'llama.rope.scaling.factor': 4.0,
  }
  found = config(tiny, tmp_path, metadata=scaling)
  assert (found.rope.kind, found.rope.factor) == ('linear', 4.0)


def rope_factors(theta, head_dim, factor):
  """As llama.cpp's converter writes them, one dimension at a time."""
  factors = []
  for i in range(0, head_dim, 2):
    wavelength = 2 * math.pi * theta ** (i / head_dim)
    if wavelength < 8192 / 4.0:
      factors.append(1.0)
    elif wavelength > 8192 / 1.0:
      factors.append(factor)
    else:
      smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
      factors.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(factors, np.float32)


@pytest.mark.parametrize('factor', [8.0, 32.0])
@pytest.mark.parametrize('theta', [1e4, 5e5])
def test_llama3_scaling_is_recovered_from_its_factors(
  tiny, tmp_path, theta, factor
):
  # Eight wide heads, so that factors of all three kinds occur.
  weights = dict(tiny.weights)
  for layer in range(2):
    for name, shape in (('q', (256, 32)), ('k', (128, 32)), ('v', (128, 32)),
                        ('o', (32, 256))):  # fmt: skip
      key = f'model.layers.{layer}.self_attn.{name}_proj.weight'
      weights[key] = np.ones(shape, np.float32)
  factors = rope_factors(theta, 64, factor)
  metadata = {
    'llama.attention.key_length': 64,
    'llama.attention.value_length': 64,
    'llama.rope.dimension_count': 64,
    'llama.rope.freq_base': theta,
  }
  options = {'weights': weights, 'metadata': metadata}
  extra = {'rope_freqs.weight': factors}
  found = config(tiny, tmp_path, extra=extra, **options).rope
  assert found.kind == 'llama3'
  assert (found.factor, found.theta) == (factor, theta)
  assert (found.low_freq_factor, found.high_freq_factor) == (1.0, 4.0)
  assert found.original_max_position_embeddings == 8192
  load.load(tmp_path / 'm.gguf')
  for other in (factors * 1.001, factors[:-1], factors * np.nan):
    extra = {'rope_freqs.weight': other.astype(np.float32)}
    refused(tiny, tmp_path, 'rope_freqs.weight', extra=extra, **options)


def test_special_tokens_outside_the_vocabulary_are_dropped(tiny, tmp_path):
  path = tiny.gguf(
    tmp_path / 'm.gguf', metadata={'tokenizer.ggml.bos_token_id': 99}
  )
  from me_jax.checkpoints import gguf as reader

  assert gguf_config.to_hf(reader.open_file(str(path)))['bos_token_id'] is None


def test_architectures_are_ggufs_own_names():
  assert set(gguf_config.ARCHITECTURES) <= set(gguf.MODEL_ARCH_NAMES.values())
