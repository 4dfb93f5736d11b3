"""Writes a Hugging Face model as a GGUF file, the way llama.cpp's converter does.

Names come from the `gguf` package's own map, so that they are independent of
me_jax's tables; what is done to values and which keys are written follows
`convert_hf_to_gguf.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
import math
import pathlib
from typing import Any, NamedTuple

import gguf
import numpy as np

ARCHITECTURES = {'gemma3_text': 'gemma3'}
# Type: bytes a block of 256 values, and where its float16 scales lie.
K_QUANTS = {
  gguf.GGMLQuantizationType.Q2_K: (84, (80, 82)),
  gguf.GGMLQuantizationType.Q3_K: (110, (108,)),
  gguf.GGMLQuantizationType.Q4_K: (144, (0, 2)),
  gguf.GGMLQuantizationType.Q5_K: (176, (0, 2)),
  gguf.GGMLQuantizationType.Q6_K: (210, (208,)),
}


class Stored(NamedTuple):
  """A tensor as it went into the file.

  Attributes:
    name: in the file.
    data: plain values, or blocks of bytes.
    kind: of the blocks; None for plain values.
  """

  name: str
  data: np.ndarray
  kind: gguf.GGMLQuantizationType | None


def write(
  model: Any,
  path: pathlib.Path,
  *,
  quantise: gguf.GGMLQuantizationType | None = None,
  metadata: Mapping[str, Any] | None = None,
  tokenizer: Mapping[str, Any] | None = None,
  change: Callable[[dict[str, np.ndarray]], None] = lambda tensors: None,
  drop: Collection[str] = (),
) -> dict[str, Stored]:
  """Writes a file.

  Args:
    model: a `transformers` model in float32.
    path: of the file.
    quantise: type of all matrices; random blocks for K-quants, which the
      package cannot compute.
    metadata: keys added or replaced, without the architecture's name.
    tokenizer: the same for keys of `tokenizer.ggml`.
    change: edits the tensors, by their names in the file, in place.
    drop: keys left out.

  Returns:
    What was stored, by Hugging Face's names.
  """
  config = model.config
  architecture = ARCHITECTURES.get(config.model_type, config.model_type)
  number = next(
    key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture
  )
  names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
  converted, origin = {}, {}
  for name, value in model.state_dict().items():
    if name == 'lm_head.weight' and config.tie_word_embeddings:
      continue
    new_name = names.get_name(name, try_suffixes=('.weight', '.bias'))
    converted[new_name] = _convert(name, value.float().numpy(), config)
    origin[new_name] = name
  converted |= _rope_tensors(config)
  change(converted)
  writer = gguf.GGUFWriter(path, architecture)
  keys = _keys(config, writer)
  for prefix, added in (
    (architecture, metadata),
    ('tokenizer.ggml', tokenizer),
  ):
    keys |= {f'{prefix}.{key}': value for key, value in (added or {}).items()}
  for key, value in keys.items():
    if key.removeprefix(f'{architecture}.') not in drop:
      _add(writer, key, value)
  stored = {}
  for name, value in converted.items():
    data, kind = np.ascontiguousarray(value), None
    if quantise is not None and value.ndim == 2:
      data, kind = _quantised(data, quantise, seed=len(stored)), quantise
    writer.add_tensor(name, data, raw_dtype=kind)
    stored[origin.get(name, name)] = Stored(name, data, kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return stored


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
  """Reorders rows so that those which are rotated together are neighbours."""
  paired = weight.reshape(heads, 2, -1, *weight.shape[1:])
  return paired.swapaxes(1, 2).reshape(weight.shape)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
  """The opposite of `permute`."""
  pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
  return pairs.swapaxes(1, 2).reshape(weight.shape)


def permuted_heads(name: str, config: Any) -> int:
  """Returns the heads of a tensor that is permuted; 0 for others."""
  if config.model_type in ('llama', 'smollm3'):
    if '.q_proj.' in name:
      return config.num_attention_heads
    if '.k_proj.' in name:
      return config.num_key_value_heads
  return 0


def _convert(name: str, value: np.ndarray, config: Any) -> np.ndarray:
  if heads := permuted_heads(name, config):
    return permute(value, heads)
  if config.model_type.startswith('gemma') and name.endswith('norm.weight'):
    return value + np.float32(1)
  return value


def _rope_tensors(config: Any) -> dict[str, np.ndarray]:
  rope = config.rope_parameters
  tensors = {}
  if rope.get('rope_type') == 'llama3':
    dim = head_dim(config)
    factors = []
    for i in range(0, dim, 2):
      wavelength = 2 * math.pi * rope['rope_theta'] ** (i / dim)
      if wavelength < 8192 / rope['high_freq_factor']:
        factors.append(1.0)
      elif wavelength > 8192 / rope['low_freq_factor']:
        factors.append(rope['factor'])
      else:
        low, high = rope['low_freq_factor'], rope['high_freq_factor']
        smooth = (8192 / wavelength - low) / (high - low)
        factors.append(1 / ((1 - smooth) / rope['factor'] + smooth))
    tensors['rope_freqs.weight'] = np.array(factors, np.float32)
  if rope.get('rope_type') == 'longrope':
    for kind in ('long', 'short'):
      values = np.array(rope[f'{kind}_factor'], np.float32)
      tensors[f'rope_factors_{kind}.weight'] = values
  return tensors


def head_dim(config: Any) -> int:
  """Returns H."""
  found = getattr(config, 'head_dim', None)
  return found or config.hidden_size // config.num_attention_heads


def _keys(config: Any, writer: gguf.GGUFWriter) -> dict[str, Any]:
  """Returns the metadata that the converter writes for this architecture."""
  family, dim = config.model_type, head_dim(config)
  keys = {
    'block_count': config.num_hidden_layers,
    'context_length': config.max_position_embeddings,
    'embedding_length': config.hidden_size,
    'feed_forward_length': config.intermediate_size,
    'attention.head_count': config.num_attention_heads,
    'attention.head_count_kv': config.num_key_value_heads,
    'attention.layer_norm_rms_epsilon': config.rms_norm_eps,
  }
  rope = config.rope_parameters
  full = rope.get('full_attention', rope)
  if family == 'phi3':
    share = rope['partial_rotary_factor']
    keys['rope.dimension_count'] = int(share * config.hidden_size) // (
      config.num_attention_heads
    )
    keys['rope.freq_base'] = rope['rope_theta']
    original = config.original_max_position_embeddings
    keys['rope.scaling.original_context_length'] = original
    keys['attention.sliding_window'] = config.sliding_window or 0
    if rope['rope_type'] == 'longrope':
      scale = config.max_position_embeddings / original
      factor = math.sqrt(1 + math.log(scale) / math.log(original))
      keys['rope.scaling.attn_factor'] = factor
  elif family != 'gemma2':
    keys['rope.freq_base'] = full['rope_theta']
    if full.get('rope_type') in ('linear', 'yarn'):
      keys['rope.scaling.type'] = full['rope_type']
      keys['rope.scaling.factor'] = full['factor']
    if full.get('rope_type') == 'yarn':
      original = full['original_max_position_embeddings']
      keys['rope.scaling.original_context_length'] = original
      for name in ('beta_fast', 'beta_slow'):
        if name in full:
          keys[f'rope.scaling.yarn_{name}'] = full[name]
  if getattr(config, 'head_dim', None):
    keys |= {'attention.key_length': dim, 'attention.value_length': dim}
  if family in ('llama', 'smollm3'):
    keys |= {'vocab_size': config.vocab_size, 'rope.dimension_count': dim}
  if family in ('gemma2', 'gemma3_text'):
    keys['attention.sliding_window'] = config.sliding_window
  if family == 'gemma2':
    keys['attn_logit_softcapping'] = config.attn_logit_softcapping
  if family.startswith('gemma') and config.final_logit_softcapping:
    keys['final_logit_softcapping'] = config.final_logit_softcapping
  keys = {f'{writer.arch}.{key}': value for key, value in keys.items()}
  tokens = [f't{i}' for i in range(config.vocab_size)]
  if config.pad_token_id is not None:
    keys['tokenizer.ggml.padding_token_id'] = config.pad_token_id
  return keys | {
    'tokenizer.ggml.model': 'none',
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.bos_token_id': config.bos_token_id,
    'tokenizer.ggml.eos_token_id': config.eos_token_id,
  }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
  adders = {
    bool: writer.add_bool,
    int: writer.add_uint32,
    float: writer.add_float32,
    str: writer.add_string,
    list: writer.add_array,
  }
  adders[type(value)](key, value)


def _quantised(
  value: np.ndarray, kind: gguf.GGMLQuantizationType, seed: int
) -> np.ndarray:
  if kind not in K_QUANTS:
    return gguf.quants.quantize(value, kind)
  size, scales = K_QUANTS[kind]
  random = np.random.default_rng(seed)
  count = value.size // 256
  blocks = random.integers(0, 256, (count, size), np.uint8)
  for place in scales:
    scale = random.uniform(0.001, 0.01, count).astype(np.float16)
    blocks[:, place : place + 2] = scale[:, None].view(np.uint8)
  return blocks.reshape(value.shape[0], -1)
