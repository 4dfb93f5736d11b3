"""How likely is each token, without ever holding all logits?

Letters: B rows, T time, D model width, W columns whose logits are wanted: none.
"""

from __future__ import annotations

import math
from typing import Any, cast

import jax
import jax.numpy as jnp

from me_jax import errors
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.models import logical_axes
from me_jax.training import column_scan
from me_jax.training import vocabulary_scan

_CHUNK = 4096  # tokens of the vocabulary whose logits exist at a time
_BLOCKS = 8  # into which columns are cut where not all of them are wanted


def answer_logprobs(
  model: decoder.Decoder,
  params: decoder.Params,
  tokens_BT: jax.Array,
  segments_BT: jax.Array | None = None,
  wanted_BT: jax.Array | None = None,
  **kwargs: Any,
) -> tuple[vocabulary_scan.Scores, jax.Array]:
  """Scores the token that follows each column in its text.

  Args:
    model: the decoder.
    params: its parameters.
    tokens_BT: int32.
    segments_BT: int32, 0 for padding, 1, 2, ... for texts; None for one text a
      row.
    wanted_BT: bool, tokens (not columns) that are to be scored, such as those
      of `packing.Packed`: others cost next to nothing. None for all.
    **kwargs: `chunk`, `temperature`, `entropy` and `precision` of
      `token_logprobs`.

  Returns:
    The scores of the NEXT token at each column, 0 where it is padding, another
    text's or not wanted; and the bool mask `[B, T]` of the other columns.
  """
  if segments_BT is None:
    segments_BT = jnp.ones_like(tokens_BT)
  segments_BT = jnp.asarray(segments_BT).astype(jnp.int32)
  after_BT = jnp.pad(segments_BT[:, 1:], ((0, 0), (0, 1)))
  predicted_BT = (segments_BT > 0) & (segments_BT == after_BT)
  blocks = 1
  if wanted_BT is not None:
    predicted_BT &= jnp.roll(jnp.asarray(wanted_BT), -1, axis=1)
    blocks = math.gcd(segments_BT.shape[1], _BLOCKS)
  output = model.apply(
    {'params': params},
    tokens_BT,
    segments_BT,
    # Logits of no column, so that they do not exist outside jit either.
    wanted_BW=jnp.zeros((len(tokens_BT), 0), jnp.int32),
  )
  scores = token_logprobs(
    model.config,
    params,
    output.hidden,
    jnp.roll(tokens_BT, -1, axis=1),
    wanted_BT=predicted_BT,
    blocks=blocks,
    **kwargs,
  )
  return scores, predicted_BT


def token_logprobs(
  config: config_lib.ModelConfig,
  params: decoder.Params,
  hidden_BTD: jax.Array,
  targets_BT: jax.Array,
  *,
  wanted_BT: jax.Array | None = None,
  blocks: int = 1,
  chunk: int = _CHUNK,
  temperature: float = 1.0,
  entropy: bool = True,
  precision: jax.lax.PrecisionLike = None,
) -> vocabulary_scan.Scores:
  """Scores tokens as the decoder's logits do, differentiably (in reverse only).

  Args:
    config: of the model.
    params: its parameters, of which only the head is read.
    hidden_BTD: `Output.hidden`. Products are computed in its type, as in the
      decoder; what is added up, over products and over chunks, in float32.
    targets_BT: int32, the tokens to score. One that is outside of the
      vocabulary has log-probability -inf.
    wanted_BT: bool, columns to score; None for all. The others get 0, and
      nothing that they hold has an influence, be it NaN.
    blocks: into how many the columns are cut, those that are wanted first; the
      others' blocks cost nothing. It divides T. One block where time or the
      head's model width is cut over devices.
    chunk: tokens of the vocabulary whose logits exist at a time; at least one
      on each device.
    temperature: logits are divided by it, for answers that were so drawn.
    entropy: whether it is wanted, which costs about as much as a product of the
      head with the states does; None is in its place else.
    precision: of products, backward too; None for the surrounding
      `jax.default_matmul_precision`.

  Returns:
    The scores, `[B, T]` each.

  Raises:
    MeJaxError: `chunk` or `temperature` is not positive.
  """
  if chunk < 1:
    raise errors.MeJaxError(f'chunk is {chunk}, must be 1 or more.')
  if not 0 < temperature < math.inf:
    raise errors.MeJaxError(f'temperature is {temperature}, must be above 0.')
  if wanted_BT is not None:
    # Before the products: in their gradients 0 times NaN would be NaN.
    hidden_BTD = jnp.where(wanted_BT[..., None], hidden_BTD, 0)
  tied = config.tie_word_embeddings
  if tied:
    head = params['embed_tokens']['embedding']
  else:
    head = params['lm_head']['kernel']
  # Each device's own tokens on an axis that is whole: slices of it need no
  # other device.
  groups = math.gcd(config.vocab_size, logical_axes.parts('vocab'))
  size = config.vocab_size // groups
  steps = -(-size // max(1, chunk // groups))
  # A few more, where chunks come out even then.
  more = range(steps, steps + steps // 8 + 1)
  steps = next((count for count in more if size % count == 0), steps)
  how = vocabulary_scan.How(
    tied=tied,
    size=size,
    width=-(-size // steps),
    steps=steps,
    softcap=config.final_logit_softcapping or 0.0,
    temperature=temperature,
    entropy=entropy,
    # Backward may be traced where the surrounding default is another.
    precision=precision or cast(Any, jax.config).jax_default_matmul_precision,
  )
  if tied:
    head = head.reshape(groups, size, -1)
  else:
    # The parts in front: an axis of length one (on each device) between the
    # others would make XLA copy the whole head.
    head = jnp.swapaxes(head.reshape(-1, groups, size), 0, 1)
  columns = head, hidden_BTD, targets_BT
  # Where time is cut over devices, columns cannot change places for free; where
  # the head is, each block would gather it anew and add its gradient up, which
  # takes longer than the columns that nobody wants.
  apart = max(logical_axes.parts('time'), logical_axes.parts('embed')) > 1
  if wanted_BT is None or blocks == 1 or apart:
    scores = vocabulary_scan.score(how, *columns)
  else:
    scores = column_scan.score(how, blocks, *columns, wanted_BT)
  if wanted_BT is not None:
    scores = jax.tree.map(lambda x: jnp.where(wanted_BT, x, 0.0), scores)
  return scores
