"""What does a step make small, and what does it need of a batch?

An objective takes parameters and a batch and returns sums with counts by name,
of which `loss` is made small. Parts of a batch add up exactly.

Letters: B rows, T time, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from me_jax.models import decoder
from me_jax.training import logprobs
from me_jax.training import losses
from me_jax.training import packing
from me_jax.training import settings as settings_lib

# By name: what is summed, and what it is divided by; float32 scalars.
Sums = dict[str, tuple[jax.Array, jax.Array]]
Objective = Callable[[decoder.Decoder, decoder.Params, Any], Sums]


class Pairs(NamedTuple):
  """Pairs with what the reference says of them.

  Attributes:
    texts: the pairs.
    chosen_P: log-probability of each chosen answer by the reference.
    rejected_P: of the rejected ones.
  """

  texts: packing.PackedPairs
  chosen_P: Any
  rejected_P: Any


class Answers(NamedTuple):
  """Sampled answers, one a row.

  Attributes:
    texts: prompts with answers.
    advantages_B1: of each answer within its group.
    old_logp_BT: of each token by the policy that drew it; None where it is the
      one that is trained.
    reference_logp_BT: by the reference; None where there is none.
  """

  texts: packing.Packed
  advantages_B1: Any
  old_logp_BT: Any = None
  reference_logp_BT: Any = None


def of(run: settings_lib.Run) -> Objective:
  """Returns the objective of a run."""
  chunk = run.compute.vocabulary_chunk
  method = run.method
  if isinstance(method, settings_lib.Dpo):
    return functools.partial(
      _dpo,
      chunk=chunk,
      beta=method.beta,
      label_smoothing=method.label_smoothing,
    )
  if isinstance(method, settings_lib.Grpo):
    return functools.partial(
      _grpo,
      chunk=chunk,
      temperature=method.sampling.temperature,
      clip=method.clip,
      kl=method.kl,
      normalize=method.normalize,
    )
  return functools.partial(sft, chunk=chunk)


def sft(
  model: decoder.Decoder,
  params: decoder.Params,
  batch: packing.Packed,
  *,
  chunk: int,
) -> Sums:
  """Sums the loss of answers, nats per token."""
  logp_BT = token_logprobs(model, params, batch, chunk=chunk)
  return {'loss': losses.sft(logp_BT, learnt(batch))}


def token_logprobs(
  model: decoder.Decoder,
  params: decoder.Params,
  batch: packing.Packed,
  *,
  chunk: int,
  temperature: float = 1.0,
) -> jax.Array:
  """Returns the log-probability of each token `[B, T]`; 0 if it is not learnt."""
  scores, _ = logprobs.answer_logprobs(
    model,
    params,
    batch.tokens_BT,
    batch.segments_BT,
    batch.wanted_BT,
    chunk=chunk,
    temperature=temperature,
    entropy=False,
  )
  # Scores are of the next token.
  return jnp.pad(scores.logp_BT[:, :-1], ((0, 0), (1, 0)))


def learnt(batch: packing.Packed) -> jax.Array:
  """Returns which tokens are learnt and can be: `[B, T]` bool."""
  before_BT = jnp.pad(batch.segments_BT[:, :-1], ((0, 0), (1, 0)))
  return batch.wanted_BT & (batch.segments_BT == before_BT)


def answer_sums(
  model: decoder.Decoder,
  params: decoder.Params,
  pairs: packing.PackedPairs,
  *,
  chunk: int,
) -> tuple[jax.Array, jax.Array]:
  """Returns the log-probability of chosen and rejected answers, `[P]` each."""
  # One pass over both: twice the rows cost less than two passes.
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *pairs)
  logp_BT = token_logprobs(model, params, both, chunk=chunk)
  sums_B1 = losses.text_sums(logp_BT, learnt(both), both.segments_BT, 1)
  chosen_P, rejected_P = jnp.split(sums_B1[:, 0], 2)
  return chosen_P, rejected_P


def _dpo(
  model: decoder.Decoder,
  params: decoder.Params,
  batch: Pairs,
  *,
  chunk: int,
  **options: float,
) -> Sums:
  chosen_P, rejected_P = answer_sums(model, params, batch.texts, chunk=chunk)
  found = losses.dpo(
    chosen_P, rejected_P, batch.chosen_P, batch.rejected_P, **options
  )
  count = jnp.float32(len(found.loss_P))
  return {
    'loss': (jnp.sum(found.loss_P), count),
    'margin': (jnp.sum(found.margin_P), count),
    'correct': (jnp.sum(found.correct_P), count),
  }


def _grpo(
  model: decoder.Decoder,
  params: decoder.Params,
  batch: Answers,
  *,
  chunk: int,
  temperature: float,
  **options: Any,
) -> Sums:
  logp_BT = token_logprobs(
    model, params, batch.texts, chunk=chunk, temperature=temperature
  )
  found = losses.grpo(
    logp_BT,
    batch.old_logp_BT,
    batch.reference_logp_BT,
    batch.advantages_B1,
    learnt(batch.texts),
    batch.texts.segments_BT,
    **options,
  )
  return {
    'loss': (found.loss, found.count),
    'kl': (found.kl, found.tokens),
    'clipped': (found.clipped, found.tokens),
  }
