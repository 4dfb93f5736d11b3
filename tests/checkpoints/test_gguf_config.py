"""Metadata of GGUF files as configurations."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest

from me_jax import errors
from me_jax.checkpoints import gguf_config
from me_jax.checkpoints import load
from tests.support import gguf_models
from tests.support import gguf_writer


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


def test_special_tokens_outside_the_vocabulary_are_dropped(tiny, tmp_path):
  path = tiny.gguf(
    tmp_path / 'm.gguf', metadata={'tokenizer.ggml.bos_token_id': 99}
  )
  from me_jax.checkpoints import gguf as reader

  assert gguf_config.to_hf(reader.open_file(str(path)))['bos_token_id'] is None


def test_architectures_are_ggufs_own_names():
  assert set(gguf_config.ARCHITECTURES) <= set(gguf.MODEL_ARCH_NAMES.values())


# Models of other architectures.


def opened(path):
  return load.open_checkpoint(path).config


def not_read(path, *words):
  with pytest.raises(errors.MeJaxError) as caught:
    load.open_checkpoint(path)
  for word in words:
    assert word in str(caught.value), str(caught.value)


def test_one_of_several_parts_is_told_so(tmp_path):
  path = tmp_path / 'm.gguf'
  writer = gguf.GGUFWriter(path, 'qwen2')
  writer.add_uint16('split.count', 3)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  not_read(path, 'one of 3 parts')


def test_the_first_files_of_gemma2_lack_caps_and_window(tmp_path):
  model = gguf_models.build('gemma2')
  caps = ['attn_logit_softcapping', 'final_logit_softcapping']
  path = tmp_path / 'm.gguf'
  gguf_writer.write(model, path, drop=[*caps, 'attention.sliding_window'])
  found = opened(path)
  assert found.attn_logit_softcapping == 50.0
  assert found.final_logit_softcapping == 30.0
  assert found.sliding_window == 4096


@pytest.mark.parametrize(
  ('name', 'layers', 'scale'), [('gemma2', 46, 16), ('gemma3_text', 62, 16)]
)
def test_gemmas_largest_models_scale_scores_by_their_width(
  name, layers, scale, tmp_path
):
  model = gguf_models.build(name, num_hidden_layers=2, layer_types=None)
  path = tmp_path / 'm.gguf'

  def deepen(tensors):
    block = {k: v for k, v in tensors.items() if k.startswith('blk.0.')}
    for layer in range(2, layers):
      for key, value in block.items():
        tensors[key.replace('blk.0.', f'blk.{layer}.')] = value

  deep = {'block_count': layers}
  gguf_writer.write(model, path, change=deepen, metadata=deep)
  # D / N rather than the head's 32.
  assert opened(path).query_pre_attn_scalar == scale
  gguf_writer.write(model, path)
  assert opened(path).query_pre_attn_scalar == 32


@pytest.mark.parametrize('name', ['gemma2', 'gemma3_text'])
def test_a_scale_that_cannot_be_known_is_refused(name, tmp_path):
  model = gguf_models.build(name, head_dim=128)
  gguf_writer.write(model, tmp_path / 'm.gguf')
  not_read(tmp_path / 'm.gguf', 'block_count', 'cannot be known')


def test_gemma_may_spell_out_which_layers_have_windows(tmp_path):
  path = tmp_path / 'm.gguf'
  pattern = [True, False, False, True]
  key = 'attention.sliding_window_pattern'
  model = gguf_models.build('gemma2')
  gguf_writer.write(model, path, metadata={key: pattern})
  assert opened(path).layer_windowed == tuple(pattern)
  gguf_writer.write(model, path, metadata={key: 3})
  assert opened(path).layer_windowed == (True, True, False, True)
  gguf_writer.write(model, path, metadata={key: pattern[1:]})
  not_read(path, key)


def test_gemma3_may_have_its_own_local_base_or_no_windows(tmp_path):
  path = tmp_path / 'm.gguf'
  model = gguf_models.build('gemma3_text')
  gguf_writer.write(model, path, metadata={'rope.freq_base_swa': 2e4})
  assert opened(path).rope_local.theta == 2e4
  gguf_writer.write(model, path, drop=['attention.sliding_window'])
  assert not any(opened(path).layer_windowed)
  gguf_writer.write(model, path, drop=['rope.freq_base'])
  not_read(path, 'rope.freq_base')


def test_windows_that_no_reader_would_apply_are_refused(tmp_path):
  for name in ('llama', 'qwen2', 'qwen3', 'olmo2', 'smollm3'):
    path = tmp_path / f'{name}.gguf'
    model = gguf_models.build(name)
    key = 'attention.sliding_window'
    gguf_writer.write(model, path, metadata={key: 40})
    not_read(path, key, '40')
    gguf_writer.write(model, path, metadata={key: 0})
    assert opened(path).sliding_window is None


@pytest.mark.parametrize(
  ('layers', 'context', 'kv_heads', 'window'),
  [(32, 4096, 32, 2047), (40, 4096, 10, 2047), (32, 131072, 32, 262144),
   (40, 131072, 10, 131072), (32, 131072, 8, None), (3, 4096, 8, None)],
)  # fmt: skip
def test_the_first_files_of_phi3_lack_their_window(
  layers, context, kv_heads, window, tmp_path
):
  path = tmp_path / 'm.gguf'
  heads = 4 * kv_heads if kv_heads == 10 else 32
  model = gguf_models.build(
    'phi3',
    hidden_size=2 * heads,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=kv_heads,
    max_position_embeddings=context,
  )
  gguf_writer.write(model, path, drop=['attention.sliding_window'])
  if window is None:
    not_read(path, 'attention.sliding_window')
  else:
    assert opened(path).sliding_window == window


@pytest.mark.parametrize('name', gguf_models.FAMILIES)
def test_a_billion_layers_are_refused_at_once(name, tmp_path):
  path = tmp_path / 'm.gguf'
  model = gguf_models.build(name)
  gguf_writer.write(model, path, metadata={'block_count': 2**32 - 1})
  not_read(path, 'block_count', 'tensors')


@pytest.mark.parametrize('name', gguf_models.FAMILIES)
@pytest.mark.parametrize(
  'key',
  ['block_count', 'attention.head_count', 'attention.sliding_window',
   'attention.layer_norm_rms_epsilon', 'rope.scaling.type', 'rope.freq_base',
   'rope.scaling.factor', 'attention.causal', 'expert_count', 'vocab_size'],
)  # fmt: skip
def test_lists_and_texts_in_place_of_numbers_are_refused(name, key, tmp_path):
  path = tmp_path / 'm.gguf'
  model = gguf_models.build(name)
  for value in ([1, 2], [0.5], '\0'):
    gguf_writer.write(model, path, metadata={key: value})
    not_read(path, key)


def test_a_part_count_of_a_wrong_type_is_refused(tiny, tmp_path):
  refused(tiny, tmp_path, 'parts', metadata={'split.count': [1, 2]})
