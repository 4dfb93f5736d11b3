"""Workers that measure a step of training, and the peer in PyTorch.

Supervised fine-tuning of the default model in float32: rows of 512 tokens,
loss of the answers' tokens alone, gradients clipped to a norm of one, AdamW.
Ours are packed rows of several texts; the peer, which cannot pack without
another attention kernel, takes each row for one text, which is less work.
"""

from __future__ import annotations

import functools
import resource
import time
from typing import Any

import numpy as np

LENGTH = 512
_TEXTS = 3  # a row
_ANSWER = 0.6  # of a text's tokens, as in GSM8K under a chat template
_RATE = 1e-5
_STEPS = 3  # that are timed


def _batch(vocab: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns tokens, segments and wanted tokens, `[B, T]` each."""
  random = np.random.default_rng(0)
  shape = rows, LENGTH
  tokens = random.integers(0, vocab, shape).astype(np.int32)
  segments, wanted = np.zeros(shape, np.int32), np.zeros(shape, bool)
  for row in range(rows):
    ends = np.sort(random.integers(100, LENGTH - 100, _TEXTS - 1))
    pieces = np.split(np.arange(LENGTH), ends)
    for number, columns in enumerate(pieces, 1):
      segments[row, columns] = number
      wanted[row, columns[round(len(columns) * (1 - _ANSWER)) :]] = True
  return tokens, segments, wanted


def _measured(step: Any, rows: int) -> dict[str, float]:
  """Runs steps of so many rows; `step` returns the loss, a Python number.

  Returns:
    Tokens per second by the median step, the first two left out, the loss
    after all steps, and the peak memory of the process in MB.
  """
  losses, times = [], []
  for _ in range(_STEPS + 2):
    start = time.perf_counter()
    losses.append(step())
    times.append(time.perf_counter() - start)
  return {
    'rate': rows * LENGTH / float(np.median(times[2:])),
    'first_loss': losses[0],
    'last_loss': losses[-1],
    'peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
  }


def jax_train(folder: str, rows: str, part: str) -> dict[str, float]:
  """Times steps of ours.

  Args:
    folder: of the model.
    rows: of a batch.
    part: what is trained, `full` or `gates`.
  """
  import jax

  import me_jax
  from me_jax.mitigation import gates
  from me_jax.training import data
  from me_jax.training import objectives
  from me_jax.training import optimizer
  from me_jax.training import packing
  from me_jax.training import settings
  from me_jax.training import step as step_lib
  from me_jax.training import trained

  lm = me_jax.load(folder)
  parts = trained.Trained(parts=(part,))
  if part == 'gates':
    # All layers after the default model's emergence span.
    after = tuple(range(12, lm.config.num_hidden_layers))
    parts = trained.Trained(gates=gates.Gates(layers=after))
  tree, frozen = trained.split(lm.model, lm.params, parts)
  # As `me-jax train` computes it if nothing else is asked for.
  model = lm.model.clone(remat=settings.Compute().remat)
  vocab = lm.config.vocab_size
  del lm  # full training has copies of its own
  run = settings.Run(
    data=settings.Data(mix=data.Mix(sources=())),
    train=parts,
    optim=settings.Optimizer(lr=_RATE, schedule='constant', warmup=0.0),
    steps=_STEPS,
  )
  optimiser = optimizer.make(run.optim, run.steps)
  start = functools.partial(step_lib.start, optimiser)
  state = jax.jit(start, donate_argnums=0)(tree)
  advance = jax.jit(
    step_lib.make(model, run, optimiser, objectives.of(run)), donate_argnums=0
  )
  batch = packing.Packed(*_batch(vocab, int(rows)))

  def step() -> float:
    nonlocal state
    state, means = advance(state, frozen, batch)
    return float(means['loss'])

  return _measured(step, int(rows))


def torch_train(
  folder: str, rows: str, attention: str = 'sdpa', kind: str = 'fused'
) -> dict[str, float]:
  """Times the same steps of Hugging Face's model.

  Args:
    folder: of the model.
    rows: of a batch.
    attention: `sdpa`, which transformers takes by default, or `eager`.
    kind: of AdamW, `fused`, which is one kernel, or `foreach`.
  """
  import torch
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation=attention
  ).train()
  model.config.use_cache = False
  tokens, _, wanted = _batch(model.config.vocab_size, int(rows))
  tokens = torch.tensor(tokens).long()
  labels = torch.where(torch.tensor(wanted), tokens, -100)
  optimiser = torch.optim.AdamW(
    model.parameters(), lr=_RATE, weight_decay=0.0, **{kind: True}
  )

  def step() -> float:
    optimiser.zero_grad(set_to_none=True)
    loss = model(input_ids=tokens, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return float(loss.detach())

  return _measured(step, int(rows))


def loss_memory(folder: str) -> dict[str, int]:
  """Compares XLA's temporary memory of a loss and its gradient."""
  import dataclasses

  import jax
  import jax.numpy as jnp

  from me_jax.models import config as config_lib
  from me_jax.training import logprobs

  config = config_lib.ModelConfig.from_hf(folder)
  rows, width = 4, 64  # the head is as wide as the states are
  sizes = {}
  for vocab in (8192, 131072):

    def loss(table_VD, hidden_BTD, targets_BT, wanted_BT, vocab=vocab):
      scores = logprobs.token_logprobs(
        dataclasses.replace(config, vocab_size=vocab),
        {'embed_tokens': {'embedding': table_VD}},
        hidden_BTD,
        targets_BT,
        wanted_BT=wanted_BT,
        blocks=8,
        entropy=False,
      )
      return -jnp.sum(scores.logp_BT)

    shape = lambda *dims, kind=jnp.float32: jax.ShapeDtypeStruct(dims, kind)  # noqa: E731
    lowered = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(
      shape(vocab, width),
      shape(rows, LENGTH, width),
      shape(rows, LENGTH, kind=jnp.int32),
      shape(rows, LENGTH, kind=jnp.bool_),
    )
    sizes[vocab] = lowered.compile().memory_analysis().temp_size_in_bytes
  return {str(vocab): size for vocab, size in sizes.items()}


WORKERS = (jax_train, torch_train, loss_memory)
