"""How do Gemma 2 and 3 differ from Llama, in Hugging Face's words?

Norm weights stored less one, four norms a block, a scaled embedding, capped
scores and logits, and windows in most layers; Gemma 3 rotates windowed layers
by another base.
"""

from __future__ import annotations

from typing import Any

from me_jax import errors
from me_jax.models import config as config_lib
from me_jax.models import hf_family
from me_jax.models import hf_fields
from me_jax.models import hf_rope


def _gemma(
  raw: hf_family.Raw, common: dict[str, Any], layers: tuple[bool, ...]
) -> dict:
  """Returns what Gemma 2 and 3 share."""
  bias = hf_fields.flag(raw, 'attention_bias')
  scalar = hf_fields.number(raw, 'query_pre_attn_scalar')
  return hf_family.windows(hf_family.window(raw), layers) | dict(
    norm_placement='sandwich',
    norm_offset=1.0,
    norm_in_float32=True,
    embedding_scale=common['hidden_size'] ** 0.5,
    query_pre_attn_scalar=scalar,
    final_logit_softcapping=hf_fields.optional_number(
      raw, 'final_logit_softcapping'
    ),
    attention_bias=bias,
    attention_out_bias=bias,
  )


def _write_gemma(config: config_lib.ModelConfig) -> dict[str, Any]:
  scalar = config.query_pre_attn_scalar
  assert scalar is not None  # Every Gemma has one.
  return {
    'hidden_activation': config.hidden_act,
    'attention_bias': config.attention_bias,
    'query_pre_attn_scalar': int(scalar) if scalar == int(scalar) else scalar,
    'attn_logit_softcapping': config.attn_logit_softcapping,
    'final_logit_softcapping': config.final_logit_softcapping,
    # transformers makes a mask for windows even where no layer has one.
    'sliding_window': config.sliding_window or 4096,
    'layer_types': hf_family.write_layer_types(config),
  }


def _read_gemma2(raw: hf_family.Raw, common: dict[str, Any]) -> dict[str, Any]:
  count = common['num_hidden_layers']
  layers = hf_family.layer_types(raw, count)
  if layers is None:
    layers = tuple(i % 2 == 0 for i in range(count))
  return _gemma(raw, common, layers) | dict(
    rope=hf_rope.read(raw, common['head_dim']),
    attn_logit_softcapping=hf_fields.optional_number(
      raw, 'attn_logit_softcapping'
    ),
  )


def _write_gemma2(config: config_lib.ModelConfig) -> dict[str, Any]:
  return _write_gemma(config) | hf_rope.write(config.rope)


_GEMMA3_THETAS = {'full_attention': 1_000_000.0, 'sliding_attention': 10_000.0}


def _read_gemma3(raw: hf_family.Raw, common: dict[str, Any]) -> dict[str, Any]:
  count = common['num_hidden_layers']
  layers = hf_family.layer_types(raw, count)
  if layers is None:
    period = hf_fields.size(raw, 'sliding_window_pattern', 6)
    layers = tuple((i + 1) % period != 0 for i in range(count))
  head_dim = common['head_dim']
  nested = hf_fields.mapping(raw, 'rope_parameters')
  if nested and not nested.keys() <= _GEMMA3_THETAS.keys():
    raise errors.MeJaxError(
      f'rope_parameters = {hf_fields.shown(dict(nested))} does not name '
      'full_attention and sliding_attention.'
    )
  scaled = {
    'full_attention': dict(hf_fields.mapping(nested, 'full_attention'))
    | dict(hf_fields.mapping(raw, 'rope_scaling')),
    'sliding_attention': hf_fields.mapping(nested, 'sliding_attention'),
  }
  bases = {
    'full_attention': raw,
    'sliding_attention': {**raw, 'rope_theta': raw.get('rope_local_base_freq')},
  }
  rope, local = (
    hf_rope.read_one(scaled[kind], bases[kind], head_dim, theta=theta)
    for kind, theta in _GEMMA3_THETAS.items()
  )
  return _gemma(raw, common, layers) | dict(
    rope=rope, rope_local=local, qk_norm='head'
  )


def _write_gemma3(config: config_lib.ModelConfig) -> dict[str, Any]:
  full = hf_rope.write(config.rope)
  assert config.rope_local is not None  # Every Gemma 3 has one.
  local = hf_rope.write_one(config.rope_local)
  result = _write_gemma(config) | full
  result['rope_parameters'] = {
    'full_attention': full['rope_parameters'],
    'sliding_attention': local,
  }
  result['rope_local_base_freq'] = config.rope_local.theta
  return result


_GEMMA_FIELDS = frozenset({
  'attention_bias', 'query_pre_attn_scalar', 'final_logit_softcapping',
  'sliding_window', 'layer_types', 'hidden_activation',
})  # fmt: skip
# A text_config inside a multimodal configuration leaves out what equals these.
_GEMMA_DEFAULTS = {
  'hidden_size': 2304,
  'intermediate_size': 9216,
  'num_hidden_layers': 26,
  'num_attention_heads': 8,
  'num_key_value_heads': 4,
  'head_dim': 256,
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': True,
  'hidden_activation': 'gelu_pytorch_tanh',
  'query_pre_attn_scalar': 256,
  'sliding_window': 4096,
  'bos_token_id': 2,
  'eos_token_id': 1,
  'pad_token_id': 0,
}
_GEMMA_INERT = {
  'mlp_bias': (False, None),
  'use_bidirectional_attention': (False, None),
}


GEMMA = {
  'gemma2': hf_family.Family(
    architecture='Gemma2ForCausalLM',
    fields=_GEMMA_FIELDS | {'attn_logit_softcapping'},
    defaults=_GEMMA_DEFAULTS
    | {
      'vocab_size': 256000,
      'max_position_embeddings': 8192,
      'attn_logit_softcapping': 50.0,
      'final_logit_softcapping': 30.0,
    },
    inert=_GEMMA_INERT,
    read=_read_gemma2,
    write=_write_gemma2,
  ),
  'gemma3_text': hf_family.Family(
    architecture='Gemma3ForCausalLM',
    fields=_GEMMA_FIELDS | {'sliding_window_pattern', 'rope_local_base_freq'},
    defaults=_GEMMA_DEFAULTS
    | {'vocab_size': 262208, 'max_position_embeddings': 131072},
    # transformers stores a cap for these scores but never applies it.
    inert=_GEMMA_INERT | {'attn_logit_softcapping': (None,)},
    read=_read_gemma3,
    write=_write_gemma3,
  ),
}
