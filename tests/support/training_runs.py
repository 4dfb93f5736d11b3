"""Made-up rows of training runs, for whatever shows them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from me_jax.analysis import bootstrap
from me_jax.training import compared as compared_lib

# How far the loss of each set moves in the end, and how sure that is.
SETS = {'GSM8K': (-0.31, 0.03), 'C4': (0.012, 0.005)}
GUARD = 0.02


def train(
  steps: int = 200, every: int = 1, seed: int = 0, **extras: Any
) -> list[dict[str, Any]]:
  """Returns rows of steps; extras are functions of the part of the run done."""
  random = np.random.default_rng(seed)
  rows = []
  for step in range(every, steps + 1, every):
    done = step / steps
    row = {
      'kind': 'train',
      'step': step,
      'loss': 1.8 + 0.6 * math.exp(-6 * done) + random.normal(0, 0.08),
      'lr': 1e-3 * min(step / (0.1 * steps), 1.0) * (1 - 0.9 * done),
      'grad_norm': 0.6 + 0.3 * random.random(),
      'tokens': 5120,
      'seconds': 12.3,
      'tokens_per_s': 416.0,
      'mfu': None,
    }
    rows.append(row | {k: extra(done, random) for k, extra in extras.items()})
  return rows


def evaluations(steps: int = 200, count: int = 11) -> list[dict[str, Any]]:
  """Returns rows of `SETS` that move to where they end, and then a little up."""
  rows = []
  for step in np.linspace(0, steps, count).round().astype(int).tolist():
    done = step / steps
    sets = {}
    for name, (end, wide) in SETS.items():
      loss = 2.1 + end * (1 - math.exp(-4 * done)) + 0.04 * done**3
      sets[name] = {
        'loss': loss,
        'low': loss - wide,
        'high': loss + wide,
        'tokens': 9000,
        'texts': 100,
      }
    rows.append({'kind': 'held_out', 'step': step, 'sets': sets})
  return rows


def looks(
  steps: int = 200, count: int = 6, layers: range | None = range(12, 30)
) -> list[dict[str, Any]]:
  """Returns rows from inside the model; its spike falls."""
  rows = []
  for step in np.linspace(0, steps, count).round().astype(int).tolist():
    done = step / steps
    row: dict[str, Any] = {
      'kind': 'monitor',
      'step': step,
      'me_layer': 11,
      'spike': 23_700.0 * math.exp(-6 * done),
      'sink_rate': 0.62 - 0.2 * done,
      'rigidity': 0.9991 - 0.0005 * done,
    }
    if layers is not None:
      depth = np.arange(len(layers)) / max(len(layers) - 1, 1)
      mean_G = 1 - 0.3 * done * depth
      masked_G = 0.4 * done * depth**2
      row['gates'] = {
        'mean': float(mean_G.mean()),
        'masked': float(masked_G.mean()),
        'mean_G': mean_G.tolist(),
        'masked_G': masked_G.tolist(),
        'layers': list(layers),
      }
    rows.append(row)
  return rows


def held_out(
  name: str = 'GSM8K',
  change: float = -0.3,
  *,
  wide: float = 0.01,
  on_task: bool = True,
  guard: float | None = None,
  texts: int = 100,
  before: float = 2.1,
) -> compared_lib.HeldOut:
  """Returns what became of a set."""

  def around(value: float) -> bootstrap.Estimate:
    return bootstrap.Estimate(value, value - wide, value + wide)

  return compared_lib.HeldOut(
    name=name,
    on_task=on_task,
    before=around(before),
    after=around(before + change),
    change=around(change),
    texts=texts,
    tokens=90 * texts,
    guard=guard,
  )


def kept(guard: float | None = GUARD, **fields: Any) -> compared_lib.HeldOut:
  """Returns what became of a set off the task."""
  fields = {'change': 0.005} | fields
  return held_out('C4', on_task=False, guard=guard, **fields)
