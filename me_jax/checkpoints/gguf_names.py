"""Which tensor of a GGUF file does each parameter come from?

All architectures share llama.cpp's names; a norm's name says where in the
block it stands, so it belongs to different modules of ours in different
families. What the converters do to the values is undone by `names.Origin`.
"""

from __future__ import annotations

import dataclasses
import re

from me_jax.checkpoints import gguf_rope
from me_jax.checkpoints import names
from me_jax.models import config as config_lib

_TOP = {
  'embed_tokens': 'token_embd',
  'norm': 'output_norm',
  'lm_head': 'output',
}
_PROJECTIONS = {
  'self_attn/q_proj': 'attn_q',
  'self_attn/k_proj': 'attn_k',
  'self_attn/v_proj': 'attn_v',
  'self_attn/o_proj': 'attn_output',
  'mlp/gate_proj': 'ffn_gate',
  'mlp/up_proj': 'ffn_up',
  'mlp/down_proj': 'ffn_down',
}
_PRE_NORMS = {
  'input_layernorm': 'attn_norm',
  'post_attention_layernorm': 'ffn_norm',
}
_POST_NORMS = {
  'post_attention_layernorm': 'post_attention_norm',
  'post_feedforward_layernorm': 'post_ffw_norm',
}
_SANDWICH_NORMS = {
  'input_layernorm': 'attn_norm',
  'pre_feedforward_layernorm': 'ffn_norm',
  **_POST_NORMS,
}
_QK_NORMS = {
  'self_attn/q_norm': 'attn_q_norm',
  'self_attn/k_norm': 'attn_k_norm',
}
# By Hugging Face's name of the family.
_NORMS = {
  'llama': _PRE_NORMS,
  'qwen2': _PRE_NORMS,
  'qwen3': _PRE_NORMS | _QK_NORMS,
  'phi3': _PRE_NORMS,
  'gemma2': _SANDWICH_NORMS,
  'gemma3_text': _SANDWICH_NORMS | _QK_NORMS,
  'olmo2': _POST_NORMS | _QK_NORMS,
  'smollm3': _PRE_NORMS,
}
# ggml rotates neighbours in these, half against half in all others.
_NEIGHBOURS = ('llama', 'smollm3')
_ROTATED = ('layers/self_attn/q_proj/', 'layers/self_attn/k_proj/')
# What these tensors say is in the configuration by now.
_HARMLESS = {
  'llama': (gguf_rope.LLAMA3_FACTORS,),
  'smollm3': (gguf_rope.LLAMA3_FACTORS,),
  'phi3': (gguf_rope.LONG_FACTORS, gguf_rope.SHORT_FACTORS),
}


def gguf_table(config: config_lib.ModelConfig) -> names.NameTable:
  """Returns the table of GGUF files.

  Args:
    config: of the model, of a family that `gguf_config.to_hf` returns.
  """
  family = config.model_type
  modules = dict(_TOP)
  for module, name in (_PROJECTIONS | _NORMS[family]).items():
    modules[f'layers/{module}'] = f'blk.{{layer}}.{name}'
  origins = names.module_origins(modules)
  if config.fused_projections:
    origins |= names.fused_origins(
      config, 'blk.{layer}.attn_qkv', 'blk.{layer}.ffn_up'
    )
  for path, origin in origins.items():
    if path.endswith('norm/weight') and config.norm_offset:
      # The weight is stored as it is applied: 1 + w, where ours is w.
      origin = dataclasses.replace(origin, offset=-config.norm_offset)
    if path.startswith(_ROTATED) and family in _NEIGHBOURS:
      origin = dataclasses.replace(origin, rotary_rows=config.head_dim)
    origins[path] = origin
  harmless = '|'.join(map(re.escape, _HARMLESS.get(family, ())))
  # Without any, only the empty name, which no tensor has.
  return names.NameTable(origins=origins, harmless=re.compile(harmless))
