"""Tiny random models of Hugging Face, and the same loaded by me_jax."""

from __future__ import annotations

import pathlib

import me_jax


def hf_llama(seed: int = 0, **overrides):
  """Returns a random Llama model in float32 whose layers all matter."""
  import torch
  import transformers

  torch.manual_seed(seed)
  values = dict(
    vocab_size=101,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    # Large enough that every layer changes the residual stream.
    initializer_range=0.12,
    bos_token_id=1,
    eos_token_id=2,
  )
  config = transformers.LlamaConfig(**(values | overrides))
  model = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if 'norm' in name:
        parameter.normal_(1.0, 0.2)
  return model


def loaded(model, folder: pathlib.Path) -> me_jax.LoadedModel:
  """Returns the model after a round trip through safetensors."""
  model.save_pretrained(folder)
  return me_jax.load(str(folder))
