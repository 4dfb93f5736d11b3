"""Tiny models of every architecture that GGUF files are read of."""

from __future__ import annotations

from typing import Any

from tests.support import tiny

SIZES = dict(
  vocab_size=96,
  hidden_size=64,
  intermediate_size=96,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=512,
  sliding_window=None,
  pad_token_id=None,
  query_pre_attn_scalar=32,
  head_dim=32,
)
YARN = {
  'rope_type': 'yarn',
  'rope_theta': 5e5,
  'factor': 4.0,
  'original_max_position_embeddings': 128,
  'beta_fast': 24.0,
}
LLAMA3 = {
  'rope_type': 'llama3',
  'rope_theta': 5e5,
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 8192,
}
LINEAR = {'rope_type': 'linear', 'rope_theta': 1e4, 'factor': 3.0}
LONGROPE = {
  'rope_type': 'longrope',
  'rope_theta': 1e4,
  'partial_rotary_factor': 0.75,
  'short_factor': [1.0 + 0.1 * i for i in range(6)],
  'long_factor': [2.0 + 0.3 * i for i in range(6)],
  'original_max_position_embeddings': 128,
}
PHI3 = {'head_dim': None, 'original_max_position_embeddings': 128}
GEMMA = {'sliding_window': 40, 'tie_word_embeddings': True}
GEMMA3_ROPE = {
  'full_attention': {
    'rope_type': 'linear',
    'rope_theta': 1e6,
    'factor': 8.0,
  },
  'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4},
}
MODELS = {
  'llama': {'head_dim': 16},
  'llama tied': {'tie_word_embeddings': True},
  'llama biased': {'attention_bias': True, 'mlp_bias': True},
  'llama llama3': {'rope_parameters': LLAMA3, 'head_dim': 64},
  'llama linear': {'rope_parameters': LINEAR},
  'qwen2': {'use_sliding_window': False, 'head_dim': None},
  'qwen2 yarn': {
    'use_sliding_window': False,
    'head_dim': None,
    'rope_parameters': YARN,
    'tie_word_embeddings': True,
  },
  'qwen3': {'num_hidden_layers': 2},
  'phi3': PHI3 | {'sliding_window': 40},
  'phi3 longrope': PHI3 | {'rope_parameters': LONGROPE},
  'phi3 tied': PHI3 | {'tie_word_embeddings': True},
  'gemma2': GEMMA | {'num_hidden_layers': 4},
  'gemma3_text': GEMMA | {'num_hidden_layers': 7, 'layer_types': None},
  'gemma3_text linear': GEMMA
  | {
    'num_hidden_layers': 6,
    'layer_types': None,
    'rope_parameters': GEMMA3_ROPE,
    'final_logit_softcapping': None,
    'tie_word_embeddings': False,
  },
  'olmo2': {'head_dim': None},
  'smollm3': {'num_hidden_layers': 5, 'no_rope_layers': None, 'head_dim': None},
  'smollm3 biased': {
    'num_hidden_layers': 4,
    'no_rope_layers': None,
    'head_dim': None,
    'attention_bias': True,
  },
}
# One of each architecture.
FAMILIES = [name for name in MODELS if ' ' not in name]


def build(name: str, **overrides: Any) -> Any:
  """Returns a random `transformers` model, `name` a key of `MODELS`."""
  family = name.split()[0]
  values = SIZES | MODELS[name] | overrides
  if not family.startswith('gemma'):
    del values['query_pre_attn_scalar']
  if values['head_dim'] is None:
    del values['head_dim']
  return tiny.hf_model(family, **values)
