"""The two compiled programs of generation: run prompts, and go on from them.

`prefill` runs a few prompts and puts them into rows of the state; `decode` takes
many steps of all rows inside one loop. Both are one compile: `prefill` for each
length that prompts are padded to, `decode` once.

Letters: B rows, N prompts, T their padded length, C steps, V vocabulary, E stop
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

from me_jax.generation import sampler
from me_jax.models import cache as cache_lib
from me_jax.models import decoder

_MOST_CHUNKS = 8  # of queries of a prompt, of an unrolled model


@struct.dataclass
class State:
  """Rows in the middle of their texts.

  Attributes:
    cache: of what they hold but for the newest token.
    token_B: int32, each row's newest token.
    active_B: bool, rows that go on.
    left_B: int32, tokens that a row may still get.
    count_B: int32, tokens that it has got.
    seeds_B: uint32.
    seen_BV: bool, tokens that its text holds; None without a repetition penalty.
  """

  cache: cache_lib.Cache
  token_B: jax.Array
  active_B: jax.Array
  left_B: jax.Array
  count_B: jax.Array
  seeds_B: jax.Array
  seen_BV: jax.Array | None


class Prompts(NamedTuple):
  """Prompts for `prefill`.

  Attributes:
    tokens_NT: int32.
    segments_NT: 0 for padding.
    rows_N: int32, the row of each; one past the last for one that is none.
    left_N: int32, tokens that each may get, at least one.
    seeds_N: uint32.
  """

  # Arrays of numpy on the host, of JAX in a program, and shapes in a plan.
  tokens_NT: Any
  segments_NT: Any
  rows_N: Any
  left_N: Any
  seeds_N: Any


class Rule(NamedTuple):
  """How tokens are chosen, and which end a text.

  Attributes:
    values: `Sampling.values`.
    stops_E: int32; -1 is none.
  """

  # As those of `Prompts`.
  values: Mapping[str, Any]
  stops_E: Any


# One program, so that on many devices no cache lies whole on one of them.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def start(
  model: decoder.Decoder,
  rows: int,
  slots: int,
  cache_dtype: jnp.dtype,
  penalised: bool,
) -> State:
  """Returns the state of rows without texts.

  Args:
    model: the decoder.
    rows: B.
    slots: tokens that a text may have, its prompt included.
    cache_dtype: of keys and values.
    penalised: whether there is a repetition penalty.
  """
  cache = cache_lib.empty(
    model.config, rows, slots, cache_dtype, stacked=model.scanned
  )
  seen = (rows, model.config.vocab_size)
  return State(
    cache=dataclasses.replace(cache, started=True),
    token_B=jnp.zeros(rows, jnp.int32),
    active_B=jnp.zeros(rows, bool),
    left_B=jnp.zeros(rows, jnp.int32),
    count_B=jnp.zeros(rows, jnp.int32),
    seeds_B=jnp.zeros(rows, jnp.uint32),
    seen_BV=jnp.zeros(seen, bool) if penalised else None,
  )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def prefill(
  model: decoder.Decoder,
  active: tuple[str, ...],
  params: decoder.Params,
  state: State,
  prompts: Prompts,
  rule: Rule,
) -> tuple[State, jax.Array]:
  """Runs prompts and chooses the first token of each.

  Args:
    model: the decoder.
    active: `Sampling.active`.
    params: its parameters, in the layout that it has.
    state: used up.
    prompts: in rows that nothing goes on in.
    rule: how tokens are chosen.

  Returns:
    The state, and the tokens chosen, `[N]`.
  """
  count, time = prompts.tokens_NT.shape
  if not model.scanned:
    # Every chunk of every layer is compiled apart.
    chunk = max(model.attention_chunk, time // _MOST_CHUNKS)
    model = model.clone(attention_chunk=chunk)
  mini = cache_lib.empty(
    model.config,
    count,
    time,
    state.cache.slots[0].k.dtype,
    stacked=model.scanned,
    whole_windows=True,
  )
  real_NT = prompts.segments_NT > 0
  last_N = time - 1 - jnp.argmax(real_NT[:, ::-1], axis=1)
  out = model.apply(
    {'params': params},
    prompts.tokens_NT,
    prompts.segments_NT,
    cache=mini,
    wanted_BW=last_N[:, None],
  )
  logits_NV = out.logits[:, 0]
  seen_NV = None
  if state.seen_BV is not None:
    seen_NV = jnp.zeros((count, model.config.vocab_size), bool)
    row_NT = jnp.broadcast_to(jnp.arange(count)[:, None], real_NT.shape)
    seen_NV = seen_NV.at[row_NT, prompts.tokens_NT].max(real_NT)
  zero_N = jnp.zeros(count, jnp.int32)
  token_N = sampler.draw(
    active, rule.values, logits_NV, seen_NV, prompts.seeds_N, zero_N
  )
  left_N = prompts.left_N - 1
  goes_on_N = (left_N > 0) & ~_ends(token_N, rule)

  def put(old_B: jax.Array, new_N: jax.Array) -> jax.Array:
    return old_B.at[prompts.rows_N].set(new_N, mode='drop')

  if seen_NV is not None:
    seen_NV = seen_NV.at[jnp.arange(count), token_N].set(True)
  return State(
    cache=cache_lib.insert(state.cache, out.cache, prompts.rows_N),
    token_B=put(state.token_B, token_N),
    active_B=put(state.active_B, goes_on_N),
    left_B=put(state.left_B, left_N),
    count_B=put(state.count_B, zero_N + 1),
    seeds_B=put(state.seeds_B, prompts.seeds_N),
    seen_BV=(
      None
      if seen_NV is None or state.seen_BV is None
      else put(state.seen_BV, seen_NV)
    ),
  ), token_N


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def decode(
  model: decoder.Decoder,
  active: tuple[str, ...],
  steps: int,
  params: decoder.Params,
  state: State,
  rule: Rule,
  least_active: jax.Array,
) -> tuple[State, jax.Array]:
  """Takes steps with all rows.

  Args:
    model: the decoder.
    active: `Sampling.active`.
    steps: C, at most.
    params: its parameters, in the layout that it has.
    state: used up.
    rule: how tokens are chosen.
    least_active: int32 scalar; ends when no more rows than this go on.

  Returns:
    The state, and the tokens of each row `[B, C]`, -1 where it got none.
  """
  rows = state.token_B.shape[0]

  def goes_on(carry: tuple[jax.Array, State, jax.Array]) -> jax.Array:
    step, state, _ = carry
    return (step < steps) & (jnp.sum(state.active_B) > least_active)

  def advance(
    carry: tuple[jax.Array, State, jax.Array],
  ) -> tuple[jax.Array, State, jax.Array]:
    step, state, out_BC = carry
    live_B = state.active_B
    out = model.apply(
      {'params': params},
      state.token_B[:, None],
      live_B[:, None].astype(jnp.int32),
      cache=state.cache,
    )
    token_B = sampler.draw(
      active,
      rule.values,
      out.logits[:, 0],
      state.seen_BV,
      state.seeds_B,
      state.count_B,
    )
    token_B = jnp.where(live_B, token_B, state.token_B)
    left_B = state.left_B - live_B
    seen_BV = state.seen_BV
    if seen_BV is not None:
      seen_BV = seen_BV.at[jnp.arange(rows), token_B].max(live_B)
    state = State(
      cache=out.cache,
      token_B=token_B,
      active_B=live_B & (left_B > 0) & ~_ends(token_B, rule),
      left_B=left_B,
      count_B=state.count_B + live_B,
      seeds_B=state.seeds_B,
      seen_BV=seen_BV,
    )
    new_B1 = jnp.where(live_B, token_B, -1)[:, None]
    out_BC = jax.lax.dynamic_update_slice(out_BC, new_B1, (0, step))
    return step + 1, state, out_BC

  nothing_BC = jnp.full((rows, steps), -1, jnp.int32)
  _, state, out_BC = jax.lax.while_loop(
    goes_on, advance, (jnp.int32(0), state, nothing_BC)
  )
  return state, out_BC


@functools.partial(jax.jit, donate_argnums=0)
def stop(state: State, ended_B: jax.Array) -> State:
  """Ends rows whose text has ended for a reason that only the host knows."""
  return dataclasses.replace(state, active_B=state.active_B & ~ended_B)


def _ends(token_B: jax.Array, rule: Rule) -> jax.Array:
  return jnp.any(token_B[:, None] == rule.stops_E[None], axis=-1)
