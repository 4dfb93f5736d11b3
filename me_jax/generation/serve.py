"""Keeps the rows of a batch busy: a row that ends gets the next prompt.

Letters: B rows, N prompts that are run at once, T their padded length.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from me_jax import errors
from me_jax.generation import sampler
from me_jax.generation import steps
from me_jax.models import batch as batch_lib
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.models import params as params_lib

_SHORTEST = 32  # length that prompts are padded to at least
SLOTS = 64  # a cache has a multiple of them
_PREFILL = 512  # tokens of the prompts that are run at once
STEPS = 16  # of decoding, between which the host looks at what came out
_SHOWN_STEPS = 4  # the same where somebody watches

# Says of a text's new tokens whether it has ended.
Ended = Callable[[list[int]], bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """A text to go on with.

  Attributes:
    tokens: ids of the prompt.
    most: tokens that it may get.
    seed: of its samples.
  """

  tokens: Sequence[int]
  most: int
  seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
  """What came out of a request.

  Attributes:
    index: of the request.
    tokens: new ids, the stop token included.
    stopped: whether the text ended, and not its allowance.
  """

  index: int
  tokens: list[int]
  stopped: bool


def check(config: config_lib.ModelConfig, requests: Sequence[Request]) -> None:
  """Raises MeJaxError for a request that cannot be served."""
  for number, request in enumerate(requests, 1):
    length = len(request.tokens)
    if not length:
      raise errors.MeJaxError(f'prompt {number} is empty: it has no tokens.')
    if request.most < 1:
      raise errors.MeJaxError(
        f'prompt {number} may get {request.most} new tokens, must be at least 1.'
      )
    if length + request.most > config.context_length:
      raise errors.MeJaxError(
        f'prompt {number} has {length} tokens and may get {request.most} more:'
        f' together they exceed the context of {config.context_length}'
        f' ({max(config.context_length - length, 0)} would fit).'
      )
    if not 0 <= min(request.tokens) <= max(request.tokens) < config.vocab_size:
      raise errors.MeJaxError(
        f'prompt {number} has a token id outside the vocabulary of'
        f' {config.vocab_size}.'
      )


def serve(
  model: decoder.Decoder,
  params: decoder.Params,
  requests: Sequence[Request],
  *,
  sampling: sampler.Sampling,
  stop_tokens: Sequence[int],
  rows: int,
  ended: Ended | None = None,
  on_tokens: Callable[[int, list[int]], Any] | None = None,
  cache_dtype: Any = None,
  longest: int = 0,
  shortest: int = _SHORTEST,
) -> Iterator[Completion]:
  """Yields completions as they are done, in no order.

  Args:
    model: the decoder, scanned or unrolled.
    params: its parameters; stacked ones are unstacked for an unrolled model.
    requests: checked.
    sampling: how tokens are chosen.
    stop_tokens: ids that end a text.
    rows: B, texts in the making at a time.
    ended: given a text's new tokens, whether it has ended for another reason.
    on_tokens: called with a request's index and all its new tokens so far.
    cache_dtype: of keys and values; by default the model's.
    longest: tokens that there is room for in a row at least: calls with the same
      one share a program for steps, whatever their requests' lengths.
    shortest: tokens that prompts are padded to at least, and so share programs.
  """
  model, params = decoding_form(model, params, unrolled=not model.scanned)

  def padded(index: int) -> int:
    return bucket(max(shortest, len(requests[index].tokens)))

  waiting = _in_order(requests)
  rows = min(rows, len(requests))
  longest = max(longest, *(len(r.tokens) + r.most for r in requests))
  # All slots are read in every step; steps are compiled once in any case.
  slots = -(-longest // SLOTS) * SLOTS
  state = steps.start(
    model,
    rows,
    slots,
    jnp.dtype(cache_dtype or model.dtype),
    'repetition_penalty' in sampling.active,
  )
  count = STEPS if on_tokens is None else _SHOWN_STEPS
  rule = steps.Rule(
    sampling.values, jnp.asarray(sorted({-1, *stop_tokens}), jnp.int32)
  )
  holds: list[int | None] = [None] * rows
  tokens: dict[int, list[int]] = {}
  stops = frozenset(stop_tokens)

  while waiting or holds != [None] * rows:
    fresh = []
    while waiting:
      free = [row for row, index in enumerate(holds) if index is None]
      most = together(padded(waiting[-1]), rows)
      # A prompt alone would take as long as several together.
      if len(free) < min(most, len(waiting), rows):
        break
      taken = _next_prompts(waiting, padded, most)
      prompts = _prompts(
        [requests[i] for i in taken], free, rows, padded(taken[0])
      )
      state, first_N = steps.prefill(
        model, sampling.active, params, state, prompts, rule
      )
      for row, index, token in zip(free, taken, np.asarray(first_N)):
        holds[row] = index
        tokens[index] = [int(token)]
        fresh.append(row)
    # With more to come, go on only until there is room for it.
    busy = 0
    if waiting:
      busy = rows - min(together(padded(waiting[-1]), rows), len(waiting))
    state, out_BC = steps.decode(
      model, sampling.active, count, params, state, rule, jnp.int32(busy)
    )
    out_BC, active_B = jax.device_get((out_BC, state.active_B))
    ended_B = np.zeros(rows, bool)
    for row, index in enumerate(holds):
      if index is None:
        continue
      new = out_BC[row][out_BC[row] >= 0].tolist()
      tokens[index] += new
      stopped = tokens[index][-1] in stops
      if ended is not None and ended(tokens[index]):
        stopped = ended_B[row] = True
        # Only up to there, however many steps were taken together.
        first = bisect.bisect_left(
          range(len(tokens[index])),
          True,
          key=lambda n, new=tokens[index]: ended(new[: n + 1]),
        )
        del tokens[index][first + 1 :]
      if on_tokens is not None and (new or row in fresh):
        on_tokens(index, tokens[index])
      if stopped or not active_B[row]:
        holds[row] = None
        yield Completion(index=index, tokens=tokens.pop(index), stopped=stopped)
    if (ended_B & active_B).any():
      state = steps.stop(state, ended_B)


def decoding_form(
  model: decoder.Decoder,
  params: decoder.Params,
  *,
  unrolled: bool | None = None,
) -> tuple[decoder.Decoder, decoder.Params]:
  """Returns a model and its parameters in the form that takes steps fastest.

  Args:
    model: scanned or unrolled.
    params: its tree, or that of the scanned model.
    unrolled: whether layers are: faster on a CPU, where the scan copies their
      weights in every step, and longer to compile; by default on a CPU.
  """
  if unrolled is None:
    unrolled = jax.default_backend() == 'cpu'
  if unrolled and 'layers' in params:
    params = params_lib.unstack_layers(params)
  return model.clone(scanned=not unrolled), params


def bucket(length: int) -> int:
  """Returns the length that a text is padded to: 32, 48, 64, 96, 128, ..."""
  power = max(_SHORTEST, 1 << (length - 1).bit_length())
  between = power * 3 // 4
  return between if length <= between and between > _SHORTEST else power


def together(length: int, rows: int) -> int:
  """Returns how many prompts of a padded length are run at once."""
  # At most some of the rows: the others would wait for the last of them.
  return max(1, min(_PREFILL // length, rows // 4))


def _in_order(requests: Sequence[Request]) -> list[int]:
  """Returns the requests' indices, to be taken from the end: longest first."""
  return sorted(
    range(len(requests)), key=lambda i: (len(requests[i].tokens), -i)
  )


