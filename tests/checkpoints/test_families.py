"""Checkpoints of every family, as transformers saves them."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

import me_jax
from tests.support import parity
from tests.support import tiny

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('torch') is None,
  reason='torch, the reference implementation, is not installed',
)


def multimodal():
  """Returns a tiny random model of text and images."""
  import torch
  import transformers

  text = tiny.hf_model('gemma3_text').config.to_dict() | {
    'tie_word_embeddings': True,
    'pad_token_id': 0,
    'final_logit_softcapping': None,
  }
  vision = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1,
    num_attention_heads=2, image_size=28, patch_size=14, vision_use_head=False,
  )  # fmt: skip
  torch.manual_seed(0)
  config = transformers.Gemma3Config(
    text_config=text, vision_config=vision, image_token_id=99
  )
  model = transformers.Gemma3ForConditionalGeneration(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.normal_(0, 0.15)
  return model


@pytest.mark.parametrize('prefix', ['model.language_model.', 'language_model.'])
def test_the_text_model_of_a_multimodal_checkpoint(tmp_path, prefix):
  import torch

  model = multimodal()
  model.save_pretrained(tmp_path)
  file = tmp_path / 'model.safetensors'
  tensors = {}
  for name, value in safetensors_numpy.load_file(file).items():
    # What is saved has transformers 4's names; both must be read.
    bare = name.removeprefix('model.').replace(
      'language_model.model.', 'language_model.'
    )
    tensors[name] = value
    if bare.startswith('language_model.'):
      del tensors[name]
      rest = bare.removeprefix('language_model.')
      inner = 'model.' if prefix == 'language_model.' else ''
      tensors[f'{prefix}{inner}{rest}'] = value
  assert any('vision_tower' in name for name in tensors)
  safetensors_numpy.save_file(tensors, file)
  lm = me_jax.load(str(tmp_path))
  assert lm.config.model_type == 'gemma3_text'
  texts = parity.tokens(1) % 90
  with torch.no_grad():
    expected = model(torch.tensor(texts)).logits.numpy()
  _, logits = parity.our_states(lm, texts)
  np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_head_that_is_not_the_embedding_it_is_said_to_be(tmp_path):
  tiny.hf_model('llama', tie_word_embeddings=False).save_pretrained(tmp_path)
  file = tmp_path / 'config.json'
  raw = json.loads(file.read_text()) | {'tie_word_embeddings': True}
  file.write_text(json.dumps(raw))
  with pytest.raises(me_jax.MeJaxError, match='lm_head.weight, which differs'):
    me_jax.load(str(tmp_path))
  weights = tmp_path / 'model.safetensors'
  tensors = safetensors_numpy.load_file(weights)
  tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
  safetensors_numpy.save_file(tensors, weights)
  assert 'lm_head' not in me_jax.load(str(tmp_path)).params


def test_image_weights_are_no_part_of_a_text_checkpoint(tmp_path):
  tiny.hf_model('gemma3_text').save_pretrained(tmp_path)
  file = tmp_path / 'model.safetensors'
  tensors = safetensors_numpy.load_file(file)
  tensors['vision_tower.patch.weight'] = np.zeros((2, 2), np.float32)
  safetensors_numpy.save_file(tensors, file)
  with pytest.raises(me_jax.MeJaxError, match='vision_tower.patch.weight'):
    me_jax.load(str(tmp_path))


def test_a_field_that_is_not_known_names_file_and_value(tmp_path):
  tiny.hf_model('qwen2').save_pretrained(tmp_path)
  file = tmp_path / 'config.json'
  raw = json.loads(file.read_text()) | {'num_experts_per_tok': 2}
  file.write_text(json.dumps(raw))
  with pytest.raises(me_jax.MeJaxError, match='num_experts_per_tok = 2'):
    me_jax.load(str(tmp_path))
