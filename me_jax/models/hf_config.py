"""Which ModelConfig does a Hugging Face configuration stand for?

A wrong number is worse than none: every field of a configuration is either
translated, or known not to change what the model computes, or refused by name
and value. Fields are those of transformers 4 and 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import json
import math
import pathlib
from typing import Any

from me_jax import errors
from me_jax.models import config as config_lib

# Fields that do not change the forward pass of a causal language model.
_HARMLESS = frozenset({
    'model_type', 'architectures', 'dtype', 'torch_dtype', 'use_cache',
    'transformers_version', '_name_or_path', '_model_name_or_path',
    '_attn_implementation', 'attn_implementation', 'auto_map',
    'initializer_range', 'sep_token_id', 'unk_token_id', 'decoder_start_token_id',
    'attention_dropout', 'hidden_dropout', 'resid_pdrop', 'embd_pdrop',
    'return_dict', 'output_attentions', 'output_hidden_states',
    'tokenizer_class', 'prefix', 'problem_type', 'id2label', 'label2id',
    'task_specific_params', 'finetuning_task', 'torchscript', 'use_bfloat16',
    'chunk_size_feed_forward', 'is_decoder', 'use_return_dict', 'name_or_path',
    'layer_types', 'max_window_layers', 'is_llama_config',
    'transformers.js_config', 'num_labels', 'pruned_heads',
})  # fmt: skip
# Fields that are harmless at exactly this value, whose other values are not.
_INERT = {
  'pretraining_tp': (1, None),
  'is_encoder_decoder': (False, None),
  'add_cross_attention': (False, None),
  'tie_encoder_decoder': (False, None),
  'cross_attention_hidden_size': (None,),
  'quantization_config': (None,),
  'rope_interleaved': (False, None),
  'sliding_window': (None,),
  'partial_rotary_factor': (1.0, 1, None),
  'attention_multiplier': (1.0, 1, None),
}
_TRANSLATED = frozenset({
    'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers',
    'num_attention_heads', 'num_key_value_heads', 'head_dim', 'hidden_act',
    'max_position_embeddings', 'rms_norm_eps', 'tie_word_embeddings',
    'attention_bias', 'mlp_bias', 'rope_theta', 'rope_scaling',
    'rope_parameters', 'bos_token_id', 'eos_token_id', 'pad_token_id',
})  # fmt: skip

_ROPE_FIELDS = {
  'default': (),
  'linear': ('factor',),
  'llama3': (
    'factor',
    'original_max_position_embeddings',
    'low_freq_factor',
    'high_freq_factor',
  ),
}


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
    source = _read(pathlib.Path(source))
  raw = dict(source)
  family = raw.get('model_type')
  if not isinstance(family, str) or family not in FAMILIES:
    raise errors.MeJaxError(
      f'model_type {family!r} is not supported; supported are '
      f'{", ".join(sorted(FAMILIES))}{errors.nearest(str(family), FAMILIES)}.'
    )
  return FAMILIES[family](raw)


def to_hf(config: config_lib.ModelConfig) -> dict[str, Any]:
  """Returns the contents of a config.json that transformers loads."""
  rope_parameters = {
    'rope_type': config.rope.kind,
    'rope_theta': config.rope.theta,
  } | {
    name: getattr(config.rope, name) for name in _ROPE_FIELDS[config.rope.kind]
  }
  eos = config.eos_token_ids
  return {
    'architectures': ['LlamaForCausalLM'],
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
    'attention_bias': config.attention_bias,
    'mlp_bias': config.mlp_bias,
    'tie_word_embeddings': config.tie_word_embeddings,
    'rope_parameters': rope_parameters,
    'bos_token_id': config.bos_token_id,
    'eos_token_id': eos[0] if len(eos) == 1 else list(eos) or None,
    'pad_token_id': config.pad_token_id,
  }


def _read(path: pathlib.Path) -> dict[str, Any]:
  file = path / 'config.json' if path.is_dir() else path
  try:
    raw = json.loads(file.read_text(encoding='utf-8'))
  except OSError as error:
    raise errors.MeJaxError(f'{file}: cannot read: {error.strerror}') from None
  except ValueError as error:
    raise errors.MeJaxError(f'{file}: not valid JSON ({error}).') from None
  if not isinstance(raw, dict):
    raise errors.MeJaxError(f'{file}: a config.json must hold an object.')
  return raw


def _llama(raw: dict[str, Any]) -> config_lib.ModelConfig:
  _refuse_unknown(raw)
  bias = _flag(raw, 'attention_bias')
  return config_lib.ModelConfig(
    **_common(raw),
    attention_bias=bias,
    attention_out_bias=bias,
    mlp_bias=_flag(raw, 'mlp_bias'),
  )


FAMILIES: dict[str, Callable[[dict[str, Any]], config_lib.ModelConfig]] = {
  'llama': _llama,
}


def _common(raw: dict[str, Any]) -> dict[str, Any]:
  """Translates the fields that every family has."""
  hidden = _size(raw, 'hidden_size')
  heads = _size(raw, 'num_attention_heads')
  kv_heads = _size(raw, 'num_key_value_heads', heads)
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
  activation = raw.get('hidden_act', 'silu')
  activation = 'silu' if activation == 'swish' else activation
  if activation not in ('silu', 'gelu_pytorch_tanh'):
    raise errors.MeJaxError(
      f'hidden_act = {activation!r} is not handled; silu and '
      'gelu_pytorch_tanh are.'
    )
  vocab = _size(raw, 'vocab_size')
  return dict(
      model_type=raw['model_type'],
      vocab_size=vocab,
      hidden_size=hidden,
      intermediate_size=_size(raw, 'intermediate_size'),
      num_hidden_layers=_size(raw, 'num_hidden_layers'),
      num_attention_heads=heads,
      num_key_value_heads=kv_heads,
      head_dim=_size(raw, 'head_dim', hidden // heads),
      max_position_embeddings=_size(raw, 'max_position_embeddings'),
      rms_norm_eps=_number(raw, 'rms_norm_eps'),
      tie_word_embeddings=_flag(raw, 'tie_word_embeddings'),
      hidden_act=activation,
      rope=_rope(raw),
      bos_token_id=_token(raw, 'bos_token_id'),
      eos_token_ids=_eos(raw),
    pad_token_id=_token(raw, 'pad_token_id'),
  )  # fmt: skip


def _rope(raw: dict[str, Any]) -> config_lib.RopeConfig:
  """Reads `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling`."""
  scaling = raw.get('rope_parameters') or raw.get('rope_scaling') or {}
  if not isinstance(scaling, dict):
    raise errors.MeJaxError(f'rope_parameters = {scaling!r} is no object.')
  kind = scaling.get('rope_type') or scaling.get('type') or 'default'
  if not isinstance(kind, str) or kind not in _ROPE_FIELDS:
    raise errors.MeJaxError(
      f'rope_type = {kind!r} is not handled; {", ".join(_ROPE_FIELDS)} are.'
    )
  theta = _number({'rope_theta': 10_000.0} | raw | scaling, 'rope_theta')
  known = {'rope_type', 'type', 'rope_theta', *_ROPE_FIELDS[kind]}
  if kind == 'default':
    known |= {'factor', 'partial_rotary_factor'}
    if scaling.get('partial_rotary_factor', 1.0) != 1.0:
      known -= {'partial_rotary_factor'}
  for name in scaling.keys() - known:
    raise errors.MeJaxError(
      f'rope field {name} = {scaling[name]!r} is not handled with '
      f'rope_type = {kind!r}.'
    )
  values = {name: _number(scaling, name) for name in _ROPE_FIELDS[kind]}
  return config_lib.RopeConfig(kind=kind, theta=float(theta), **values)


def _refuse_unknown(raw: dict[str, Any]) -> None:
  """Raises on a field that might change the computation."""
  for name, value in sorted(raw.items()):
    if name in _TRANSLATED:
      continue
    if name in _INERT:
      if value in _INERT[name]:
        continue
    elif name in _HARMLESS:
      continue
    shown = json.dumps(value, default=str)
    shown = shown if len(shown) <= 60 else shown[:57] + '...'
    raise errors.MeJaxError(
      f'the configuration has {name} = {shown}, which may change what the '
      f"model computes and is not handled for model_type '{raw['model_type']}'."
    )


def _flag(raw: Mapping[str, Any], name: str) -> bool:
  """Returns a boolean field; absent and null are False."""
  value = raw.get(name)
  if value not in (None, True, False):
    raise errors.MeJaxError(f'{name} = {value!r} is neither true nor false.')
  return bool(value)


def _token(raw: Mapping[str, Any], name: str) -> int | None:
  """Returns a token id, or None."""
  value = raw.get(name)
  if value is not None and (
    isinstance(value, bool) or not isinstance(value, int)
  ):
    raise errors.MeJaxError(f'{name} = {value!r} is no token id.')
  return value


def _eos(raw: Mapping[str, Any]) -> tuple[int, ...]:
  """Returns the tokens that end a text: none, one or a list."""
  value = raw.get('eos_token_id')
  values = value if isinstance(value, list) else [value]
  found = (_token({'eos_token_id': each}, 'eos_token_id') for each in values)
  return tuple(token for token in found if token is not None)


def _size(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
  """Returns a positive integer field."""
  value = raw.get(name)
  value = default if value is None else value
  if value is None:
    raise errors.MeJaxError(f'the configuration lacks {name}.')
  if isinstance(value, bool) or not isinstance(value, int) or value < 1:
    raise errors.MeJaxError(f'{name} = {value!r} is not a positive integer.')
  return value


def _number(raw: Mapping[str, Any], name: str) -> float:
  """Returns a positive numeric field, as an int where it is one."""
  value = raw.get(name)
  if value is None:
    raise errors.MeJaxError(f'the configuration lacks {name}.')
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise errors.MeJaxError(f'{name} = {value!r} is not a number.')
  if not (value > 0 and math.isfinite(value)):
    raise errors.MeJaxError(f'{name} = {value!r} is not positive and finite.')
  return value
