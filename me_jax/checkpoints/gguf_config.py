"""Which model do the metadata of a GGUF file describe?

They are translated into a Hugging Face configuration, so that one place
(`models/hf_config.py`) judges what can be computed. A key of the architecture
that is not known here may change the computation and is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any

import numpy as np

from me_jax import errors
from me_jax.checkpoints import gguf

# Metadata key after the architecture's name: Hugging Face's key.
_LLAMA_SIZES = {
  'block_count': 'num_hidden_layers',
  'context_length': 'max_position_embeddings',
  'embedding_length': 'hidden_size',
  'feed_forward_length': 'intermediate_size',
  'attention.head_count': 'num_attention_heads',
}
_LLAMA_OTHERS = (
  'attention.head_count_kv',
  'attention.key_length',
  'attention.layer_norm_rms_epsilon',
  'attention.value_length',
  'rope.dimension_count',
  'rope.freq_base',
  'rope.scaling.attn_factor',
  'rope.scaling.factor',
  'rope.scaling.finetuned',
  'rope.scaling.original_context_length',
  'rope.scaling.type',
  'vocab_size',
)
# Keys of model variants that are off at this value.
_OFF = {'expert_count': 0, 'expert_used_count': 0}
ARCHITECTURES = ('llama',)
_ROPE_FACTORS = 'rope_freqs.weight'


def to_hf(file: gguf.GgufFile) -> dict[str, Any]:
  """Returns the Hugging Face configuration of a GGUF file.

  Args:
    file: as `gguf.open_file` returns it.

  Raises:
    MeJaxError: an architecture or a key that is not supported, or a key that
      is missing or has the wrong type.
  """
  metadata = file.metadata
  architecture = metadata.get('general.architecture')
  if architecture not in ARCHITECTURES:
    raise errors.MeJaxError(
      f'{file.path} holds the architecture {str(architecture)[:40]!r};'
      f' supported in GGUF: {", ".join(ARCHITECTURES)}. Other families load'
      ' from their safetensors folder'
    )
  fields = _Fields(file, architecture)
  fields.refuse_unknown({*_LLAMA_SIZES, *_LLAMA_OTHERS})
  hf = {'model_type': 'llama', 'architectures': ['LlamaForCausalLM']}
  for key, hf_key in _LLAMA_SIZES.items():
    hf[hf_key] = fields.size(key)
  heads = hf['num_attention_heads']
  hf['num_key_value_heads'] = fields.size('attention.head_count_kv', heads)
  head_dim = fields.size('attention.key_length', hf['hidden_size'] // heads)
  for key in ('attention.value_length', 'rope.dimension_count'):
    if fields.size(key, head_dim) != head_dim:
      raise fields.error(key, f'differs from the head dimension {head_dim}')
  hf['head_dim'] = head_dim
  tokens = metadata.get('tokenizer.ggml.tokens')
  vocab_size = len(tokens) if isinstance(tokens, list) else None
  hf['vocab_size'] = fields.size('vocab_size', vocab_size)
  hf['rms_norm_eps'] = fields.number('attention.layer_norm_rms_epsilon')
  hf['hidden_act'] = 'silu'
  hf['rope_parameters'] = _rope(file, fields, head_dim)
  hf['tie_word_embeddings'] = 'output.weight' not in file.tensors
  hf['attention_bias'] = 'blk.0.attn_q.bias' in file.tensors
  hf['mlp_bias'] = 'blk.0.ffn_up.bias' in file.tensors
  return hf | _special_tokens(metadata, hf['vocab_size'])


def _special_tokens(metadata: Mapping[str, Any], size: int) -> dict[str, Any]:
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


def _rope(
  file: gguf.GgufFile, fields: _Fields, head_dim: int
) -> dict[str, Any]:
  """Returns Hugging Face's `rope_parameters`."""
  theta = fields.number('rope.freq_base', 10_000.0)
  rope = {'rope_theta': theta, 'rope_type': 'default'}
  kind = fields.get('rope.scaling.type', 'none')
  if kind not in ('none', 'linear', 'yarn'):
    raise fields.error('rope.scaling.type', f'is {kind!r}, not linear or yarn')
  if fields.number('rope.scaling.attn_factor', 1.0) != 1.0:
    raise fields.error('rope.scaling.attn_factor', 'is not supported')
  factor = fields.number('rope.scaling.factor', 1.0)
  if kind != 'none' and factor != 1.0:
    rope |= {'rope_type': kind, 'factor': factor}
    if kind == 'yarn':
      original = fields.size('rope.scaling.original_context_length')
      rope['original_max_position_embeddings'] = original
  if _ROPE_FACTORS in file.tensors:
    if rope['rope_type'] != 'default':
      raise errors.MeJaxError(
        f'{file.path} scales its rotary embedding twice, by {_ROPE_FACTORS}'
        ' and by rope.scaling.type: not supported'
      )
    rope |= _llama3_scaling(file, theta, head_dim)
  return rope


