"""Models of every architecture, converted to GGUF and loaded."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import transformers

import me_jax
from me_jax import errors
from me_jax.checkpoints import gguf as reader
from me_jax.checkpoints import gguf_config
from me_jax.checkpoints import load
from tests.support import gguf_models
from tests.support import gguf_writer


def refused(path, *words):
  with pytest.raises(errors.MeJaxError) as caught:
    load.load(path)
  message = str(caught.value)
  assert '\n' not in message
  for word in words:
    assert word in message, message


@pytest.mark.parametrize('name', gguf_models.MODELS)
def test_a_model_is_the_same_as_from_safetensors(name, flat, tmp_path):
  model = gguf_models.build(name)
  gguf_writer.write(model, tmp_path / 'm.gguf')
  model.save_pretrained(tmp_path / 'hf')
  theirs = load.load(tmp_path / 'hf')
  ours = load.load(tmp_path / 'm.gguf')
  assert ours.config == theirs.config
  expected, found = flat(theirs.params), flat(ours.params)
  assert found.keys() == expected.keys()
  for path, value in expected.items():
    if 'gemma' in name and 'norm' in path:
      # 1 + w is stored in float32; what is applied is equal, to the last bit.
      value, found[path] = 1 + value, 1 + found[path]
    np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.mark.parametrize('name', ['gemma2', 'gemma3_text'])
def test_gemmas_norms_are_exact_when_they_come_from_bfloat16(
  name, flat, tmp_path
):
  import torch

  model = gguf_models.build(name).to(torch.bfloat16)
  gguf_writer.write(model, tmp_path / 'm.gguf')
  model.save_pretrained(tmp_path / 'hf')
  for dtype in ('float32', 'bfloat16'):
    expected = flat(load.load(tmp_path / 'hf', dtype=dtype).params)
    found = flat(load.load(tmp_path / 'm.gguf', dtype=dtype).params)
    for path, value in expected.items():
      np.testing.assert_array_equal(found[path], value, err_msg=path)


KINDS = ['Q8_0', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1',
         'Q2_K', 'Q3_K', 'Q4_K', 'Q5_K', 'Q6_K']  # fmt: skip
# All types for two, which between them have every conversion but the offset;
# for the others one of each block size.
QUANTISED = [
  (name, kind)
  for name in gguf_models.FAMILIES
  for kind in (KINDS if name in ('llama', 'phi3') else ['Q4_1', 'Q4_K'])
]


@pytest.mark.parametrize(('name', 'kind'), QUANTISED)
def test_a_quantised_model_is_the_packages_dequantisation(
  name, kind, flat, tmp_path
):
  overrides = {}
  if kind.endswith('_K'):
    overrides = dict(
      vocab_size=16, hidden_size=256, intermediate_size=256, head_dim=64
    )
    if (
      'head_dim' in gguf_models.MODELS[name]
      and gguf_models.MODELS[name]['head_dim'] is None
    ):
      overrides['head_dim'] = None
    if 'gemma' in name:
      overrides['query_pre_attn_scalar'] = 64
  model = gguf_models.build(name, **overrides)
  quant = gguf.GGMLQuantizationType[kind]
  stored = gguf_writer.write(model, tmp_path / 'm.gguf', quantise=quant)
  weights = {}
  for hf_name, tensor in stored.items():
    value = tensor.data
    if tensor.kind is not None:
      value = gguf.quants.dequantize(value, tensor.kind)
    heads = gguf_writer.permuted_heads(hf_name, model.config)
    value = gguf_writer.unpermute(value, heads) if heads else value
    weights[hf_name] = value
  found = flat(load.load(tmp_path / 'm.gguf').params)
  split = parts(weights, model.config)
  assert len(split) >= len(found)
  for path, value in found.items():
    expected = leaf(path, split)
    if 'gemma' in name and 'norm' in path:
      value = value + np.float32(1)
    np.testing.assert_array_equal(value, expected, err_msg=path)


def parts(weights, config):
  """Takes Phi-3's fused projections apart."""
  result = dict(weights)
  head = gguf_writer.head_dim(config)
  query = config.num_attention_heads * head
  key = query + config.num_key_value_heads * head
  groups = {
    'self_attn.qkv_proj': (['q_proj', 'k_proj', 'v_proj'], [query, key]),
    'mlp.gate_up_proj': (['gate_proj', 'up_proj'], [config.intermediate_size]),
  }
  for name, value in weights.items():
    for fused, (names, cuts) in groups.items():
      if fused in name:
        stem = fused.split('.')[0]
        for part, rows in zip(names, np.split(value, cuts), strict=True):
          result[name.replace(fused, f'{stem}.{part}')] = rows
  return result


