"""What do the bytes of a checkpoint say? Read by the formats' own packages.

Slow, and trusting: for files that me_jax has read already. Llama only.
"""

from __future__ import annotations

from collections.abc import Callable
import json
import pathlib
from typing import Any

import numpy as np

TEXT = 'a bad cab, abc 12'
_GGUF_NAMES = {
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}


def folder(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns configuration and parameters of a safetensors folder."""
  import safetensors
  import transformers

  raw = json.loads((path / 'config.json').read_bytes())
  if type(raw.get('rms_norm_eps')) is int:
    # transformers insists on a point here, and nowhere else.
    raw['rms_norm_eps'] = float(raw['rms_norm_eps'])
  if raw.get('rope_theta', 0) is None:
    # Null stands for the default everywhere else.
    del raw['rope_theta']
  config = transformers.LlamaConfig.from_dict(raw)
  tensors = {}
  for file in path.glob('*.safetensors'):
    with safetensors.safe_open(file, 'numpy') as opened:
      tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
  rope = config.rope_parameters
  eos = config.eos_token_id
  ends = eos if isinstance(eos, list) else [eos]
  said = {
    'vocab_size': config.vocab_size,
    'hidden_size': config.hidden_size,
    'intermediate_size': config.intermediate_size,
    'num_hidden_layers': config.num_hidden_layers,
    'num_attention_heads': config.num_attention_heads,
    'num_key_value_heads': config.num_key_value_heads,
    'head_dim': config.head_dim,
    'max_position_embeddings': config.max_position_embeddings,
    'rms_norm_eps': config.rms_norm_eps,
    'tie_word_embeddings': bool(config.tie_word_embeddings),
    'hidden_act': config.hidden_act,
    'bos_token_id': config.bos_token_id,
    'eos_token_ids': [token for token in ends if token is not None],
    'rope': [rope['rope_type'], rope['rope_theta']],
  }
  tree = _tree(said, lambda name: tensors[f'{name}.weight'])
  count = 2 + 9 * said['num_hidden_layers'] + (not config.tie_word_embeddings)
  if len(tensors.keys() - {'lm_head.weight'}) > count:
    raise ValueError('there are tensors that the model does not use')
  return said, tree


def gguf(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns configuration and parameters of a GGUF file."""
  from gguf import gguf_reader
  from gguf import quants

  reader = gguf_reader.GGUFReader(path)
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  spans = sorted((t.data_offset, t.data_offset + t.n_bytes) for t in
                 reader.tensors)  # fmt: skip
  if any(stop > start for (_, stop), (start, _) in zip(spans, spans[1:])):
    raise ValueError('tensors overlap')

  def read(name: str) -> np.ndarray:
    tensor = tensors[f'{name}.weight']
    with np.errstate(all='ignore'):
      value = quants.dequantize(tensor.data, tensor.tensor_type)
    return value.reshape(tensor.shape.tolist()[::-1]).astype(np.float32)

  def get(key: str, default: Any = None) -> Any:
    field = reader.get_field(key)
    if field is None:
      return default
    value = field.contents()
    array = field.parts[field.data[0]] if field.data else np.zeros(1)
    # float32 stands for the shortest decimal that rounds to it.
    single = array.dtype == np.float32 and not isinstance(value, list)
    return float(str(np.float32(value))) if single else value

  def token(name: str) -> int | None:
    value = get(f'tokenizer.ggml.{name}_token_id')
    plain = isinstance(value, int) and not isinstance(value, bool)
    return value if plain and 0 <= value < vocab else None

  heads = get('llama.attention.head_count')
  width = get('llama.embedding_length')
  vocab = get('llama.vocab_size')
  said = {
    'vocab_size': vocab,
    'hidden_size': width,
    'intermediate_size': get('llama.feed_forward_length'),
    'num_hidden_layers': get('llama.block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': get('llama.attention.head_count_kv', heads),
    'head_dim': get('llama.attention.key_length', width // heads),
    'max_position_embeddings': get('llama.context_length'),
    'rms_norm_eps': get('llama.attention.layer_norm_rms_epsilon'),
    'tie_word_embeddings': 'output.weight' not in tensors,
    'hidden_act': 'silu',
    'bos_token_id': token('bos'),
    'eos_token_ids': [] if token('eos') is None else [token('eos')],
    'rope': ['default', get('llama.rope.freq_base', 10_000.0)],
  }

  def stored(name: str) -> np.ndarray:
    *layer, module = name.removeprefix('model.').split('.', 2)
    if not layer:
      names = {'embed_tokens': 'token_embd', 'norm': 'output_norm'}
      return read(names.get(module, 'output'))
    value = read(f'blk.{layer[1]}.{_GGUF_NAMES[module]}')
    if module in ('self_attn.q_proj', 'self_attn.k_proj'):
      # ggml rotates neighbouring rows, Hugging Face halves of a head.
      half = said['head_dim'] // 2
      value = value.reshape(-1, half, 2, value.shape[1])
      value = value.swapaxes(1, 2).reshape(-1, value.shape[-1])
    return value

  return said, _tree(said, stored)


def folder_ids(path: pathlib.Path) -> list[int] | None:
  """Returns the tokens of `TEXT` by a folder's tokenizer.json alone.

  None when they are drawn by lot, as BPE dropout asks for.
  """
  import tokenizers

  content = (path / 'tokenizer.json').read_text(encoding='utf-8')
  tokenizer = tokenizers.Tokenizer.from_str(content)
  if getattr(tokenizer.model, 'dropout', None):
    return None
  return tokenizer.encode(TEXT, add_special_tokens=False).ids


def gguf_tokens(path: pathlib.Path) -> list[str]:
  """Returns the vocabulary of a GGUF file."""
  from gguf import gguf_reader

  field = gguf_reader.GGUFReader(path).get_field('tokenizer.ggml.tokens')
  return field.contents()


def _tree(
  said: dict[str, Any], read: Callable[[str], np.ndarray]
) -> dict[str, np.ndarray]:
  """Returns parameters by their paths, as me_jax lays them out."""
  tree = {
    'embed_tokens/embedding': read('model.embed_tokens'),
    'norm/weight': read('model.norm'),
  }
  if not said['tie_word_embeddings']:
    tree['lm_head/kernel'] = read('lm_head').T
  for name in _GGUF_NAMES:
    leaf = 'weight' if name.endswith('norm') else 'kernel'
    layers = range(said['num_hidden_layers'])
    stack = np.stack([read(f'model.layers.{i}.{name}') for i in layers])
    stack = stack.swapaxes(1, 2) if leaf == 'kernel' else stack
    tree[f'layers/{name.replace(".", "/")}/{leaf}'] = stack
  return tree
