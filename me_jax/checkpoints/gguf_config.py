"""Which model do the metadata of a GGUF file describe?

They are translated into a Hugging Face configuration, so that one place
(`models/hf_config.py`) judges what can be computed. A key of the architecture
that is not known here may change the computation and is refused by name.

Files do not say everything. What llama.cpp, the format's reference, fixes by
architecture is fixed here too; where it guesses from the size of a model, the
guess is taken only where it is a published model's. A window that Mistral's
first model has beyond 4096 tokens is in no file: it cannot be known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np

from me_jax import errors
from me_jax.checkpoints import gguf
from me_jax.checkpoints import gguf_fields
from me_jax.checkpoints import gguf_rope

# Metadata key after the architecture's name: Hugging Face's key.
_SIZES = {
  'block_count': 'num_hidden_layers',
  'context_length': 'max_position_embeddings',
  'embedding_length': 'hidden_size',
  'feed_forward_length': 'intermediate_size',
  'attention.head_count': 'num_attention_heads',
}
_OTHERS = (
  'attention.head_count_kv',
  'attention.key_length',
  'attention.layer_norm_rms_epsilon',
  'attention.value_length',
  'vocab_size',
)
_WINDOW = 'attention.sliding_window'
_PATTERN = 'attention.sliding_window_pattern'
_CAPS = ('attn_logit_softcapping', 'final_logit_softcapping')

Hf = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Architecture:
  """How one value of `general.architecture` is read.

  Attributes:
    model_type: Hugging Face's name for it.
    model_class: of transformers.
    keys: that it has besides those that all have.
    read: returns the fields that not all architectures share, given the file,
      its metadata and the fields that they do share.
  """

  model_type: str
  model_class: str
  keys: tuple[str, ...] = ()
  read: Callable[[gguf.GgufFile, gguf_fields.Fields, Hf], Hf]


def to_hf(file: gguf.GgufFile) -> dict[str, Any]:
  """Returns the Hugging Face configuration of a GGUF file.

  Args:
    file: as `gguf.open_file` returns it.

  Returns:
    What config.json would hold, in the spelling of transformers 5.

  Raises:
    MeJaxError: an architecture or a key that is not supported, or a key that
      is missing or has the wrong type.
  """
  metadata = file.metadata
  name = metadata.get('general.architecture')
  if not isinstance(name, str) or name not in ARCHITECTURES:
    raise errors.MeJaxError(
      f'{file.path} holds the architecture {str(name)[:40]!r};'
      f' supported in GGUF: {", ".join(ARCHITECTURES)}'
    )
  parts = metadata.get('split.count', 1)
  if type(parts) is not int or parts > 1:
    raise errors.MeJaxError(
      f'{file.path} is one of {str(parts)[:20]} parts: join them with llama.cpp'
      ' (llama-gguf-split --merge)'
    )
  architecture = ARCHITECTURES[name]
  fields = gguf_fields.Fields(file, name)
  fields.refuse_unknown(
    {*_SIZES, *_OTHERS, *gguf_rope.KEYS, *architecture.keys}
  )
  hf = _shared(file, fields)
  hf['model_type'] = architecture.model_type
  hf['architectures'] = [architecture.model_class]
  return hf | architecture.read(file, fields, hf)


def _shared(file: gguf.GgufFile, fields: gguf_fields.Fields) -> Hf:
  """Returns what all architectures have."""
  hf: Hf = {hf_key: fields.size(key) for key, hf_key in _SIZES.items()}
  # Before something is written down for each of a billion layers.
  if hf['num_hidden_layers'] > len(file.tensors):
    raise fields.error(
      'block_count',
      f'is {hf["num_hidden_layers"]}, but the file holds only'
      f' {len(file.tensors)} tensors',
    )
  heads = hf['num_attention_heads']
  hf['num_key_value_heads'] = fields.size('attention.head_count_kv', heads)
  head_dim = fields.size('attention.key_length', hf['hidden_size'] // heads)
  if fields.size('attention.value_length', head_dim) != head_dim:
    raise fields.error(
      'attention.value_length', f'differs from the head dimension {head_dim}'
    )
  hf['head_dim'] = head_dim
  tokens = file.metadata.get('tokenizer.ggml.tokens')
  vocab_size = len(tokens) if isinstance(tokens, list) else None
  hf['vocab_size'] = fields.size('vocab_size', vocab_size)
  hf['rms_norm_eps'] = fields.number('attention.layer_norm_rms_epsilon')
  hf['tie_word_embeddings'] = 'output.weight' not in file.tensors
  return hf | _special_tokens(file.metadata, hf['vocab_size'])


def _special_tokens(metadata: Mapping[str, Any], size: int) -> Hf:
  """Returns the ids that configurations carry; a turn's end ends a text too."""

  def token(key: str) -> int | None:
    value = metadata.get(f'tokenizer.ggml.{key}_token_id')
    return value if type(value) is int and 0 <= value < size else None

  ends = [t for t in (token('eos'), token('eot')) if t is not None]
  return {
    'bos_token_id': token('bos'),
    'eos_token_id': list(dict.fromkeys(ends)) or None,
    'pad_token_id': token('padding'),
  }


