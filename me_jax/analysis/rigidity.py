"""How much does a token's state vary, across inputs and across layers?

Two texts that start alike have the same state at their first token: a decoder
is causal. What varies can only be seen between different *inputs*, the texts up
to and including the token, so equal ones count once. A bounded sample of them
is kept, those whose hashes are smallest: which they are depends neither on the
order of the texts nor on how they are batched.

Letters: K inputs, L layers, D model width, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
from typing import NamedTuple

import numpy as np

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class InputSample(NamedTuple):
  """States of one token in different inputs.

  Attributes:
    keys: hashes of the inputs, ascending.
    state_KLD: the token's state after each layer.
    attn_in_KLD: what attention received of it in each layer.
  """

  keys: tuple[bytes, ...]
  state_KLD: np.ndarray
  attn_in_KLD: np.ndarray


class Cosines(NamedTuple):
  """Cosines between the states of different inputs.

  Attributes:
    inputs: how many there are.
    mean_L: mean over all pairs; NaN when there are fewer than two inputs.
    quantiles_QL: at `QUANTILES`.
  """

  inputs: int
  mean_L: np.ndarray
  quantiles_QL: np.ndarray


def key(ids: Sequence[int]) -> bytes:
  """Returns a hash of an input's token ids."""
  data = np.asarray(ids, np.int32).tobytes()
  return hashlib.blake2b(data, digest_size=8).digest()


def add(
  sample: InputSample | None,
  keys: Sequence[bytes],
  state_KLD: np.ndarray,
  attn_in_KLD: np.ndarray,
  most: int,
) -> InputSample:
  """Returns the sample with further inputs, the `most` smallest of all."""
  old = sample.keys if sample else ()
  where = {k: i for i, k in reversed(list(enumerate([*old, *keys])))}
  kept = sorted(where)[:most]

  def merge(before: np.ndarray | None, new_KLD: np.ndarray) -> np.ndarray:
    both = [x for x in (before, new_KLD) if x is not None]
    count = len(old)
    # Row by row: the whole of both would be copied for the few that enter.
    rows = [
      both[0][where[k]] if where[k] < count else new_KLD[where[k] - count]
      for k in kept
    ]
    return np.stack(rows) if rows else new_KLD[:0]

  return InputSample(
    tuple(kept),
    merge(sample and sample.state_KLD, state_KLD),
    merge(sample and sample.attn_in_KLD, attn_in_KLD),
  )


def cosines(values_KLD: np.ndarray) -> Cosines:
  """Compares every pair of inputs, layer by layer."""
  count, layers = values_KLD.shape[:2]
  if count < 2:
    nothing = np.full((len(QUANTILES), layers), np.nan)
    return Cosines(count, nothing[0], nothing)
  unit_KLD = _unit(values_KLD)
  pairs = np.triu_indices(count, 1)
  cosine_LX = np.stack(
    [(unit_KLD[:, i] @ unit_KLD[:, i].T)[pairs] for i in range(layers)]
  )
  return Cosines(
    count, cosine_LX.mean(axis=1), np.quantile(cosine_LX, QUANTILES, axis=1)
  )


def between_layers(state_XLD: np.ndarray) -> np.ndarray:
  """Returns cosines between a token's states after any two layers, `[X, L, L]`."""
  unit_XLD = _unit(state_XLD)
  return unit_XLD @ unit_XLD.swapaxes(1, 2)


def _unit(values: np.ndarray) -> np.ndarray:
  values = values.astype(np.float64)
  length = np.linalg.norm(values, axis=-1, keepdims=True)
  return values / np.maximum(length, np.finfo(np.float64).tiny)
