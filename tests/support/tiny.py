"""Tiny random models of Hugging Face, and the same loaded by me_jax."""

from __future__ import annotations

import pathlib
from typing import Any

import me_jax

# What a model of each family needs besides `_SIZES` to show what is its own.
FAMILIES: dict[str, dict[str, Any]] = {
  'llama': {},
  'mistral': {'sliding_window': 40},
  'qwen2': {
    'use_sliding_window': True,
    'sliding_window': 40,
    'max_window_layers': 1,
  },
  'qwen3': {'head_dim': 20},
  'phi3': {'pad_token_id': 0},
  'gemma2': {
    'head_dim': 20,
    'sliding_window': 40,
    'query_pre_attn_scalar': 15,
    'hidden_activation': 'gelu_pytorch_tanh',
    'attn_logit_softcapping': 2.0,
    'final_logit_softcapping': 3.0,
  },
  'gemma3_text': {
    'head_dim': 20,
    'sliding_window': 40,
    'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention'],
    'query_pre_attn_scalar': 15,
    'final_logit_softcapping': 3.0,
  },
  'olmo2': {'pad_token_id': 0},
  'smollm3': {'no_rope_layers': [1, 0, 1], 'pad_token_id': 0},
}
_SIZES = dict(
  vocab_size=101,
  hidden_size=48,
  intermediate_size=80,
  num_hidden_layers=3,
  num_attention_heads=6,
  num_key_value_heads=2,
  max_position_embeddings=1024,
  tie_word_embeddings=False,
  # Large enough that every layer changes the residual stream.
  initializer_range=0.12,
  bos_token_id=1,
  eos_token_id=2,
)


def hf_model(family: str, seed: int = 0, **overrides: Any) -> Any:
  """Returns a random model in float32 whose parameters all matter.

  Args:
    family: a `model_type` in `FAMILIES`.
    seed: of the parameters.
    **overrides: fields of its configuration; None removes one.
  """
  import torch
  import transformers

  torch.manual_seed(seed)
  fields = _SIZES | FAMILIES[family] | overrides
  config = transformers.AutoConfig.for_model(family, **fields)
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if name.endswith('bias'):
        parameter.normal_(0.0, 0.3)
      elif 'norm' in name:
        # Gemma stores its weights less one.
        parameter.normal_(0.0 if 'gemma' in family else 1.0, 0.2)
  return model


def train(model: Any, steps: int = 100) -> Any:
  """Trains a model for a few seconds, so that it has something to say.

  The text: each token is mostly followed by one that is fixed for it, and
  sometimes by any.
  """
  import torch

  vocab = model.config.vocab_size
  generator = torch.Generator().manual_seed(0)
  following = torch.randperm(vocab, generator=generator)
  optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
  for _ in range(steps):
    tokens = torch.randint(vocab, (8, 64), generator=generator)
    usual = torch.rand((8, 64), generator=generator) < 0.8
    for t in range(1, 64):
      tokens[:, t] = torch.where(
        usual[:, t], following[tokens[:, t - 1]], tokens[:, t]
      )
    loss = model(tokens, labels=tokens).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
  return model


def hf_llama(seed: int = 0, **overrides: Any) -> Any:
  """Returns `hf_model('llama')`."""
  return hf_model('llama', seed, **overrides)


def loaded(model: Any, folder: pathlib.Path) -> me_jax.LoadedModel:
  """Returns the model after a round trip through safetensors."""
  model.save_pretrained(folder)
  return me_jax.load(str(folder))