def _plain(file: gguf.GgufFile, fields: gguf_fields.Fields, hf: Hf) -> Hf:
  """Returns all that is left to say of OLMo 2, and a part of the others."""
  return {
    'hidden_act': 'silu',
    'rope_parameters': gguf_rope.read(file, fields, hf['head_dim']),
  }


def _llama(file: gguf.GgufFile, fields: gguf_fields.Fields, hf: Hf) -> Hf:
  return _plain(file, fields, hf) | {
    'attention_bias': 'blk.0.attn_q.bias' in file.tensors,
    'mlp_bias': 'blk.0.ffn_up.bias' in file.tensors,
  }


def _qwen(file: gguf.GgufFile, fields: gguf_fields.Fields, hf: Hf) -> Hf:
  # No converter writes Qwen's window, which its models leave off.
  return _plain(file, fields, hf) | {'use_sliding_window': False}


def _smollm3(file: gguf.GgufFile, fields: gguf_fields.Fields, hf: Hf) -> Hf:
  rotated = [int((i + 1) % 4 != 0) for i in range(hf['num_hidden_layers'])]
  return _llama(file, fields, hf) | {
    'no_rope_layers': rotated,
    'use_sliding_window': False,
  }


def _phi3(file: gguf.GgufFile, fields: gguf_fields.Fields, hf: Hf) -> Hf:
  context = hf['max_position_embeddings']
  rope = gguf_rope.read_phi3(file, fields, hf['head_dim'], context)
  original = fields.size('rope.scaling.original_context_length', context)
  return {
    'hidden_act': 'silu',
    'rope_parameters': rope,
    # transformers believes this one rather than the one of the embedding.
    'original_max_position_embeddings': original,
    'sliding_window': _phi3_window(fields, hf),
  }


def _phi3_window(fields: gguf_fields.Fields, hf: Hf) -> int | None:
  """Returns the window of all layers, or None."""
  if fields.has(_WINDOW):
    # Phi-4, which has none, is marked by a zero.
    none = type(fields.get(_WINDOW)) is int and fields.get(_WINDOW) == 0
    return None if none else fields.size(_WINDOW)
  # Files older than the key: the first Phi-3 models are told by their shape.
  shape = hf['num_hidden_layers'], hf['max_position_embeddings']
  known = {(32, 4096): 2047, (40, 4096): 2047, (40, 131072): 131072}
  if hf['num_key_value_heads'] == 32:
    known[32, 131072] = 262144
  if shape not in known:
    raise fields.error(_WINDOW, 'is missing: convert the model again')
  return known[shape]


