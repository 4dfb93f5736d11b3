"""Which ModelConfig does a Hugging Face configuration stand for?

A wrong number is worse than none: every field of a configuration is either
translated, or known not to change what the model computes, or refused by name
and value. Fields are those of transformers 4 and 5. What is particular to a
family stands in `hf_families.py`, what all share here.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
from typing import Any

from me_jax import errors
from me_jax import strict_json
from me_jax.models import config as config_lib
from me_jax.models import hf_families
from me_jax.models import hf_family
from me_jax.models import hf_fields

# Fields that do not change the forward pass of a causal language model.
_HARMLESS = frozenset({
  'model_type', 'architectures', 'dtype', 'torch_dtype', 'use_cache',
  'transformers_version', '_name_or_path', '_model_name_or_path',
  '_attn_implementation', '_attn_implementation_autoset',
  '_attn_implementation_internal', 'attn_implementation', 'auto_map',
  'initializer_range', 'sep_token_id', 'unk_token_id', 'decoder_start_token_id',
  'attention_dropout', 'hidden_dropout', 'resid_pdrop', 'embd_pdrop',
  'return_dict', 'output_attentions', 'output_hidden_states',
  'return_dict_in_generate',
  'tokenizer_class', 'prefix', 'problem_type', 'id2label', 'label2id',
  'task_specific_params', 'finetuning_task', 'torchscript', 'use_bfloat16',
  'chunk_size_feed_forward', 'is_decoder', 'use_return_dict', 'name_or_path',
  'max_window_layers', 'is_llama_config', 'cache_implementation',
  'transformers.js_config', 'num_labels', 'pruned_heads', '_commit_hash',
  # A window under a second name, and attention to very long texts (Qwen2.5-1M):
  # transformers reads neither.
  'sliding_window_size', 'dual_chunk_attention_config',
  # Repeats of sizes, and the pattern that `layer_types` spells out.
  'original_max_position_embeddings', '_sliding_window_pattern',
  # How the products of a training run were split; the sums are the same.
  'pretraining_tp',
})  # fmt: skip
# What older versions kept beside the model: how to generate from it, or how
# somebody trained or repacked it.
_HARMLESS |= frozenset({
  'max_length', 'min_length', 'do_sample', 'early_stopping', 'num_beams',
  'num_beam_groups', 'diversity_penalty', 'temperature', 'top_k', 'top_p',
  'typical_p', 'repetition_penalty', 'length_penalty', 'no_repeat_ngram_size',
  'encoder_no_repeat_ngram_size', 'bad_words_ids', 'num_return_sequences',
  'output_scores', 'forced_bos_token_id', 'forced_eos_token_id',
  'remove_invalid_values', 'exponential_decay_length_penalty',
  'suppress_tokens', 'begin_suppress_tokens', 'tf_legacy_loss',
  'gradient_checkpointing', 'neftune_noise_alpha', 'unsloth_fixed',
  'unsloth_version', 'model_max_length', 'max_sequence_length',
})  # fmt: skip
# Fields that are harmless at exactly these values, whose others are not.
_INERT = {
  'is_encoder_decoder': (False, None),
  'add_cross_attention': (False, None),
  'tie_encoder_decoder': (False, None),
  'cross_attention_hidden_size': (None,),
  'quantization_config': (None,),
  'rope_interleaved': (False, None),
  'partial_rotary_factor': (1.0, None),
  'attention_multiplier': (1.0, None),
}
_TRANSLATED = frozenset({
  'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers',
  'num_attention_heads', 'num_key_value_heads', 'head_dim', 'hidden_act',
  'max_position_embeddings', 'rms_norm_eps', 'tie_word_embeddings',
  'rope_theta', 'rope_scaling', 'rope_parameters', 'bos_token_id',
  'eos_token_id', 'pad_token_id', 'layer_types',
})  # fmt: skip
# Multimodal configurations whose text model is one of the families. Their
# other parts are left aside: text never passes through them.
_TEXT_PARTS = {'gemma3': 'gemma3_text'}


def from_hf(source: Mapping[str, Any] | str) -> config_lib.ModelConfig:
  """Translates a Hugging Face configuration.

  Args:
    source: the contents of a config.json, or the folder that holds one.

  Returns:
    The configuration.

  Raises:
    MeJaxError: the architecture is not supported; a field is missing, or
      would change the computation in a way that is not handled.
  """
  if not isinstance(source, Mapping):
    path = os.fspath(source)
    if os.path.isdir(path):
      path = os.path.join(path, 'config.json')
    source = strict_json.read(path)
  raw = _text_part(source)
  name = raw.get('model_type')
  families = hf_families.FAMILIES
  if not isinstance(name, str) or name not in families:
    supported = sorted({*families, *_TEXT_PARTS})
    raise errors.MeJaxError(
      f'model_type {name!r:.80} is not supported; supported are '
      f'{", ".join(supported)}{errors.nearest(str(name), supported)}.'
    )
  family = families[name]
  _refuse_unknown(raw, family)
  raw = dict(family.defaults) | raw
  common = _common(raw)
  config = config_lib.ModelConfig(**common, **family.read(raw, common))
  _check_layer_types(raw, config)
  return config


def to_hf(config: config_lib.ModelConfig) -> dict[str, Any]:
  """Returns the contents of a config.json that transformers 4 and 5 load."""
  family = hf_families.FAMILIES[config.model_type]
  eos = config.eos_token_ids
  return {
    'architectures': [family.architecture],
    'model_type': config.model_type,
    'vocab_size': config.vocab_size,
    'hidden_size': config.hidden_size,
    'intermediate_size': config.intermediate_size,
    'num_hidden_layers': config.num_hidden_layers,
    'num_attention_heads': config.num_attention_heads,
    'num_key_value_heads': config.num_key_value_heads,
    'head_dim': config.head_dim,
    'max_position_embeddings': config.max_position_embeddings,
    'rms_norm_eps': config.rms_norm_eps,
    'hidden_act': config.hidden_act,
    'tie_word_embeddings': config.tie_word_embeddings,
    'bos_token_id': config.bos_token_id,
    'eos_token_id': eos[0] if len(eos) == 1 else list(eos) or None,
    'pad_token_id': config.pad_token_id,
  } | family.write(config)


def _text_part(source: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the configuration of the text model."""
  name = source.get('model_type')
  if not isinstance(name, str) or name not in _TEXT_PARTS:
    return dict(source)
  part = dict(hf_fields.mapping(source, 'text_config'))
  if part.get('model_type', _TEXT_PARTS[name]) != _TEXT_PARTS[name]:
    raise errors.MeJaxError(
      f'the text_config of model_type {name!r} has model_type = '
      f'{hf_fields.shown(part["model_type"])} instead of {_TEXT_PARTS[name]!r}.'
    )
  if part.get('final_logit_softcapping') is not None:
    raise errors.MeJaxError(
      'final_logit_softcapping is not handled inside a text_config, where '
      'transformers does not apply it.'
    )
  outer = {
    each: source[each]
    for each in ('eos_token_id', 'quantization_config', 'tie_word_embeddings')
    if source.get(each) is not None
  }
  return {'model_type': _TEXT_PARTS[name]} | part | outer


