"""Goes on with texts: the public function.

Letters: X texts, M most new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from me_jax import errors
from me_jax.generation import sampler
from me_jax.generation import serve
from me_jax.generation import stopping
from me_jax.models import batch as batch_lib
from me_jax.models import decoder

_ROWS = 64


class Generated(NamedTuple):
  """What was generated, text by text in the order of the batch.

  Attributes:
    tokens_XM: int32, new token ids; -1 after a text's last. A stop token is the
      last of its text.
    length_X: int32, how many there are.
    stopped_X: bool, whether the text ended by itself: at a stop token, or where
      `stop_strings` said so.

  Examples:
    >>> import me_jax
    >>> out = me_jax.Generated([[7042, 30, -1]], [2], [True])
    >>> len(out.tokens_XM[0]), out.length_X  # -1 is no token
    (3, [2])
  """

  tokens_XM: np.ndarray
  length_X: np.ndarray
  stopped_X: np.ndarray

  def ids(self) -> list[list[int]]:
    """Returns the new tokens of each text as a list."""
    return [
      row[:length].tolist()
      for row, length in zip(self.tokens_XM, self.length_X)
    ]


def generate(
  model: decoder.Decoder,
  params: decoder.Params,
  batch: batch_lib.Batch,
  *,
  max_new_tokens: int = 128,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  repetition_penalty: float = 1.0,
  seed: int = 0,
  stop_tokens: Sequence[int] | None = None,
  stop_strings: str | Sequence[str] = (),
  decode: Callable[[list[int]], str] | None = None,
  rows: int = _ROWS,
  cache_dtype: Any = None,
  on_tokens: Callable[[int, list[int]], Any] | None = None,
  progress: Callable[[int, int], Any] | None = None,
) -> Generated:
  """Goes on with every text of a batch.

  A text's tokens depend on itself, on `seed` and on its place in the batch, not
  on what else is in the batch. (Sums in another order differ in their last
  digits, and a token that is decided there may differ.)

  Args:
    model: the decoder. `clone(scanned=False)` decodes faster on CPUs and takes
      longer to compile; both take the same parameters.
    params: its parameters; a mitigation among them acts on the prompt, and
      through the cache from then on.
    batch: the prompts, see `encode`; padding on either side, packed or not.
    max_new_tokens: of each text, at most.
    temperature: 0 takes the likeliest token; see `sampler.Sampling` for this
      and the next four.
    top_k: 0 is all.
    top_p: 1 is all.
    min_p: 0 is all.
    repetition_penalty: 1 is none.
    seed: text x samples with seed + x.
    stop_tokens: ids that end a text; by default the configuration's.
    stop_strings: strings that end a text; the tokens of the first one found are
      among what is returned. They need `decode`.
    decode: the tokenizer's, ids to text.
    rows: texts in the making at a time.
    cache_dtype: of keys and values, by default the model's; bfloat16 halves
      their memory.
    on_tokens: called with a text's index and all its new tokens, whenever there
      are some.
    progress: called with (texts done, texts in all).

  Returns:
    The new tokens.

  Raises:
    MeJaxError: the batch or a setting is not sound, or a prompt and its new
      tokens exceed the context.

  Examples:
    >>> import me_jax
    >>> lm = me_jax.load('smollm2')
    >>> batch = me_jax.encode(lm, ['The capital of France is'])
    >>> out = me_jax.generate(lm.model, lm.params, batch, max_new_tokens=2)
    >>> lm.tokenizer.batch_decode(out.ids())
    [' Paris.']
  """
  sampling = sampler.Sampling(
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    min_p=min_p,
    repetition_penalty=repetition_penalty,
  )
  if isinstance(stop_strings, str):
    stop_strings = (stop_strings,)
  if stop_strings and decode is None:
    raise errors.MeJaxError('stop_strings need decode=lm.tokenizer.decode.')
  if rows < 1:
    raise errors.MeJaxError(f'rows is {rows}, must be at least 1.')
  if not 0 <= seed < 2**31:
    raise errors.MeJaxError(f'seed is {seed}, must be from 0 to 2**31 - 1.')
  batch = batch_lib.check_batch(model.config, batch)
  requests = [
    serve.Request(
      tokens=batch.tokens_BT[row, start : start + length].tolist(),
      most=max_new_tokens,
      seed=seed + x,
    )
    for x, (row, start, length, _) in enumerate(
      zip(*batch_lib.text_spans(batch.segments_BT))
    )
  ]
  serve.check(model.config, requests)
  if stop_tokens is None:
    stop_tokens = model.config.eos_token_ids
  count = len(requests)
  tokens_XM = np.full((count, max_new_tokens), -1, np.int32)
  length_X, stopped_X = np.zeros(count, np.int32), np.zeros(count, bool)
  ended = None
  if stop_strings and decode is not None:
    ended = stopping.at_strings(stop_strings, decode)
  for done, one in enumerate(
    serve.serve(
      model,
      params,
      requests,
      sampling=sampling,
      stop_tokens=stop_tokens,
      rows=rows,
      ended=ended,
      on_tokens=on_tokens,
      cache_dtype=cache_dtype,
    ),
    1,
  ):
    tokens_XM[one.index, : len(one.tokens)] = one.tokens
    length_X[one.index] = len(one.tokens)
    stopped_X[one.index] = one.stopped
    if progress is not None:
      progress(done, count)
  return Generated(tokens_XM, length_X, stopped_X)
