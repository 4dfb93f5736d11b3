"""What do massive activations do while a model is trained? In one cheap call.

  batch = me_jax.probes(lm)
  for step in range(steps):
    ...
    if step % 20 == 0:
      readings = me_jax.monitor(model, params, batch)
      print(readings.to_json())

One compiled pass over a few short texts, with the observers that
`find_me_layer` and `diagnose` have; the verdict is the former's own. Called
again with other parameters of the same shapes, nothing is compiled.

Parameters may lie on any devices, of several processes too, all of which must
call: what comes to the host has been copied to every device before.

Letters: B rows, T time, C chosen tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
from typing import Any

import jax
import numpy as np

from me_jax import errors
from me_jax.analysis import massive_tokens
from me_jax.analysis import observers
from me_jax.analysis import passes
from me_jax.analysis import prompts
from me_jax.analysis import readings as readings_lib
from me_jax.analysis import residual
from me_jax.analysis import sinks
from me_jax.analysis import trace as trace_lib
from me_jax.checkpoints import encoding
from me_jax.checkpoints import load as load_lib
from me_jax.models import batch as batch_lib
from me_jax.models import decoder

# Steps between two readings. Against a step of 2,048 tokens of the default model
# a call with `probes` was measured at 4 % where all parameters are trained and at
# 10 % where gates are: 0.2 and 0.5 % of the time. 2 % is a step of 2.5 calls.
EVERY = 20

_ALSO = (
  observers.AtPositions('attn_in', 'attn_in'),
  sinks.ReceivedAttention(),
)


def probes(
  lm: load_lib.LoadedModel, *, texts: int = 8, length: int = 64
) -> batch_lib.Batch:
  """Returns a small batch to monitor a model with, the same every time.

  Built-in prompts of all kinds, one a row. Each goes on with the next ones to
  the full length: in a short text the first token receives more, for want of
  others.

  Args:
    lm: the model; its tokenizer and configuration are used.
    texts: rows, at most 24.
    length: tokens of a row; fewer if the model's context is shorter.

  Raises:
    MeJaxError: no tokenizer, or impossible sizes.

  Examples:
    >>> import me_jax
    >>> lm = me_jax.load('smollm2')
    >>> me_jax.probes(lm, texts=4, length=16).tokens_BT.shape
    (4, 16)
  """
  known = prompts.builtin()
  if not 1 <= texts <= len(known) or length < 2:
    raise errors.MeJaxError(
      f'{texts} texts of {length} tokens to monitor with: must be 1 to'
      f' {len(known)} texts of 2 tokens or more'
    )
  length = min(length, lm.config.context_length)
  encode = functools.partial(
    encoding.token_ids, lm.tokenizer, lm.config, any_length=True
  )
  # Chats begin with what stands at the beginning of a text alone.
  plain = [at for at, text in enumerate(known) if isinstance(text, str)]
  onward = dict(zip(plain, encode([known[at] for at in plain], 'never')))
  rows = []
  for start in (np.arange(texts) * len(known) // texts).tolist():
    row = list(encode([known[start]])[0])
    for at in [*range(start + 1, len(known)), *range(start)]:
      row += onward.get(at, [])
    rows.append(row[:length])
  return batch_lib.check_batch(lm.config, batch_lib.make_batch(rows))


def monitor(
  model: decoder.Decoder, params: decoder.Params, batch: batch_lib.Batch
) -> readings_lib.Readings:
  """Measures massive activations, attention sinks and rigidity.

  The first token of each text is taken for the massive one; where another turns
  out to be it, the pass runs twice.

  Args:
    model: the decoder.
    params: its parameters, with a mask or gates if there are any.
    batch: a few short texts, the same at every call, see `probes`. They all run
      in one pass, so their number bounds the memory.

  Returns:
    The readings.

  Raises:
    MeJaxError: the batch is not sound, or the model's states are not finite.

  Examples:
    >>> import me_jax
    >>> lm = me_jax.load('smollm2')
    >>> batch = me_jax.probes(lm, texts=4, length=16)  # once, before training
    >>> seen = me_jax.monitor(lm.model, lm.params, batch)  # now and then
    >>> seen.me_layer, seen.spike_layer, seen.rigidity > 0.99
    (11, 11, True)
  """
  if not isinstance(model, decoder.Decoder) or not isinstance(
    batch, batch_lib.Batch
  ):
    raise errors.MeJaxError(
      f'monitor got a {type(model).__name__} and a {type(batch).__name__}, it'
      ' takes lm.model, lm.params and what probes or encode return.'
    )
  batch = batch_lib.check_batch(model.config, batch)
  everywhere = _everywhere(params)
  look = massive_tokens.look(
    functools.partial(measure, everywhere),
    model,
    params,
    batch,
    passes.slots_of(batch),
    operands_of,
  )
  trace = trace_lib.of_look(
    look, model, params, functools.partial(_attribute, everywhere)
  )
  return readings_lib.of_pass(look, trace)


@functools.partial(jax.jit, static_argnums=(0, 1))
def measure(
  everywhere: jax.sharding.Sharding | None,
  model: decoder.Decoder,
  params: decoder.Params,
  tokens_BT: jax.Array,
  segments_BT: jax.Array,
  operands: Mapping[str, jax.Array],
) -> dict[str, Any]:
  """Runs the pass; see `residual.observe` and the observers in `_ALSO`."""
  seen = residual.observe(
    model, params, tokens_BT, segments_BT, operands, _ALSO
  )[1]
  received = seen.pop('received')
  # The rest of it is not computed.
  seen['first'] = received.window[..., 0]
  seen['chosen'] = received.chosen
  return _laid(seen, everywhere)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _attribute(
  everywhere: jax.sharding.Sharding | None,
  model: decoder.Decoder,
  *args: Any,
) -> dict[str, jax.Array]:
  """Is `residual.attribute`, with results that the host can read."""
  return _laid(residual.attribute(model, *args), everywhere)


def _everywhere(params: decoder.Params) -> jax.sharding.Sharding | None:
  """Returns where a copy is on each device that parameters lie on."""
  for leaf in jax.tree.leaves(params):
    place = getattr(leaf, 'sharding', None)
    if isinstance(place, jax.NamedSharding):
      return jax.NamedSharding(place.mesh, jax.P())
  return None


def _laid(tree: Any, place: jax.sharding.Sharding | None) -> Any:
  return (
    tree if place is None else jax.lax.with_sharding_constraint(tree, place)
  )


def operands_of(
  piece: batch_lib.Batch, chosen_BC: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns what the further observers ask for."""
  del chosen_BC
  return passes.places(piece, batch_lib.text_spans(piece.segments_BT))
