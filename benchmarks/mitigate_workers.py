"""Workers that measure what the mitigation costs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

_SHAPE, _ROUNDS = (2, 512), 12
_SETTINGS, _TEXTS, _LENGTH = 40, 64, 24


def mask_overhead(folder: str) -> dict[str, Any]:
  """Compares a forward pass with and without a mask in the parameters."""
  import jax

  import me_jax
  from me_jax.mitigation import wemask

  lm = me_jax.load(folder)
  shape = lm.config.num_hidden_layers, lm.config.hidden_size
  random = np.random.default_rng(0)
  masked = wemask.with_scale(lm.params, random.integers(0, 2, shape))
  tokens = random.integers(0, lm.config.vocab_size, _SHAPE).astype(np.int32)

  @jax.jit
  def forward(params, tokens):
    with jax.default_matmul_precision('highest'):
      return lm.model.apply({'params': params}, tokens).logits

  trees = lm.params, masked
  costs = [
    forward.lower(tree, tokens).compile().cost_analysis() for tree in trees
  ]
  times = [[], []]
  for _ in range(_ROUNDS):
    # In turn, so that a drift of the machine meets both.
    for tree, spent in zip(trees, times):
      start = time.perf_counter()
      jax.block_until_ready(forward(tree, tokens))
      spent.append(time.perf_counter() - start)
  ratios = np.array(times[1][1:]) / np.array(times[0][1:])
  return {
    'time': ratios.tolist(),
    'flops': [costs[1]['flops'], costs[0]['flops']],
  }


def sweep_compiles(folder: str) -> int:
  """Returns how often a sweep of 40 settings over 64 texts compiles."""
  import me_jax
  from me_jax.analysis import next_token
  from me_jax.analysis import prompts
  from me_jax.mitigation import scoring
  from me_jax.mitigation import tune

  lm = me_jax.load(folder)
  report = me_jax.find_me_layer(
    lm.model, lm.params, me_jax.encode(lm, prompts.builtin())
  )
  recipes = tune.grid(
    lm.model, report, selections=('weight', 'me_weight'),
    rates=np.linspace(0.05, 0.95, 10), strengths=(1.0,),
  )  # fmt: skip
  assert len(recipes) == _SETTINGS
  random = np.random.default_rng(0)
  texts = random.integers(0, lm.config.vocab_size, (_TEXTS, _LENGTH)).tolist()
  calibration = {
    kind: scoring.lay_out([(ids, 0) for ids in half], length=384)
    for kind, half in (('chats', texts[::2]), ('plain', texts[1::2]))
  }
  before = next_token.score._cache_size()
  tune.sweep(lm.model, lm.params, recipes, calibration)
  return next_token.score._cache_size() - before


WORKERS = (mask_overhead, sweep_compiles)
