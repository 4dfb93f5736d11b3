"""Tiny checkpoints in every format, written by the formats' own libraries."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import safetensors.numpy

# L=2, D=32, N=4, K=2, H=8, F=64, V=48; rows fit quantised blocks of 32.
HF_CONFIG = {
  'model_type': 'llama',
  'architectures': ['LlamaForCausalLM'],
  'vocab_size': 48,
  'hidden_size': 32,
  'intermediate_size': 64,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'max_position_embeddings': 64,
  'rms_norm_eps': 1e-5,
  'hidden_act': 'silu',
  'tie_word_embeddings': True,
  'rope_theta': 10000.0,
  'bos_token_id': 1,
  'eos_token_id': 2,
}
GGUF_NAMES = {
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


def permute(weight, heads):
  """Reorders rows as llama.cpp's converter does for Llama's q and k."""
  paired = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
  return paired.swapaxes(1, 2).reshape(weight.shape)


class Tiny:
  """Writes one model in any format; says what its tree must be."""

  config = HF_CONFIG

  def __init__(self):
    rng = np.random.default_rng(0)
    shapes = {
      'input_layernorm': (32,),
      'self_attn.q_proj': (32, 32),
      'self_attn.k_proj': (16, 32),
      'self_attn.v_proj': (16, 32),
      'self_attn.o_proj': (32, 32),
      'post_attention_layernorm': (32,),
      'mlp.gate_proj': (64, 32),
      'mlp.up_proj': (64, 32),
      'mlp.down_proj': (32, 64),
    }

    def draw(shape):
      return rng.standard_normal(shape).astype(np.float32)

    self.weights = {'model.embed_tokens.weight': draw((48, 32))}
    for layer in range(2):
      for name, shape in shapes.items():
        self.weights[f'model.layers.{layer}.{name}.weight'] = draw(shape)
    self.weights['model.norm.weight'] = draw((32,))

  def leaves(self, weights=None):
    """Returns the expected tree as {path: array}."""
    weights = self.weights if weights is None else weights
    leaves = {
      'embed_tokens/embedding': weights['model.embed_tokens.weight'],
      'norm/weight': weights['model.norm.weight'],
    }
    if 'lm_head.weight' in weights:
      leaves['lm_head/kernel'] = weights['lm_head.weight'].T
    for name in GGUF_NAMES:
      kinds = [('weight', 'weight' if name.endswith('norm') else 'kernel')]
      if f'model.layers.0.{name}.bias' in weights:
        kinds.append(('bias', 'bias'))
      for kind, leaf in kinds:
        stack = np.stack(
          [weights[f'model.layers.{i}.{name}.{kind}'] for i in range(2)]
        )
        path = f'layers/{name.replace(".", "/")}/{leaf}'
        leaves[path] = stack.swapaxes(1, 2) if leaf == 'kernel' else stack
    return leaves

  def hf(self, folder, weights=None, **config):
    """Writes a folder with one safetensors file."""
    folder.mkdir(exist_ok=True)
    weights = self.weights if weights is None else weights
    safetensors.numpy.save_file(weights, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(HF_CONFIG | config))
    return folder

  def gguf(
    self,
    path,
    quantise=None,
    *,
    architecture='llama',
    weights=None,
    metadata=None,
    extra=None,
  ):
    """Writes a GGUF file; matrices are quantised to type `quantise`.

    `metadata` overrides keys; a value of None leaves the key out. `extra` are
    further tensors by GGUF name.
    """
    weights = self.weights if weights is None else weights
    writer = gguf.GGUFWriter(path, architecture)
    keys = {
      'llama.block_count': 2,
      'llama.context_length': 64,
      'llama.embedding_length': 32,
      'llama.feed_forward_length': 64,
      'llama.attention.head_count': 4,
      'llama.attention.head_count_kv': 2,
      'llama.attention.layer_norm_rms_epsilon': 1e-5,
      'llama.rope.freq_base': 10000.0,
      'llama.rope.dimension_count': 8,
      'llama.vocab_size': 48,
      'tokenizer.ggml.bos_token_id': 1,
      'tokenizer.ggml.eos_token_id': 2,
    } | (metadata or {})
    adders = {
      bool: writer.add_bool,
      int: writer.add_uint32,
      float: writer.add_float32,
      str: writer.add_string,
      list: writer.add_array,
    }
    for key, value in keys.items():
      if value is not None:
        adders[type(value)](key, value)
    tensors = {
      'token_embd.weight': weights['model.embed_tokens.weight'],
      'output_norm.weight': weights['model.norm.weight'],
    }
    if 'lm_head.weight' in weights:
      tensors['output.weight'] = weights['lm_head.weight']
    for key, value in weights.items():
      parts = key.split('.')
      if parts[1] != 'layers':
        continue
      name = '.'.join(parts[3:-1])
      heads = {'self_attn.q_proj': 4, 'self_attn.k_proj': 2}.get(name)
      value = permute(value, heads) if heads else value
      tensors[f'blk.{parts[2]}.{GGUF_NAMES[name]}.{parts[-1]}'] = value
    for name, value in (tensors | (extra or {})).items():
      if quantise is not None and value.ndim == 2:
        data = gguf.quants.quantize(value, quantise)
        writer.add_tensor(name, data, raw_dtype=quantise)
      else:
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope='session')
def tiny():
  return Tiny()


@pytest.fixture
def flat():
  """Flattens a tree to {path: numpy array}."""

  def flatten(tree, prefix=''):
    result = {}
    for key, value in tree.items():
      if isinstance(value, dict):
        result |= flatten(value, f'{prefix}{key}/')
      else:
        result[prefix + key] = np.asarray(value)
    return result

  return flatten