def leaf(path, weights):
  """Returns one leaf of our tree, from tensors by Hugging Face's names."""
  *modules, kind = path.split('/')
  suffix = 'bias' if kind == 'bias' else 'weight'

  def one(name):
    value = weights[f'{name}.{suffix}']
    return value.T if kind == 'kernel' else value

  if modules[0] != 'layers':
    return one('lm_head' if modules == ['lm_head'] else f'model.{modules[0]}')
  name = '.'.join(modules[1:])
  layers = sum(f'.{name}.{suffix}' in key for key in weights)
  return np.stack([one(f'model.layers.{i}.{name}') for i in range(layers)])


# Fields that transformers' own reader of GGUF translates for each.
THEIRS = ['num_hidden_layers', 'hidden_size', 'intermediate_size',
          'num_attention_heads', 'num_key_value_heads', 'rms_norm_eps',
          'max_position_embeddings']  # fmt: skip


@pytest.mark.parametrize('name', gguf_models.FAMILIES)
def test_transformers_reads_the_same_from_the_file(name, flat, tmp_path):
  """Theirs knows fewer keys: it is a second opinion on names and values."""
  if name in ('olmo2', 'smollm3'):
    pytest.skip('transformers does not read this architecture')
  # What it takes from its defaults rather than from the file.
  assumed = {'qwen3': {'head_dim': 128}, 'phi3': {'pad_token_id': 0}}
  model = gguf_models.build(name, **assumed.get(name, {}))
  gguf_writer.write(model, tmp_path / 'm.gguf')
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file='m.gguf', dtype='float32'
  )
  ours = load.load(tmp_path / 'm.gguf')
  for field in THEIRS:
    value = getattr(theirs.config, field)
    # Their float32 is not rounded to the decimal that was meant.
    assert getattr(ours.config, field) == pytest.approx(value, rel=1e-6), field
  weights = {k: v.numpy() for k, v in theirs.state_dict().items()}
  weights = parts(weights, theirs.config)
  for path, value in flat(ours.params).items():
    np.testing.assert_array_equal(value, leaf(path, weights), err_msg=path)


BYTES = {
  'model': 'llama',
  'tokens': ['<unk>', '<bos>', '<eos>'] + [f'<0x{i:02X}>' for i in range(256)],
  'scores': [0.0] * 259,
  'token_type': [2, 3, 3] + [6] * 256,
}


def test_a_random_model_has_no_massive_activations(tmp_path):
  """One family is enough: all equal what safetensors give, bit by bit."""
  model = gguf_models.build('gemma3_text', vocab_size=259)
  path = tmp_path / 'm.gguf'
  gguf_writer.write(model, path, tokenizer=BYTES)
  lm = me_jax.load(path)
  batch = me_jax.encode(lm, ['The quick brown fox', 'def f(x):'], bos='both')
  report = me_jax.find_me_layer(lm.model, lm.params, batch)
  assert report.layer is None


# What must not be believed.