def _common(raw: Mapping[str, Any]) -> dict[str, Any]:
  """Translates the fields that every family has."""
  hidden = hf_fields.size(raw, 'hidden_size')
  heads = hf_fields.size(raw, 'num_attention_heads')
  kv_heads = hf_fields.size(raw, 'num_key_value_heads', heads)
  if heads % kv_heads:
    raise errors.MeJaxError(
      f'num_attention_heads = {heads} is not a multiple of '
      f'num_key_value_heads = {kv_heads}.'
    )
  if raw.get('head_dim') is None and hidden % heads:
    raise errors.MeJaxError(
      f'hidden_size = {hidden} is not a multiple of num_attention_heads = '
      f'{heads}, and there is no head_dim.'
    )
  return dict(
    model_type=raw['model_type'],
    vocab_size=hf_fields.size(raw, 'vocab_size'),
    hidden_size=hidden,
    intermediate_size=hf_fields.size(raw, 'intermediate_size'),
    num_hidden_layers=hf_fields.size(raw, 'num_hidden_layers'),
    num_attention_heads=heads,
    num_key_value_heads=kv_heads,
    head_dim=hf_fields.size(raw, 'head_dim', hidden // heads),
    max_position_embeddings=hf_fields.size(raw, 'max_position_embeddings'),
    rms_norm_eps=hf_fields.number(raw, 'rms_norm_eps'),
    tie_word_embeddings=hf_fields.flag(raw, 'tie_word_embeddings'),
    hidden_act=_activation(raw),
    bos_token_id=hf_fields.token(raw, 'bos_token_id'),
    eos_token_ids=hf_fields.tokens(raw, 'eos_token_id'),
    pad_token_id=hf_fields.token(raw, 'pad_token_id'),
  )


def _activation(raw: Mapping[str, Any]) -> str:
  """Returns the gate's activation; Gemma has a field of its own for it."""
  name = 'hidden_activation' if 'hidden_activation' in raw else 'hidden_act'
  value = raw.get(name, 'silu')
  value = 'silu' if value == 'swish' else value
  if value not in ('silu', 'gelu_pytorch_tanh'):
    raise errors.MeJaxError(
      f'{name} = {hf_fields.shown(value)} is not handled; silu and '
      'gelu_pytorch_tanh are.'
    )
  return value


def _refuse_unknown(raw: Mapping[str, Any], family: hf_family.Family) -> None:
  """Raises on a field that might change the computation."""
  inert = {
    name: values
    for name, values in (_INERT | dict(family.inert)).items()
    if name not in family.fields
  }
  for name, value in sorted(raw.items()):
    if name in inert:
      # 0 == False, and 1 == True == 1.0: harmless here, they mean the same.
      if not isinstance(value, (dict, list)) and value in inert[name]:
        continue
    elif name in _TRANSLATED | _HARMLESS | family.fields:
      continue
    raise errors.MeJaxError(
      f'the configuration has {name} = {hf_fields.shown(value)}, which may '
      'change what the model computes and is not handled for model_type '
      f"'{raw['model_type']}'."
    )


def _check_layer_types(
  raw: Mapping[str, Any], config: config_lib.ModelConfig
) -> None:
  """Raises when layers are said to be of other types than they will be."""
  count = config.num_hidden_layers
  said = hf_family.layer_types(raw, count)
  if said is not None and said != (config.layer_windowed or (False,) * count):
    raise errors.MeJaxError(
      f'layer_types = {hf_fields.shown(raw["layer_types"])} contradicts the '
      f"other fields of model_type '{config.model_type}'."
    )
