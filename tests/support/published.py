"""Configurations of published models, and how many parameters they have.

As their makers published them on the Hugging Face hub, in the spelling of
their time, odd fields included, long lists shortened by arithmetic. Counts are
those of the published weights (of the text model, where there are images too),
and equal transformers' own models built on its meta device.
"""

from __future__ import annotations

from typing import Any

_LLAMA31 = {
  'architectures': ['LlamaForCausalLM'], 'attention_bias': False,
  'attention_dropout': 0.0, 'bos_token_id': 128000, 'eos_token_id': 128001,
  'hidden_act': 'silu', 'initializer_range': 0.02,
  'max_position_embeddings': 131072, 'mlp_bias': False, 'model_type': 'llama',
  'num_key_value_heads': 8, 'pretraining_tp': 1, 'rms_norm_eps': 1e-05,
  'rope_scaling': {
    'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192, 'rope_type': 'llama3',
  },
  'rope_theta': 500000.0, 'tie_word_embeddings': False,
  'torch_dtype': 'bfloat16', 'transformers_version': '4.43.0.dev0',
  'use_cache': True, 'vocab_size': 128256,
}  # fmt: skip
_MISTRAL = {
  'architectures': ['MistralForCausalLM'], 'bos_token_id': 1, 'eos_token_id': 2,
  'hidden_act': 'silu', 'initializer_range': 0.02, 'model_type': 'mistral',
  'num_attention_heads': 32, 'num_key_value_heads': 8, 'rms_norm_eps': 1e-05,
  'tie_word_embeddings': False, 'torch_dtype': 'bfloat16', 'use_cache': True,
  'intermediate_size': 14336,
}  # fmt: skip
_QWEN2 = {
  'architectures': ['Qwen2ForCausalLM'], 'attention_dropout': 0.0,
  'bos_token_id': 151643, 'eos_token_id': 151645, 'hidden_act': 'silu',
  'initializer_range': 0.02, 'max_position_embeddings': 32768,
  'model_type': 'qwen2', 'rms_norm_eps': 1e-06, 'rope_theta': 1000000.0,
  'torch_dtype': 'bfloat16', 'transformers_version': '4.43.1',
  'use_cache': True, 'use_sliding_window': False,
}  # fmt: skip
_QWEN3 = {
  'architectures': ['Qwen3ForCausalLM'], 'attention_bias': False,
  'attention_dropout': 0.0, 'bos_token_id': 151643, 'eos_token_id': 151645,
  'head_dim': 128, 'hidden_act': 'silu', 'initializer_range': 0.02,
  'max_position_embeddings': 40960, 'model_type': 'qwen3',
  'num_key_value_heads': 8, 'rms_norm_eps': 1e-06, 'rope_scaling': None,
  'rope_theta': 1000000, 'sliding_window': None, 'torch_dtype': 'bfloat16',
  'transformers_version': '4.51.0', 'use_cache': True,
  'use_sliding_window': False, 'vocab_size': 151936,
}  # fmt: skip
_PHI3_MINI = {
  'architectures': ['Phi3ForCausalLM'], 'attention_dropout': 0.0,
  'auto_map': {'AutoConfig': 'configuration_phi3.Phi3Config'},
  'bos_token_id': 1, 'embd_pdrop': 0.0, 'eos_token_id': 32000,
  'hidden_act': 'silu', 'hidden_size': 3072, 'initializer_range': 0.02,
  'intermediate_size': 8192, 'model_type': 'phi3', 'num_attention_heads': 32,
  'num_hidden_layers': 32, 'num_key_value_heads': 32,
  'original_max_position_embeddings': 4096, 'pad_token_id': 32000,
  'resid_pdrop': 0.0, 'rms_norm_eps': 1e-05, 'rope_theta': 10000.0,
  'tie_word_embeddings': False, 'torch_dtype': 'bfloat16', 'use_cache': True,
  'attention_bias': False, 'vocab_size': 32064,
}  # fmt: skip
_GEMMA2 = {
  'architectures': ['Gemma2ForCausalLM'], 'attention_bias': False,
  'attention_dropout': 0.0, 'attn_logit_softcapping': 50.0, 'bos_token_id': 2,
  'cache_implementation': 'hybrid', 'eos_token_id': 1,
  'final_logit_softcapping': 30.0, 'head_dim': 256,
  'hidden_act': 'gelu_pytorch_tanh', 'hidden_activation': 'gelu_pytorch_tanh',
  'initializer_range': 0.02, 'max_position_embeddings': 8192,
  'model_type': 'gemma2', 'pad_token_id': 0, 'query_pre_attn_scalar': 256,
  'rms_norm_eps': 1e-06, 'rope_theta': 10000.0, 'sliding_window': 4096,
  'torch_dtype': 'float32', 'use_cache': True, 'vocab_size': 256000,
}  # fmt: skip
_VISION = {
  'hidden_size': 1152, 'image_size': 896, 'intermediate_size': 4304,
  'model_type': 'siglip_vision_model', 'num_attention_heads': 16,
  'num_hidden_layers': 27, 'patch_size': 14, 'vision_use_head': False,
}  # fmt: skip
_GEMMA3 = {
  'architectures': ['Gemma3ForConditionalGeneration'],
  'boi_token_index': 255999, 'eoi_token_index': 256000, 'eos_token_id': [1, 106],
  'image_token_index': 262144, 'initializer_range': 0.02,
  'mm_tokens_per_image': 256, 'model_type': 'gemma3', 'torch_dtype': 'bfloat16',
  'transformers_version': '4.50.0.dev0', 'vision_config': _VISION,
}  # fmt: skip