def _llama3_scaling(
  file: gguf.GgufFile, theta: float, head_dim: int
) -> dict[str, Any]:
  """Recovers Llama 3's scaling from the factors that were computed from it.

  All published Llama 3.1 to 3.3 models share three of the four numbers; the
  largest factor is the fourth. Factors that do not come out exactly are of
  some other kind and are refused.
  """
  tensor = file.tensors[_ROPE_FACTORS]
  low, high, original = 1.0, 4.0, 8192
  stored = np.asarray(tensor.read(), np.float64).reshape(-1)
  factor = float(str(np.float32(stored.max(initial=1.0))))
  exponents = np.arange(0, head_dim, 2) / head_dim
  wavelengths = 2 * math.pi * theta**exponents
  smooth = (original / wavelengths - low) / (high - low)
  expected = 1 / ((1 - smooth) / factor + smooth)
  expected = np.where(wavelengths < original / high, 1.0, expected)
  expected = np.where(wavelengths > original / low, factor, expected)
  # 1e-5: the converter computes in float32.
  if stored.shape != expected.shape or not np.allclose(
    stored, expected, rtol=1e-5, atol=0
  ):
    raise errors.MeJaxError(
      f'{file.path}: {_ROPE_FACTORS} is not the scaling of Llama 3, the only'
      ' one supported: load the model from its safetensors folder'
    )
  return {
    'rope_type': 'llama3',
    'factor': factor,
    'low_freq_factor': low,
    'high_freq_factor': high,
    'original_max_position_embeddings': original,
  }


class _Fields:
  """The metadata of one architecture, with their types checked."""

  def __init__(self, file: gguf.GgufFile, architecture: str):
    self._file = file
    self._prefix = f'{architecture}.'

  def error(self, key: str, what: str) -> errors.MeJaxError:
    return errors.MeJaxError(f'{self._file.path}: {self._prefix}{key} {what}')

  def refuse_unknown(self, known: set[str]) -> None:
    for key, value in self._file.metadata.items():
      if key.startswith(self._prefix):
        key = key.removeprefix(self._prefix)
        off = key in _OFF and type(value) is int and value == _OFF[key]
        if key not in known and not off:
          raise self.error(
            key[:80],
            'is not known and may change the computation: load the model'
            ' from its safetensors folder',
          )

  def get(self, key: str, default: Any = None) -> Any:
    value = self._file.metadata.get(self._prefix + key)
    if value is None and default is None:
      raise self.error(key, 'is missing')
    return default if value is None else value

  def size(self, key: str, default: int | None = None) -> int:
    """Returns a positive count; per-layer lists must agree."""
    value = self.get(key, default)
    if isinstance(value, np.ndarray):
      if len(set(value.tolist())) != 1:
        raise self.error(key, 'differs between layers: not supported')
      value = value.tolist()[0]
    if type(value) is not int or value <= 0:
      raise self.error(key, f'is {str(value)[:40]!r}, not a positive integer')
    return value

  def number(self, key: str, default: float | None = None) -> float:
    """Returns a positive finite number."""
    value = self.get(key, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
      raise self.error(key, f'is {str(value)[:40]!r}, not a positive number')
    return float(value)
