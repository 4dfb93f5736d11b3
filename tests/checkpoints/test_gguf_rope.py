"""Rotary embeddings as the metadata of GGUF files describe them."""

from __future__ import annotations

import numpy as np
import pytest

from me_jax import errors
from me_jax.checkpoints import load
from tests.support import gguf_models
from tests.support import gguf_writer


def opened(path):
  return load.open_checkpoint(path).config


def refused(path, *words):
  with pytest.raises(errors.MeJaxError) as caught:
    load.open_checkpoint(path)
  for word in words:
    assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize('factor', [8.0, 32.0])
@pytest.mark.parametrize('theta', [1e4, 5e5])
def test_llama3_scaling_is_recovered_from_its_factors(tmp_path, theta, factor):
  path = tmp_path / 'm.gguf'
  scaling = gguf_models.LLAMA3 | {'rope_theta': theta, 'factor': factor}
  # Wide heads, so that factors of all three kinds occur.
  model = gguf_models.build('llama', rope_parameters=scaling, head_dim=64)
  gguf_writer.write(model, path)
  found = opened(path).rope
  assert found.kind == 'llama3'
  assert (found.factor, found.theta) == (factor, theta)
  assert (found.low_freq_factor, found.high_freq_factor) == (1.0, 4.0)
  assert found.original_max_position_embeddings == 8192
  for edit in (lambda x: x * 1.001, lambda x: x[:-1], lambda x: x * np.nan):

    def change(tensors, edit=edit):
      name = 'rope_freqs.weight'
      tensors[name] = edit(tensors[name]).astype(np.float32)

    gguf_writer.write(model, path, change=change)
    refused(path, 'rope_freqs.weight')


def test_heads_of_a_billion_dimensions_are_refused_at_once(tmp_path):
  path = tmp_path / 'm.gguf'
  keys = ('attention.key_length', 'attention.value_length',
          'rope.dimension_count')  # fmt: skip
  huge = dict.fromkeys(keys, 2**32 - 2)
  gguf_writer.write(gguf_models.build('llama llama3'), path, metadata=huge)
  refused(path, 'rope_freqs.weight')


def test_scaling_twice_is_refused(tmp_path):
  path = tmp_path / 'm.gguf'
  model = gguf_models.build('llama llama3')
  gguf_writer.write(model, path, metadata={'rope.scaling.factor': 2.0})
  refused(path, 'rope_freqs.weight', 'twice')


def test_factors_of_phi3_must_be_complete_and_explained(tmp_path):
  path = tmp_path / 'm.gguf'
  model = gguf_models.build('phi3 longrope')

  def without(name):
    return lambda tensors: tensors.pop(name)

  def short(tensors):
    tensors['rope_factors_short.weight'] = np.ones(5, np.float32)

  for change, drop, word in (
    (without('rope_factors_long.weight'), (), 'rope_factors_long'),
    (without('rope_factors_short.weight'), (), 'rope_factors_short'),
    (short, (), 'rope_factors_short'),
    (dict, ['rope.scaling.attn_factor'], 'rope.scaling.attn_factor'),
    (dict, ['rope.scaling.original_context_length'], 'original_context'),
  ):
    gguf_writer.write(model, path, change=change, drop=drop)
    refused(path, word)
  plain = gguf_models.build('phi3')
  for key, value in (
    ('rope.scaling.type', 'longrope'),
    ('rope.scaling.type', 'linear'),
    ('rope.scaling.factor', 2.0),
    ('rope.dimension_count', 15),
  ):
    gguf_writer.write(plain, path, metadata={key: value})
    refused(path, key)


def test_an_unusual_attention_factor_of_phi3_is_kept(tmp_path):
  path = tmp_path / 'm.gguf'
  model = gguf_models.build('phi3 longrope')
  gguf_writer.write(model, path)
  assert opened(path).rope.attention_factor is None
  key = 'rope.scaling.attn_factor'
  gguf_writer.write(model, path, metadata={key: 1.5})
  assert opened(path).rope.attention_factor == 1.5


def test_every_share_of_a_head_can_be_rotated(tmp_path):
  # 44 * (30 / 44) is less than 30 in floating point.
  path = tmp_path / 'm.gguf'
  model = gguf_models.build('phi3', hidden_size=176)
  gguf_writer.write(model, path, metadata={'rope.dimension_count': 30})
  found = opened(path)
  assert int(found.head_dim * found.rope.partial_rotary_factor) == 30


def test_yarn_without_a_shared_meaning_is_refused(tmp_path):
  path = tmp_path / 'm.gguf'
  model = gguf_models.build('qwen2 yarn')
  plain = 1 + 0.1 * np.log(4.0)
  for key, value in (
    ('rope.scaling.yarn_ext_factor', 1.0),
    ('rope.scaling.yarn_attn_factor', float(plain)),
  ):
    gguf_writer.write(model, path, metadata={key: value})
    assert opened(path).rope.kind == 'yarn'
  for key, value in (
    ('rope.scaling.yarn_ext_factor', 0.5),
    ('rope.scaling.yarn_attn_factor', 1.0),
  ):
    gguf_writer.write(model, path, metadata={key: value})
    refused(path, key)


def test_a_factor_without_a_type_is_linear(tmp_path):
  path = tmp_path / 'm.gguf'
  for key in ('rope.scaling.factor', 'rope.scale_linear'):
    gguf_writer.write(gguf_models.build('qwen2'), path, metadata={key: 4.0})
    rope = opened(path).rope
    assert (rope.kind, rope.factor) == ('linear', 4.0)
