"""Workers that measure generation, and the peer in PyTorch.

Greedy, 64 tokens in and 64 out; and as much work as 200 answers to GSM8K are,
whose lengths differ: ours refills rows, the peer's batches are as slow as their
longest answer.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

IN, OUT = 64, 64
_ROWS = 32


def _prompts(vocab: int, rows: int) -> np.ndarray:
  return (
    np.random.default_rng(0).integers(0, vocab, (rows, IN)).astype(np.int32)
  )


def _lengths(count: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns lengths of prompts and of answers, spread as GSM8K's are."""
  random = np.random.default_rng(0)
  prompts = np.clip(random.normal(90, 30, count), 40, 180).astype(int)
  answers = np.clip(random.lognormal(4.9, 0.5, count), 40, 512).astype(int)
  return prompts, answers


def _median(call: Any, times: int = 3) -> float:
  call()
  found = []
  for _ in range(times):
    start = time.perf_counter()
    call()
    found.append(time.perf_counter() - start)
  return float(np.median(found))


def jax_generate(folder: str, rows: str) -> dict[str, float]:
  """Returns new tokens per second of so many rows."""
  import me_jax
  from me_jax.models import params as params_lib

  lm = me_jax.load(folder)
  model = lm.model.clone(scanned=False)
  params = params_lib.unstack_layers(lm.params)
  tokens = _prompts(lm.config.vocab_size, int(rows))
  batch = me_jax.Batch(tokens, np.ones_like(tokens))
  seconds = _median(
    lambda: me_jax.generate(
      model, params, batch, max_new_tokens=OUT, stop_tokens=(), rows=int(rows)
    )
  )
  return {'rate': int(rows) * OUT / seconds}


def torch_generate(folder: str, rows: str) -> dict[str, float]:
  """The same in PyTorch."""
  import torch

  model = _torch_model(folder)
  tokens = torch.tensor(_prompts(model.config.vocab_size, int(rows))).long()
  seconds = _median(lambda: _torch_call(model, tokens, OUT))
  return {'rate': int(rows) * OUT / seconds}


def parameters(folder: str) -> int:
  """Returns how many numbers a step reads."""
  import jax

  import me_jax

  return sum(leaf.size for leaf in jax.tree.leaves(me_jax.load(folder).params))


def jax_answers(folder: str, count: str) -> dict[str, float]:
  """Returns answers per second of so many of differing lengths."""
  import me_jax
  from me_jax.generation import sampler
  from me_jax.generation import serve
  from me_jax.models import params as params_lib

  lm = me_jax.load(folder)
  model = lm.model.clone(scanned=False)
  params = params_lib.unstack_layers(lm.params)
  random = np.random.default_rng(0)
  prompts, answers = _lengths(int(count))
  texts = [
    random.integers(0, lm.config.vocab_size, prompt).tolist()
    for prompt in prompts
  ]
  longest = int(max(prompts + answers))

  def call(most: np.ndarray) -> None:
    done = serve.serve(
      model,
      params,
      [serve.Request(tokens=t, most=int(m)) for t, m in zip(texts, most)],
      sampling=sampler.Sampling(),
      stop_tokens=(),
      rows=_ROWS,
      longest=longest,
    )
    assert len(list(done)) == int(count)

  # Short answers to the same prompts compile the same programs.
  call(np.full_like(answers, 2))
  start = time.perf_counter()
  call(answers)
  return {'rate': int(count) / (time.perf_counter() - start)}


def torch_answers(folder: str, count: str) -> dict[str, float]:
  """The same in PyTorch: batches in order, each as long as its longest."""
  import torch

  model = _torch_model(folder)
  random = np.random.default_rng(0)
  prompts, answers = _lengths(int(count))
  start = time.perf_counter()
  for first in range(0, int(count), _ROWS):
    here = slice(first, first + _ROWS)
    longest = int(prompts[here].max())
    tokens = torch.tensor(
      random.integers(0, model.config.vocab_size, (len(prompts[here]), longest))
    )
    _torch_call(model, tokens.long(), int(answers[here].max()))
  return {'rate': int(count) / (time.perf_counter() - start)}


def _torch_model(folder: str) -> Any:
  import torch
  import transformers

  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  ).eval()


def _torch_call(model: Any, tokens: Any, count: int) -> None:
  import torch

  with torch.inference_mode():
    model.generate(
      tokens,
      attention_mask=torch.ones_like(tokens),
      max_new_tokens=count,
      min_new_tokens=count,
      do_sample=False,
      pad_token_id=0,
      eos_token_id=None,
    )


WORKERS = (
  parameters, jax_generate, torch_generate, jax_answers, torch_answers,
)  # fmt: skip
