"""How does each family differ from Llama, in Hugging Face's words?

A family is a `Family`: which fields its configurations may have, what
transformers assumes where they are left out, and two functions between those
fields and ours. The shapes and formulas were read from transformers 5.
"""

from __future__ import annotations

from typing import Any

from me_jax import errors
from me_jax.models import config as config_lib
from me_jax.models import hf_family
from me_jax.models import hf_fields
from me_jax.models import hf_gemma
from me_jax.models import hf_rope


def _every_layer(raw: hf_family.Raw, count: int) -> dict[str, Any]:
  """All layers are windowed when there is a window (Mistral, Phi-3)."""
  size = hf_family.window(raw)
  return hf_family.windows(size, (size is not None,) * count)


def _read_llama(
  raw: hf_family.Raw, common: dict[str, Any], theta: float = 10_000.0
) -> dict[str, Any]:
  bias = hf_fields.flag(raw, 'attention_bias')
  return dict(
    rope=hf_rope.read(raw, common['head_dim'], theta=theta),
    attention_bias=bias,
    attention_out_bias=bias,
    mlp_bias=hf_fields.flag(raw, 'mlp_bias'),
  )


def _write_llama(config: config_lib.ModelConfig) -> dict[str, Any]:
  return hf_rope.write(config.rope) | {
    'attention_bias': config.attention_bias,
    'mlp_bias': config.mlp_bias,
  }


def _read_mistral(raw: hf_family.Raw, common: dict[str, Any]) -> dict[str, Any]:
  return _every_layer(raw, common['num_hidden_layers']) | dict(
    rope=hf_rope.read(raw, common['head_dim'])
  )


def _write_mistral(config: config_lib.ModelConfig) -> dict[str, Any]:
  return hf_rope.write(config.rope) | {'sliding_window': config.sliding_window}


def _read_qwen(raw: hf_family.Raw, common: dict[str, Any]) -> dict[str, Any]:
  count = common['num_hidden_layers']
  window = (
    hf_family.window(raw) if hf_fields.flag(raw, 'use_sliding_window') else None
  )
  layers = hf_family.layer_types(raw, count)
  if layers is None:
    first = raw.get('max_window_layers')
    # Zero is a number of layers too.
    first = 0 if first == 0 else hf_fields.size(raw, 'max_window_layers')
    layers = tuple(window is not None and i >= first for i in range(count))
  return hf_family.windows(window, layers) | dict(
    rope=hf_rope.read(raw, common['head_dim'])
  )


def _read_qwen2(raw: hf_family.Raw, common: dict[str, Any]) -> dict[str, Any]:
  return _read_qwen(raw, common) | dict(attention_bias=True)


def _read_qwen3(raw: hf_family.Raw, common: dict[str, Any]) -> dict[str, Any]:
  bias = hf_fields.flag(raw, 'attention_bias')
  return _read_qwen(raw, common) | dict(
    attention_bias=bias, attention_out_bias=bias, qk_norm='head'
  )


def _write_qwen(config: config_lib.ModelConfig) -> dict[str, Any]:
  types = hf_family.write_layer_types(config)
  windowed = 'sliding_attention' in types
  return hf_rope.write(config.rope) | {
    'use_sliding_window': windowed,
    'sliding_window': config.sliding_window,
    'max_window_layers': (
      types.index('sliding_attention') if windowed else len(types)
    ),
    'layer_types': types,
  }


def _write_qwen3(config: config_lib.ModelConfig) -> dict[str, Any]:
  return _write_qwen(config) | {'attention_bias': config.attention_bias}


def _read_phi3(raw: hf_family.Raw, common: dict[str, Any]) -> dict[str, Any]:
  rope = hf_rope.read(
    raw,
    common['head_dim'],
    partial=True,
    # Names that longrope had before it was published.
    aliases={'su': 'longrope', 'yarn': 'longrope'},
  )
  if rope.kind not in ('default', 'longrope'):
    raise errors.MeJaxError(
      f"rope_type = '{rope.kind}' is not handled for model_type 'phi3'."
    )
  return _every_layer(raw, common['num_hidden_layers']) | dict(
    rope=rope, fused_projections=True
  )


def _write_phi3(config: config_lib.ModelConfig) -> dict[str, Any]:
  rope = config.rope
  result = hf_rope.write(rope) | {'sliding_window': config.sliding_window}
  original = rope.original_max_position_embeddings
  if rope.kind == 'longrope':
    result['original_max_position_embeddings'] = original
    assert original is not None  # This kind is refused without it.
    derived = config.max_position_embeddings / original
    if rope.factor == derived and rope.attention_factor is None:
      # transformers 4 insists on exactly these three.
      result['rope_scaling'] = {
        'type': 'longrope',
        'short_factor': list(rope.short_factor),
        'long_factor': list(rope.long_factor),
      }
    else:
      del result['rope_scaling']  # It could not say the factor.
  return result