@pytest.mark.parametrize('name', gguf_models.FAMILIES)
@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('expert_count', 8),
    ('attention.scale', 0.5),
    ('attention.causal', False),
    ('attention.key_length_swa', 8),
    ('rope.dimension_sections', [1, 2, 3]),
    ('rope.scaling.yarn_log_multiplier', 0.1),
    ('rope.scaling.yarn_beta_fast', 0.1),
    ('rope.scaling.attn_factor', 2.0),
    ('attention.value_length', 8),
    ('rope.dimension_count', 65),
  ],
)
def test_what_would_change_the_computation_is_refused(
  name, key, value, tmp_path
):
  model = gguf_models.build(name)
  gguf_writer.write(model, tmp_path / 'm.gguf', metadata={key: value})
  refused(tmp_path / 'm.gguf', key)


@pytest.mark.parametrize('name', gguf_models.FAMILIES)
def test_unknown_keys_are_shown_with_their_values(name, tmp_path):
  path = tmp_path / 'm.gguf'
  gguf_writer.write(
    gguf_models.build(name), path, metadata={'new_thing': [3, 4]}
  )
  refused(path, 'new_thing', '[3, 4]')


@pytest.mark.parametrize('name', gguf_models.FAMILIES)
def test_odd_tensors_are_refused(name, tmp_path):
  model = gguf_models.build(name)
  path = tmp_path / 'm.gguf'

  def missing(tensors):
    del tensors['blk.1.ffn_down.weight']

  def wrong(tensors):
    tensors['blk.1.ffn_down.weight'] = np.ones((64, 32), np.float32)

  def expert(tensors):
    tensors['blk.1.ffn_gate_inp.weight'] = np.ones((8, 64), np.float32)

  def norm(tensors):
    tensors['blk.0.attn_sub_norm.weight'] = np.ones(64, np.float32)

  def bias(tensors):
    tensors['blk.0.attn_output.bias'] = np.ones(64, np.float32)

  for change, word in (
    (missing, 'blk.1.ffn_down.weight'),
    (wrong, 'blk.1.ffn_down.weight'),
    (expert, 'blk.1.ffn_gate_inp.weight'),
    (norm, 'blk.0.attn_sub_norm.weight'),
    (bias, 'blk.0.attn_output.bias'),
  ):
    gguf_writer.write(model, path, change=change)
    refused(path, word)


def opened(path):
  return load.open_checkpoint(path).config


# What files of other converters leave out or add.


@pytest.mark.parametrize('name', gguf_models.FAMILIES)
def test_what_changes_nothing_is_accepted(name, tmp_path):
  model = gguf_models.build(name)
  plain, other = tmp_path / 'plain.gguf', tmp_path / 'other.gguf'
  gguf_writer.write(model, plain)
  added = {
    'expert_count': 0,
    'expert_used_count': 0,
    'attention.causal': True,
    'pooling_type': 3,
    'rope.scaling.finetuned': False,
    'rope.scaling.type': 'none',
    'vocab_size': 96,
    'tensor_data_layout': 'Meta AI original pth',
  }
  gguf_writer.write(model, other, metadata=added)
  assert opened(other) == opened(plain)


# Of configurations, what neither computes with nor files say.
SILENT = {'initializer_range', 'use_cache', 'eos_token_id', 'max_window_layers',
          'dtype', 'architectures', 'transformers_version', 'model_type',
          '_name_or_path'}  # fmt: skip


@pytest.mark.parametrize('name', gguf_models.MODELS)
def test_transformers_understands_the_configuration(name, tmp_path):
  config = gguf_models.build(name).config
  path = tmp_path / 'm.gguf'
  gguf_writer.write(gguf_models.build(name), path)
  hf = gguf_config.to_hf(reader.open_file(str(path)))
  assert hf['model_type'] == config.model_type
  assert hf['architectures'] == [type(gguf_models.build(name)).__name__]
  theirs = type(config)(**hf).to_dict()
  for field, value in type(config)(**config.to_dict()).to_dict().items():
    if field in type(config).__dataclass_fields__ and field not in SILENT:
      assert theirs[field] == value, field