def _next_prompts(
  waiting: list[int], padded: Callable[[int], int], most: int
) -> list[int]:
  """Takes prompts that are padded to one length."""
  length = padded(waiting[-1])
  taken: list[int] = []
  while waiting and len(taken) < most and padded(waiting[-1]) == length:
    taken.append(waiting.pop())
  return taken


def _prompts(
  chosen: Sequence[Request], free: Sequence[int], rows: int, length: int
) -> steps.Prompts:
  """Lays prompts out, on as many rows as the program for their length has."""
  missing = together(length, rows) - len(chosen)
  batch = batch_lib.make_batch(
    [request.tokens for request in chosen], length=length, pad_side='left'
  )
  pads = ((0, missing), (0, 0))
  tokens_NT, segments_NT = (np.pad(x, pads) for x in batch)

  def filled(values: Sequence[int], kind: Any, nothing: int) -> np.ndarray:
    return np.array([*values, *[nothing] * missing], kind)

  return steps.Prompts(
    tokens_NT=tokens_NT,
    segments_NT=segments_NT,
    rows_N=filled(free[: len(chosen)], np.int32, rows),
    left_N=filled([r.most for r in chosen], np.int32, 1),
    seeds_N=filled([r.seed for r in chosen], np.uint32, 0),
  )
