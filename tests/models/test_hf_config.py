"""Hugging Face configurations, both spellings, and what is refused."""

from __future__ import annotations

import json

import pytest

import me_jax

LLAMA = {
  'model_type': 'llama', 'vocab_size': 100, 'hidden_size': 32,
  'intermediate_size': 64, 'num_hidden_layers': 2, 'num_attention_heads': 4,
  'num_key_value_heads': 2, 'max_position_embeddings': 128,
  'rms_norm_eps': 1e-5, 'hidden_act': 'silu',
}  # fmt: skip
from_hf = me_jax.ModelConfig.from_hf


def test_both_spellings_of_rope_are_one():
  old = LLAMA | {
    'rope_theta': 5e5,
    'rope_scaling': {
      'type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
      'high_freq_factor': 4.0, 'original_max_position_embeddings': 64,
    },
  }  # fmt: skip
  new = LLAMA | {
    'rope_parameters': {
      'rope_type': 'llama3', 'rope_theta': 5e5, 'factor': 8.0,
      'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
      'original_max_position_embeddings': 64,
    }
  }  # fmt: skip
  assert from_hf(old) == from_hf(new)
  assert from_hf(old).rope.theta == 5e5


def test_missing_optional_fields_have_hf_defaults():
  config = from_hf(
    {k: v for k, v in LLAMA.items() if k != 'num_key_value_heads'}
  )
  assert config.num_key_value_heads == 4 and config.head_dim == 8
  assert config.rope.theta == 10_000 and not config.tie_word_embeddings


def test_round_trip(tmp_path):
  config = from_hf(
    LLAMA | {'eos_token_id': [2, 3], 'tie_word_embeddings': True}
  )
  assert from_hf(config.to_hf()) == config
  (tmp_path / 'config.json').write_text(json.dumps(config.to_hf()))
  assert from_hf(str(tmp_path)) == config


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'model_type': 'lama'}, "mean 'llama'"),
    ({'model_type': None}, 'model_type None'),
    ({'clip_qkv': 8.0}, 'clip_qkv = 8.0'),
    ({'sliding_window': 16}, 'sliding_window = 16'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor'),
    ({'rope_scaling': {'type': 'su', 'factor': 2.0}}, '"su"'),
    (
      {'rope_scaling': {'type': 'linear', 'factor': 2.0, 'x': 1}},
      'rope field x',
    ),
    ({'rope_scaling': {'type': 'llama3', 'factor': 2.0}}, 'lacks'),
    ({'hidden_act': 'relu'}, '"relu"'),
    ({'num_key_value_heads': 3}, 'not a multiple'),
    ({'num_attention_heads': 5}, 'not a multiple'),
    ({'hidden_size': 0}, 'hidden_size = 0'),
    ({'hidden_size': None}, 'lacks hidden_size'),
    ({'num_hidden_layers': True}, 'num_hidden_layers'),
    ({'rms_norm_eps': 'small'}, 'rms_norm_eps'),
    ({'rms_norm_eps': float('inf')}, 'rms_norm_eps'),
    ({'model_type': ['llama']}, 'model_type'),
    ({'rope_scaling': {'type': ['linear']}}, 'rope_type'),
    ({'bos_token_id': [1]}, 'bos_token_id'),
    ({'eos_token_id': {'a': 1}}, 'eos_token_id'),
    ({'tie_word_embeddings': 'false'}, 'tie_word_embeddings'),
    ({'rope_theta': -1.0}, 'rope_theta'),
  ],
)
def test_what_is_not_handled_is_refused_by_name(changes, named):
  with pytest.raises(
    me_jax.MeJaxError, match='(?s)' + named.replace('(', r'\(')
  ):
    from_hf(LLAMA | changes)


def test_harmless_fields_are_accepted():
  from_hf(
    LLAMA
    | {
      'torch_dtype': 'bfloat16', 'use_cache': True, 'pretraining_tp': 1,
      'transformers_version': '4.40.0', 'attention_dropout': 0.0,
      'architectures': ['LlamaForCausalLM'], 'initializer_range': 0.02,
    }
  )  # fmt: skip


def test_unreadable_files_are_named(tmp_path):
  with pytest.raises(me_jax.MeJaxError, match='config.json'):
    from_hf(str(tmp_path))
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(me_jax.MeJaxError, match='not valid JSON'):
    from_hf(str(tmp_path))
  (tmp_path / 'config.json').write_text('[]')
  with pytest.raises(me_jax.MeJaxError, match='object'):
    from_hf(str(tmp_path))
