"""How likely are continuations of contexts?

Requests that give the model the same input share a pass: four choices of one
token each are one row. Only the columns that predict a continuation go through
the head.

Letters: N rows, T time, C continuations of a row, W tokens of a continuation, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.generation import serve
from me_jax.models import batch as batch_lib
from me_jax.models import decoder

_PASS = 1024  # tokens of a pass
_MOST_SHARED = 8  # continuations of a row


class Pair(NamedTuple):
  """A context and what comes after it, as token ids; neither is empty."""

  context: list[int]
  continuation: list[int]


class Likelihood(NamedTuple):
  """Of a continuation: its log-probability in nats, and whether it is greedy."""

  log_probability: float
  greedy: bool


def score(
  model: decoder.Decoder,
  params: decoder.Params,
  pairs: Sequence[Pair],
  *,
  on_result: Callable[[int, Likelihood], Any] | None = None,
) -> list[Likelihood]:
  """Scores continuations.

  Args:
    model: the decoder.
    params: its parameters.
    pairs: what to score; cut from the left to one more than the context.
    on_result: called with the index of a pair and its likelihood.

  Returns:
    The likelihoods, in order.
  """
  longest = model.config.context_length
  shared: dict[tuple[tuple[int, ...], int], list[int]] = {}
  for i, (context, continuation) in enumerate(pairs):
    given = (context + continuation)[-(longest + 1) :][:-1]
    key = (tuple(given), min(len(continuation), len(given)))
    shared.setdefault(key, []).append(i)
  result: dict[int, Likelihood] = {}
  for rows, length, width in _passes(shared):
    batch, wanted_NW, targets_NCW = _lay_out(rows, pairs, length, width)
    sums_NC, greedy_NC = jax.device_get(
      _score(model, params, *batch, wanted_NW, targets_NCW)
    )
    for n, (_, indices) in enumerate(rows):
      for c, i in enumerate(indices):
        result[i] = Likelihood(float(sums_NC[n, c]), bool(greedy_NC[n, c]))
        if on_result is not None:
          on_result(i, result[i])
  return [result[i] for i in range(len(pairs))]


_Row = tuple[tuple[int, ...], list[int]]


def _passes(
  shared: dict[tuple[tuple[int, ...], int], list[int]],
) -> Iterator[tuple[list[_Row], int, int]]:
  """Yields rows of one shape, longest first, with their length and width."""
  rows: dict[tuple[int, int], list[_Row]] = {}
  for (given, width), indices in shared.items():
    length = serve.bucket(len(given))
    # A power of two, for fewer compiles.
    width = min(1 << (width - 1).bit_length(), length)
    here = rows.setdefault((length, width), [])
    for start in range(0, len(indices), _MOST_SHARED):
      here.append((given, indices[start : start + _MOST_SHARED]))
  for (length, width), here in sorted(rows.items(), reverse=True):
    count = max(1, _PASS // length)
    for start in range(0, len(here), count):
      yield here[start : start + count], length, width


def _lay_out(
  rows: Sequence[_Row], pairs: Sequence[Pair], length: int, width: int
) -> tuple[batch_lib.Batch, np.ndarray, np.ndarray]:
  """Returns tokens, the columns wanted and the tokens looked for; -1 is none."""
  count = max(1, _PASS // length)
  most = max(len(indices) for _, indices in rows)
  most = 1 if most == 1 else _MOST_SHARED
  batch = batch_lib.make_batch(
    [given for given, _ in rows], length=length, pad_side='left'
  )
  pads = ((0, count - len(rows)), (0, 0))
  batch = batch_lib.Batch(*(np.pad(x, pads) for x in batch))
  wanted_NW = np.broadcast_to(np.arange(length - width, length), (count, width))
  targets_NCW = np.full((count, most, width), -1, np.int32)
  for n, (given, indices) in enumerate(rows):
    for c, i in enumerate(indices):
      tail = pairs[i].continuation[-min(len(given), width) :]
      targets_NCW[n, c, width - len(tail) :] = tail
  return batch, wanted_NW, targets_NCW


@functools.partial(jax.jit, static_argnums=0)
def _score(
  model: decoder.Decoder,
  params: decoder.Params,
  tokens_NT: jax.Array,
  segments_NT: jax.Array,
  wanted_NW: jax.Array,
  targets_NCW: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns log-probabilities and whether they are the likeliest, `[N, C]`."""
  out = model.apply(
    {'params': params}, tokens_NT, segments_NT, wanted_BW=wanted_NW
  )
  logits_NWV = out.logits
  total_NW1 = jax.nn.logsumexp(logits_NWV, axis=-1, keepdims=True)
  best_NW = jnp.argmax(logits_NWV, axis=-1)
  found_NWC = jnp.take_along_axis(
    logits_NWV, jnp.maximum(targets_NCW, 0).swapaxes(1, 2), axis=2
  )
  counts_NCW = targets_NCW >= 0
  logs_NCW = (found_NWC - total_NW1).swapaxes(1, 2)
  sums_NC = jnp.sum(jnp.where(counts_NCW, logs_NCW, 0.0), axis=-1)
  hits_NCW = best_NW[:, None] == targets_NCW
  return sums_NC, jnp.all(hits_NCW | ~counts_NCW, axis=-1)