def _gemma(fields: gguf_fields.Fields, hf: Hf, scaled_layers: int) -> Hf:
  """Returns what Gemma 2 and 3 share.

  The scale of the scores is in no file. Models of 27B divide by the root of
  D / N, all others by that of H; llama.cpp tells them by their depth. Theirs
  are the only heads of 128: one of another depth could be either.

  Args:
    fields: the metadata.
    hf: what all architectures have.
    scaled_layers: depth of the model with 27B parameters.
  """
  head_dim, layers = hf['head_dim'], hf['num_hidden_layers']
  scalar = head_dim
  if layers == scaled_layers:
    scalar = hf['hidden_size'] // hf['num_attention_heads']
  elif head_dim == 128:
    raise fields.error(
      'block_count',
      f'is {layers}, not the {scaled_layers} of the one model with heads of'
      ' 128: how its attention is scaled cannot be known; load it from its'
      ' safetensors folder',
    )
  return {
    'hidden_activation': 'gelu_pytorch_tanh',
    'query_pre_attn_scalar': scalar,
  }


def _layer_types(
  fields: gguf_fields.Fields, layers: int, period: int
) -> list[str]:
  """Returns the kind of each layer: every `period`th sees everything."""
  if isinstance(fields.get(_PATTERN, period), np.ndarray):
    windowed = [bool(flag) for flag in fields.get(_PATTERN)]
    if len(windowed) != layers:
      raise fields.error(_PATTERN, f'is not a list of {layers} layers')
  else:
    period = fields.size(_PATTERN, period)
    windowed = [(i + 1) % period != 0 for i in range(layers)]
  return ['sliding_attention' if w else 'full_attention' for w in windowed]


def _gemma2(file: gguf.GgufFile, fields: gguf_fields.Fields, hf: Hf) -> Hf:
  # The first files lack caps and window; these are all models' values.
  caps = zip(_CAPS, (50.0, 30.0), strict=True)
  return _gemma(fields, hf, 46) | {
    'rope_parameters': gguf_rope.read(file, fields, hf['head_dim']),
    'sliding_window': fields.size(_WINDOW, 4096),
    'layer_types': _layer_types(fields, hf['num_hidden_layers'], 2),
    **{key: fields.number(key, usual) for key, usual in caps},
  }


def _gemma3(file: gguf.GgufFile, fields: gguf_fields.Fields, hf: Hf) -> Hf:
  full = gguf_rope.read(file, fields, hf['head_dim'], theta=None)
  local = {
    'rope_type': 'default',
    'rope_theta': fields.number('rope.freq_base_swa', 10_000.0),
  }
  cap = _CAPS[1]
  # Models without windows have no key for their size.
  period = 6 if fields.has(_WINDOW) else 1
  return _gemma(fields, hf, 62) | {
    'rope_parameters': {'full_attention': full, 'sliding_attention': local},
    'sliding_window': fields.size(_WINDOW, 4096),
    'layer_types': _layer_types(fields, hf['num_hidden_layers'], period),
    cap: fields.number(cap) if fields.has(cap) else None,
  }


ARCHITECTURES = {
  'llama': _Architecture(
    model_type='llama', model_class='LlamaForCausalLM', read=_llama
  ),
  'qwen2': _Architecture(
    model_type='qwen2', model_class='Qwen2ForCausalLM', read=_qwen
  ),
  'qwen3': _Architecture(
    model_type='qwen3', model_class='Qwen3ForCausalLM', read=_qwen
  ),
  'phi3': _Architecture(
    model_type='phi3',
    model_class='Phi3ForCausalLM',
    keys=(_WINDOW,),
    read=_phi3,
  ),
  'gemma2': _Architecture(
    model_type='gemma2',
    model_class='Gemma2ForCausalLM',
    keys=(_WINDOW, _PATTERN, *_CAPS),
    read=_gemma2,
  ),
  'gemma3': _Architecture(
    model_type='gemma3_text',
    model_class='Gemma3ForCausalLM',
    keys=(_WINDOW, _PATTERN, _CAPS[1], 'rope.freq_base_swa'),
    read=_gemma3,
  ),
  'olmo2': _Architecture(
    model_type='olmo2', model_class='Olmo2ForCausalLM', read=_plain
  ),
  'smollm3': _Architecture(
    model_type='smollm3', model_class='SmolLM3ForCausalLM', read=_smollm3
  ),
}