def _read_olmo2(raw: hf_family.Raw, common: dict[str, Any]) -> dict[str, Any]:
  bias = hf_fields.flag(raw, 'attention_bias')
  return dict(
    rope=hf_rope.read(raw, common['head_dim']),
    attention_bias=bias,
    attention_out_bias=bias,
    qk_norm='projection',
    norm_placement='post',
    norm_in_float32=True,
    rope_in_float32=True,
  )


def _write_olmo2(config: config_lib.ModelConfig) -> dict[str, Any]:
  return hf_rope.write(config.rope) | {'attention_bias': config.attention_bias}


def _read_smollm3(raw: hf_family.Raw, common: dict[str, Any]) -> dict[str, Any]:
  count = common['num_hidden_layers']
  rotated = hf_fields.layer_flags(
    raw, 'no_rope_layers', count, {1: True, 0: False}
  )
  if rotated is None:
    period = hf_fields.size(raw, 'no_rope_layer_interval')
    rotated = tuple((i + 1) % period != 0 for i in range(count))
  window = (
    hf_family.window(raw) if hf_fields.flag(raw, 'use_sliding_window') else None
  )
  layers = hf_family.layer_types(raw, count)
  if layers is None:
    layers = tuple(window is not None and not r for r in rotated)
  return (
    _read_llama(raw, common, theta=2_000_000.0)
    | hf_family.windows(window, layers)
    | dict(rope_layers=() if all(rotated) else rotated)
  )


def _write_smollm3(config: config_lib.ModelConfig) -> dict[str, Any]:
  rotated = config.rope_layers or (True,) * config.num_hidden_layers
  types = hf_family.write_layer_types(config)
  return _write_llama(config) | {
    'no_rope_layers': [int(r) for r in rotated],
    'use_sliding_window': 'sliding_attention' in types,
    'sliding_window': config.sliding_window,
    'layer_types': types,
  }


_BIASES = {'attention_bias': (False, None), 'mlp_bias': (False, None)}
_NO_WINDOW = {'sliding_window': (None,), 'use_sliding_window': (False, None)}
_QWEN_FIELDS = frozenset(
  {'use_sliding_window', 'sliding_window', 'max_window_layers', 'layer_types'}
)
_QWEN_DEFAULTS = {
  'num_key_value_heads': 32,
  'sliding_window': 4096,
  'max_window_layers': 28,
}
FAMILIES: dict[str, hf_family.Family] = {
  'llama': hf_family.Family(
    architecture='LlamaForCausalLM',
    fields=frozenset({'attention_bias', 'mlp_bias'}),
    inert=_NO_WINDOW,
    read=_read_llama,
    write=_write_llama,
  ),
  'mistral': hf_family.Family(
    architecture='MistralForCausalLM',
    fields=frozenset({'sliding_window'}),
    defaults={'num_key_value_heads': 8, 'sliding_window': 4096},
    inert=_BIASES,
    read=_read_mistral,
    write=_write_mistral,
  ),
  'qwen2': hf_family.Family(
    architecture='Qwen2ForCausalLM',
    fields=_QWEN_FIELDS,
    defaults=_QWEN_DEFAULTS,
    # Its biases are fixed: qkv has them, nothing else does.
    inert={
      'attention_bias': (True, None),
      'mlp_bias': (False, None),
      'use_mrope': (False, None),
    },
    read=_read_qwen2,
    write=_write_qwen,
  ),
  'qwen3': hf_family.Family(
    architecture='Qwen3ForCausalLM',
    fields=_QWEN_FIELDS | {'attention_bias'},
    defaults=_QWEN_DEFAULTS | {'head_dim': 128},
    inert={'mlp_bias': (False, None)},
    read=_read_qwen3,
    write=_write_qwen3,
  ),
  'phi3': hf_family.Family(
    architecture='Phi3ForCausalLM',
    fields=frozenset({'sliding_window', 'partial_rotary_factor'}),
    # It counts even where the scaling names another one.
    defaults={'original_max_position_embeddings': 4096},
    inert=_BIASES
    | {
      'lm_head_bias': (False, None),
      'full_attn_mod': (1, None),
      'interpolate_factor': (1, None),
    },
    read=_read_phi3,
    write=_write_phi3,
  ),
  'olmo2': hf_family.Family(
    architecture='Olmo2ForCausalLM',
    fields=frozenset({'attention_bias'}),
    inert=_NO_WINDOW | {'mlp_bias': (False, None), 'clip_qkv': (None,)},
    read=_read_olmo2,
    write=_write_olmo2,
  ),
  'smollm3': hf_family.Family(
    architecture='SmolLM3ForCausalLM',
    fields=frozenset({
      'attention_bias', 'mlp_bias', 'no_rope_layers', 'no_rope_layer_interval',
      'use_sliding_window', 'sliding_window', 'layer_types',
    }),
    defaults={
      'num_key_value_heads': 4,
      'no_rope_layer_interval': 4,
      'tie_word_embeddings': True,
    },
    read=_read_smollm3,
    write=_write_smollm3,
  ),
} | hf_gemma.GEMMA  # fmt: skip