def _ramp(count: int, last: float) -> list[float]:
  """Stands for a list of searched divisors."""
  return [1.0 + i * (last - 1.0) / (count - 1) for i in range(count)]


MODELS: dict[str, tuple[dict[str, Any], int]] = {
  'Llama-2-7b': (
    {
      'architectures': ['LlamaForCausalLM'], 'bos_token_id': 1,
      'eos_token_id': 2, 'hidden_act': 'silu', 'hidden_size': 4096,
      'initializer_range': 0.02, 'intermediate_size': 11008,
      'max_position_embeddings': 4096, 'model_type': 'llama',
      'num_attention_heads': 32, 'num_hidden_layers': 32,
      'num_key_value_heads': 32, 'pretraining_tp': 1, 'rms_norm_eps': 1e-05,
      'rope_scaling': None, 'tie_word_embeddings': False,
      'torch_dtype': 'float16', 'use_cache': True, 'vocab_size': 32000,
    },
    6_738_415_616,
  ),
  'Llama-3.1-8B': (
    _LLAMA31 | {
      'hidden_size': 4096, 'intermediate_size': 14336,
      'num_attention_heads': 32, 'num_hidden_layers': 32,
    },
    8_030_261_248,
  ),
  'Llama-3.1-70B': (
    _LLAMA31 | {
      'hidden_size': 8192, 'intermediate_size': 28672,
      'num_attention_heads': 64, 'num_hidden_layers': 80,
    },
    70_553_706_496,
  ),
  'SmolLM3-3B': (
    {
      'architectures': ['SmolLM3ForCausalLM'], 'attention_bias': False,
      'attention_dropout': 0.0, 'bos_token_id': None, 'eos_token_id': 128012,
      'hidden_act': 'silu', 'hidden_size': 2048, 'initializer_range': 0.02,
      'intermediate_size': 11008, 'layer_types': ['full_attention'] * 36,
      'max_position_embeddings': 65536, 'max_window_layers': 28,
      'mlp_bias': False, 'model_type': 'smollm3', 'no_rope_layer_interval': 4,
      'no_rope_layers': [1, 1, 1, 0] * 9, 'num_attention_heads': 16,
      'num_hidden_layers': 36, 'num_key_value_heads': 4, 'pad_token_id': 128004,
      'pretraining_tp': 2, 'rms_norm_eps': 1e-06, 'rope_scaling': None,
      'rope_theta': 5000000.0, 'sliding_window': None,
      'torch_dtype': 'bfloat16', 'transformers_version': '4.54.0.dev0',
      'use_cache': False, 'use_sliding_window': False, 'vocab_size': 128256,
    },
    3_075_098_624,
  ),
  'Mistral-7B-v0.1': (
    _MISTRAL | {
      'hidden_size': 4096, 'max_position_embeddings': 32768,
      'num_hidden_layers': 32, 'rope_theta': 10000.0, 'sliding_window': 4096,
      'vocab_size': 32000,
    },
    7_241_732_096,
  ),
  'Mistral-7B-v0.3': (
    _MISTRAL | {
      'hidden_size': 4096, 'max_position_embeddings': 32768,
      'num_hidden_layers': 32, 'rope_theta': 1000000.0, 'sliding_window': None,
      'vocab_size': 32768,
    },
    7_248_023_552,
  ),
  'Mistral-Nemo-2407': (
    _MISTRAL | {
      'attention_dropout': 0.0, 'head_dim': 128, 'hidden_size': 5120,
      'max_position_embeddings': 131072, 'num_hidden_layers': 40,
      'rope_theta': 1000000.0, 'sliding_window': None, 'vocab_size': 131072,
    },
    12_247_782_400,
  ),
  'Qwen2.5-0.5B': (
    _QWEN2 | {
      'hidden_size': 896, 'intermediate_size': 4864, 'max_window_layers': 24,
      'num_attention_heads': 14, 'num_hidden_layers': 24,
      'num_key_value_heads': 2, 'sliding_window': 32768,
      'tie_word_embeddings': True, 'use_mrope': False, 'vocab_size': 151936,
    },
    494_032_768,
  ),
  'Qwen2.5-7B': (
    _QWEN2 | {
      'hidden_size': 3584, 'intermediate_size': 18944, 'max_window_layers': 28,
      'num_attention_heads': 28, 'num_hidden_layers': 28,
      'num_key_value_heads': 4, 'sliding_window': 131072,
      'tie_word_embeddings': False, 'vocab_size': 152064,
    },
    7_615_616_512,
  ),
  'Qwen3-4B': (
    _QWEN3 | {
      'hidden_size': 2560, 'intermediate_size': 9728, 'max_window_layers': 36,
      'num_attention_heads': 32, 'num_hidden_layers': 36,
      'tie_word_embeddings': True,
    },
    4_022_468_096,
  ),
  'Qwen3-8B': (
    _QWEN3 | {
      'hidden_size': 4096, 'intermediate_size': 12288, 'max_window_layers': 36,
      'num_attention_heads': 32, 'num_hidden_layers': 36,
      'tie_word_embeddings': False,
    },
    8_190_735_360,
  ),
  'Qwen3-14B': (
    _QWEN3 | {
      'hidden_size': 5120, 'intermediate_size': 17408, 'max_window_layers': 40,
      'num_attention_heads': 40, 'num_hidden_layers': 40,
      'tie_word_embeddings': False,
    },
    14_768_307_200,
  ),
  'Phi-3-mini-4k': (
    _PHI3_MINI | {
      'max_position_embeddings': 4096, 'rope_scaling': None,
      'sliding_window': 2047,
    },
    3_821_079_552,
  ),
  'Phi-3.5-mini': (
    _PHI3_MINI | {
      'max_position_embeddings': 131072, 'sliding_window': 262144,
      'rope_scaling': {
        'type': 'longrope', 'short_factor': _ramp(48, 3.0),
        'long_factor': _ramp(48, 65.0),
      },
    },
    3_821_079_552,
  ),
  'Phi-4': (
    {
      'architectures': ['Phi3ForCausalLM'], 'attention_bias': False,
      'attention_dropout': 0.0, 'bos_token_id': 100257, 'embd_pdrop': 0.0,
      'eos_token_id': 100265, 'hidden_act': 'silu', 'hidden_size': 5120,
      'initializer_range': 0.02, 'intermediate_size': 17920,
      'max_position_embeddings': 16384, 'model_type': 'phi3',
      'num_attention_heads': 40, 'num_hidden_layers': 40,
      'num_key_value_heads': 10, 'original_max_position_embeddings': 16384,
      'pad_token_id': 100349, 'resid_pdrop': 0.0, 'rms_norm_eps': 1e-05,
      'rope_scaling': None, 'rope_theta': 250000, 'sliding_window': None,
      'tie_word_embeddings': False, 'torch_dtype': 'bfloat16',
      'use_cache': True, 'vocab_size': 100352,
    },
    14_659_507_200,
  ),
  'Phi-4-mini': (
    {
      'architectures': ['Phi3ForCausalLM'], 'attention_bias': False,
      'attention_dropout': 0.0, 'bos_token_id': 199999, 'embd_pdrop': 0.0,
      'eos_token_id': 199999, 'full_attn_mod': 1, 'hidden_act': 'silu',
      'hidden_size': 3072, 'initializer_range': 0.02,
      'intermediate_size': 8192, 'interpolate_factor': 1,
      'lm_head_bias': False, 'max_position_embeddings': 131072,
      'mlp_bias': False, 'model_type': 'phi3', 'num_attention_heads': 24,
      'num_hidden_layers': 32, 'num_key_value_heads': 8,
      'original_max_position_embeddings': 4096, 'pad_token_id': 199999,
      'partial_rotary_factor': 0.75, 'resid_pdrop': 0.0, 'rms_norm_eps': 1e-05,
      'rope_scaling': {
        'type': 'longrope', 'short_factor': [1] * 48,
        'long_factor': _ramp(48, 47.0),
      },
      'rope_theta': 10000.0, 'sliding_window': 262144,
      'tie_word_embeddings': True, 'torch_dtype': 'bfloat16',
      'use_cache': True, 'vocab_size': 200064,
    },
    3_836_021_760,
  ),
  'Gemma-2-2b': (
    _GEMMA2 | {
      'hidden_size': 2304, 'intermediate_size': 9216, 'num_attention_heads': 8,
      'num_hidden_layers': 26, 'num_key_value_heads': 4,
    },
    2_614_341_888,
  ),
  'Gemma-2-27b': (
    _GEMMA2 | {
      'head_dim': 128, 'hidden_size': 4608, 'intermediate_size': 36864,
      'num_attention_heads': 32, 'num_hidden_layers': 46,
      'num_key_value_heads': 16, 'query_pre_attn_scalar': 144,
    },
    27_227_128_320,
  ),
  'Gemma-3-1b': (
    {
      'architectures': ['Gemma3ForCausalLM'], 'attention_bias': False,
      'attention_dropout': 0.0, 'attn_logit_softcapping': None,
      'bos_token_id': 2, 'cache_implementation': 'hybrid',
      'eos_token_id': [1, 106], 'final_logit_softcapping': None,
      'head_dim': 256, 'hidden_activation': 'gelu_pytorch_tanh',
      'hidden_size': 1152, 'initializer_range': 0.02,
      'intermediate_size': 6912, 'max_position_embeddings': 32768,
      'model_type': 'gemma3_text', 'num_attention_heads': 4,
      'num_hidden_layers': 26, 'num_key_value_heads': 1, 'pad_token_id': 0,
      'query_pre_attn_scalar': 256, 'rms_norm_eps': 1e-06,
      'rope_local_base_freq': 10000, 'rope_scaling': None,
      'rope_theta': 1000000, 'sliding_window': 512,
      'sliding_window_pattern': 6, 'torch_dtype': 'bfloat16',
      'transformers_version': '4.50.0.dev0', 'use_cache': True,
      'vocab_size': 262144,
    },
    999_885_952,
  ),
  'Gemma-3-4b': (
    _GEMMA3 | {
      'text_config': {
        'hidden_size': 2560, 'intermediate_size': 10240,
        'model_type': 'gemma3_text', 'num_hidden_layers': 34,
        'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
        'sliding_window': 1024,
      },
    },
    3_880_263_168,
  ),
  'Gemma-3-27b': (
    _GEMMA3 | {
      'text_config': {
        'head_dim': 128, 'hidden_size': 5376, 'intermediate_size': 21504,
        'model_type': 'gemma3_text', 'num_attention_heads': 32,
        'num_hidden_layers': 62, 'num_key_value_heads': 16,
        'query_pre_attn_scalar': 168,
        'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
        'sliding_window': 1024,
      },
    },
    27_009_346_304,
  ),
  'OLMo-2-1124-7B': (
    {
      'architectures': ['Olmo2ForCausalLM'], 'attention_bias': False,
      'attention_dropout': 0.0, 'eos_token_id': 100257, 'hidden_act': 'silu',
      'hidden_size': 4096, 'initializer_range': 0.02,
      'intermediate_size': 11008, 'max_position_embeddings': 4096,
      'model_type': 'olmo2', 'num_attention_heads': 32,
      'num_hidden_layers': 32, 'num_key_value_heads': 32,
      'pad_token_id': 100277, 'rms_norm_eps': 1e-06, 'rope_scaling': None,
      'rope_theta': 500000, 'tie_word_embeddings': False,
      'torch_dtype': 'float32', 'transformers_version': '4.47.0.dev0',
      'use_cache': False, 'vocab_size': 100352,
    },
    7_298_617_344,
  ),
}  # fmt: skip
