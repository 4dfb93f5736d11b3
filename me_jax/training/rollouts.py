"""Which answers does the policy give, and what is each worth?

Answers are drawn from the parameters as they are, their mask or gates included,
judged, and laid out as the update wants them: one a row, in arrays whose shape is
the same in every step. What is scored must be what was drawn:

  rolled = rollouts.sample(model, params, prompts, settings, tokenizer, ...)
  scores, predicted_BT = logprobs.answer_logprobs(
    model, params, *rolled.packed[:2], temperature=settings.temperature
  )

with each column's score that of the NEXT token, so that `wanted_BT` moves one
column to the left. Filters (`top_k`, `top_p`) draw from a part of what is scored;
by default there are none.

Letters: G prompts, R answers of each, B = G R rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np

from me_jax import errors
from me_jax.generation import sampler
from me_jax.generation import serve
from me_jax.models import decoder
from me_jax.training import batches as batches_lib
from me_jax.training import examples as examples_lib
from me_jax.training import losses
from me_jax.training import packing
from me_jax.training import rewards as rewards_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How answers are drawn and judged.

  Attributes:
    answers: R, to each prompt.
    max_new_tokens: of an answer, at most.
    temperature: logits are divided by it, in the loss as well.
    top_p: only the likeliest tokens that have this probability together.
    top_k: only so many likeliest tokens; 0 is all.
    rewards: of each a name of `rewards.NAMED` or a function, and a weight.
    rows: answers in the making at a time.
  """

  answers: int = 4
  max_new_tokens: int = 256
  temperature: float = 1.0
  top_p: float = 1.0
  top_k: int = 0
  rewards: rewards_lib.Weighted = (('maths', 1.0),)
  rows: int = 64

  def __post_init__(self):
    for name, least, why in (
      ('answers', 2, ': answers to a prompt are compared with each other'),
      ('max_new_tokens', 1, ''),
      ('rows', 1, ''),
    ):
      value = getattr(self, name)
      whole = isinstance(value, int) and not isinstance(value, bool)
      if not whole or value < least:
        raise errors.MeJaxError(
          f'{name} is {value!r}, must be {least} or more{why}.'
        )
    if self.temperature == 0:
      raise errors.MeJaxError(
        'temperature is 0, must be above: all answers would be the same.'
      )
    self.sampling()
    rewards_lib.check(self.rewards)

  def sampling(self) -> sampler.Sampling:
    """Returns how tokens are chosen."""
    return sampler.Sampling(
      temperature=self.temperature, top_p=self.top_p, top_k=self.top_k
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollouts:
  """Answers, judged. Row g R + r is answer r to prompt g.

  Attributes:
    packed: `[B, T]`, a prompt with one answer a row; what the policy drew is
      wanted, the stop token included.
    advantages_B1: float32, as `losses.grpo` takes them.
    rewards_GR: float32, weighted sums.
    parts: of each reward by name what it said, `[G, R]` float32, unweighted.
    failures: what rewards raised, see `rewards.Judged`.
    length_GR: int32, tokens of each answer.
    stopped_GR: bool, whether it ended by itself and was not cut.
    texts: of the answers, without stop tokens, `[B]`.
  """

  packed: packing.Packed
  advantages_B1: np.ndarray
  rewards_GR: np.ndarray
  parts: dict[str, np.ndarray]
  failures: dict[str, str]
  length_GR: np.ndarray
  stopped_GR: np.ndarray
  texts: tuple[str, ...]

  def means(self) -> dict[str, float]:
    """Returns what a log wants, as JSON can hold it.

    `varied` is the share of prompts whose answers differ in reward: the others
    teach nothing.
    """
    found = {
      'reward': self.rewards_GR,
      **{f'reward_{name}': part for name, part in self.parts.items()},
      'length': self.length_GR,
      'stopped': self.stopped_GR,
      'varied': np.ptp(self.rewards_GR, axis=1) > 0,
    }
    return {name: float(np.mean(values)) for name, values in found.items()}


def sample(
  model: decoder.Decoder,
  params: decoder.Params,
  prompts: batches_lib.Prompts,
  settings: Settings,
  tokenizer: Any,
  *,
  length: int,
  seed: int | Sequence[int],
  first: int = 0,
  decode: Callable[[list[int]], str] | None = None,
  stop_tokens: Sequence[int] | None = None,
  progress: Callable[[int, int], Any] | None = None,
) -> Rollouts:
  """Draws answers and judges them.

  A function of its arguments: a run that goes on after step s draws what an
  uninterrupted one would. Programs are compiled for `length`, the number of
  prompts and at most three lengths that prompts are padded to; later calls
  compile nothing.

  This process draws for its own prompts from parameters that it can address. On
  several hosts each passes its share of the prompts, `first`, and parameters
  that lie whole on its own devices (gathered from the mesh of all, outside of
  which this must then run); `packed` and `advantages_B1` are its share of the
  rows of global arrays.

  Args:
    model: the decoder, scanned or not. On CPUs layers are unrolled here, which
      copies the parameters for as long as answers are drawn.
    params: its parameters, merged, stacked or in the layout that it has.
    prompts: of a batch.
    settings: how.
    tokenizer: of the model; may be None where `decode` is given.
    length: T, the same in all steps: that of the longest prompt of the data
      and `max_new_tokens`.
    seed: not negative, one or several: of the run and of the step. A prompt's
      answers depend on it and on the prompt's place.
    first: place of the first prompt in the batch of all hosts.
    decode: ids of an answer, less a stop token, to the text that is judged; by
      default the tokenizer's, without special tokens.
    stop_tokens: ids that end an answer; by default the configuration's.
    progress: called with (answers done, answers in all).

  Raises:
    MeJaxError: a prompt is too long or cannot be judged, which is said before
      anything is drawn; or a reward fails for every answer.
  """
  rewards_lib.check_rows(settings.rewards, prompts.rows)
  requests = _requests(prompts, settings, length, seed, first)
  serve.check(model.config, requests)
  if stop_tokens is None:
    stop_tokens = model.config.eos_token_ids
  if decode is None:
    decode = _decode(tokenizer)
  drawn = _draw(
    model, params, requests, settings, length, stop_tokens, progress
  )
  stops = frozenset(stop_tokens)
  texts = tuple(
    decode(one.tokens[:-1] if one.tokens[-1] in stops else one.tokens)
    for one in drawn
  )
  groups = (len(prompts.rows), settings.answers)
  judged = rewards_lib.judge(
    settings.rewards,
    texts,
    [row for row in prompts.rows for _ in range(settings.answers)],
  )
  rewards_GR = judged.rewards_B.reshape(groups)
  return Rollouts(
    packed=packing.lay_out(
      [[_example(request, one)] for request, one in zip(requests, drawn)],
      length,
    ),
    advantages_B1=np.asarray(losses.group_advantages(rewards_GR)).reshape(
      -1, 1
    ),
    rewards_GR=rewards_GR,
    parts={name: part.reshape(groups) for name, part in judged.parts.items()},
    failures=judged.failures,
    length_GR=np.array([len(x.tokens) for x in drawn], np.int32).reshape(
      groups
    ),
    stopped_GR=np.array([x.stopped for x in drawn], bool).reshape(groups),
    texts=texts,
  )


def _requests(
  prompts: batches_lib.Prompts,
  settings: Settings,
  length: int,
  seed: int | Sequence[int],
  first: int,
) -> list[serve.Request]:
  """Returns what is to be drawn, an answer each."""
  if not prompts.tokens:
    raise errors.MeJaxError('there is no prompt to answer.')
  seeds = [seed] if isinstance(seed, int) else [*seed]
  if min(seeds) < 0:
    raise errors.MeJaxError(f'the seed is {min(seeds)}, must be 0 or more.')
  most = length - settings.max_new_tokens
  found = []
  for g, tokens_T in enumerate(prompts.tokens):
    if len(tokens_T) > most:
      raise errors.MeJaxError(
        f'prompt {g + 1} has {len(tokens_T)} tokens: a row of {length} has room'
        f' for {max(most, 0)} before an answer of {settings.max_new_tokens}.'
      )
    # Of its place in the batch of all hosts, however many there are.
    own = np.random.SeedSequence([*seeds, first + g])
    found += [
      serve.Request(
        tokens=tokens_T.tolist(), most=settings.max_new_tokens, seed=int(one)
      )
      for one in own.generate_state(settings.answers)
    ]
  return found


def _draw(
  model: decoder.Decoder,
  params: decoder.Params,
  requests: Sequence[serve.Request],
  settings: Settings,
  length: int,
  stop_tokens: Sequence[int],
  progress: Callable[[int, int], Any] | None,
) -> list[serve.Completion]:
  """Returns answers in the order of the requests."""
  found: dict[int, serve.Completion] = {}
  for one in serve.serve(
    *serve.decoding_form(model, params),
    requests,
    sampling=settings.sampling(),
    stop_tokens=stop_tokens,
    rows=settings.rows,
    longest=length,
    # A long program takes a minute to compile, a few pads next to nothing.
    shortest=serve.bucket(length - settings.max_new_tokens) // 2,
  ):
    found[one.index] = one
    if progress is not None:
      progress(len(found), len(requests))
  return [found[i] for i in range(len(requests))]


def _example(
  request: serve.Request, drawn: serve.Completion
) -> examples_lib.Example:
  """Returns a prompt with its answer, which is what is wanted."""
  tokens_T = np.array([*request.tokens, *drawn.tokens], np.int32)
  return examples_lib.Example(
    tokens_T, np.arange(len(tokens_T)) >= len(request.tokens)
  )


def _decode(tokenizer: Any) -> Callable[[list[int]], str]:
  if tokenizer is None:
    raise errors.MeJaxError(
      'answers need a tokenizer: the checkpoint has none; put its'
      ' tokenizer.json beside it.'
    )
  return lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
