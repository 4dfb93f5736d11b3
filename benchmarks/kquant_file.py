"""Writes a GGUF file in K-quants, as large as the default model.

The gguf package reads these types and does not write them, and the default model's
width is no multiple of their 256 values: so the blocks are random, with scales that are
finite, and the widths others. The vocabulary is the default model's.
"""

from __future__ import annotations

import pathlib

import gguf
import numpy as np

from me_jax.checkpoints import gguf as reader
from me_jax.checkpoints import locate

_WIDTH, _FFN, _LAYERS, _HEADS, _KV_HEADS, _HEAD = 768, 2048, 16, 12, 4, 64
# Bytes of the float16 scales within a block.
_SCALES = {'Q4_K': (0, 4), 'Q6_K': (208, 210)}


def write(path: pathlib.Path) -> None:
  """Writes the model with the mixture of types that Q4_K_M stands for."""
  metadata = reader.open_file(locate.locate('smollm2')).metadata
  tokens = metadata['tokenizer.ggml.tokens']
  writer = gguf.GGUFWriter(path, 'llama')
  sizes = {
    'block_count': _LAYERS,
    'context_length': 2048,
    'embedding_length': _WIDTH,
    'feed_forward_length': _FFN,
    'attention.head_count': _HEADS,
    'attention.head_count_kv': _KV_HEADS,
    'rope.dimension_count': _HEAD,
    'vocab_size': len(tokens),
  }
  for key, value in sizes.items():
    writer.add_uint32(f'llama.{key}', value)
  writer.add_float32('llama.attention.layer_norm_rms_epsilon', 1e-5)
  writer.add_float32('llama.rope.freq_base', 1e5)
  _copy_tokenizer(writer, metadata)
  rng = np.random.default_rng(0)

  def add(name: str, rows: int, columns: int, kind: str) -> None:
    quantisation = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[quantisation]
    data = rng.integers(0, 256, (rows, columns // block, size), np.uint8)
    start, stop = _SCALES[kind]
    scales = rng.uniform(1e-4, 1e-3, (*data.shape[:2], (stop - start) // 2))
    data[..., start:stop] = scales.astype(np.float16).view(np.uint8)
    writer.add_tensor(
      f'{name}.weight', data.reshape(rows, -1), raw_dtype=quantisation
    )

  def add_norm(name: str) -> None:
    writer.add_tensor(f'{name}.weight', np.ones(_WIDTH, np.float32))

  add('token_embd', len(tokens), _WIDTH, 'Q6_K')
  add_norm('output_norm')
  for layer in range(_LAYERS):
    stem = f'blk.{layer}'
    add_norm(f'{stem}.attn_norm')
    add_norm(f'{stem}.ffn_norm')
    add(f'{stem}.attn_q', _HEADS * _HEAD, _WIDTH, 'Q4_K')
    add(f'{stem}.attn_k', _KV_HEADS * _HEAD, _WIDTH, 'Q4_K')
    add(f'{stem}.attn_v', _KV_HEADS * _HEAD, _WIDTH, 'Q6_K')
    add(f'{stem}.attn_output', _WIDTH, _HEADS * _HEAD, 'Q4_K')
    add(f'{stem}.ffn_gate', _FFN, _WIDTH, 'Q4_K')
    add(f'{stem}.ffn_up', _FFN, _WIDTH, 'Q4_K')
    add(f'{stem}.ffn_down', _WIDTH, _FFN, 'Q6_K')
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def _copy_tokenizer(writer: gguf.GGUFWriter, metadata: dict) -> None:
  adders = {
    bool: writer.add_bool,
    int: writer.add_uint32,
    str: writer.add_string,
    list: writer.add_array,
  }
  for key, value in metadata.items():
    if key.startswith('tokenizer.'):
      value = value.tolist() if isinstance(value, np.ndarray) else value
      adders[type(value)](key, value)
