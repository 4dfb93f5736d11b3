"""What does decoding keep of the tokens that it has seen?

The keys and values of every layer, in a fixed number of slots, so that one
compiled step serves a whole generation. Slots are used in turn, by all rows
alike: the tokens of call after call go into slot 0, 1, 2, ... and after the last
into slot 0 again, over what no query can see any more. A layer with a sliding
window therefore needs no more slots than its window.

Keys are rotated when they come: where the rotation depends on the length of the
text (`dynamic`, `longrope`), by the length that it has then, as in transformers.

Rows may be padded on either side, finish at different times, and be replaced by
others (`insert`): every slot knows the position of its token.

Letters: L layers, B rows, T new tokens, S slots, K key-value heads, H head dim.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from me_jax.models import config as config_lib
from me_jax.models import logical_axes

# Logical axes of a layer's keys and values, for sharding.
_AXES = ('batch', 'act_kv_heads', None, 'act_head_dim')


@struct.dataclass
class Slots:
  """Keys, rotated, and values: `[B, K, S, H]` of a layer, or `[L, ...]` of all."""

  k: jax.Array
  v: jax.Array


@struct.dataclass
class Cache:
  """Keys and values of one text a row.

  Attributes:
    slots: of every layer; of the scanned decoder, one for all layers, stacked.
    positions: int32 `[B, S]` for every number of slots that layers have: the
      position of each slot's token in its text; -1 where there is none.
    length_B: int32, tokens of each row's text.
    clock: int32 scalar, tokens a row that were put in; says which slot is next.
    started: whether it holds a prompt. Known when a call is traced: a call that
      starts a cache and one that goes on are different programs.
  """

  slots: tuple[Slots, ...]
  positions: tuple[jax.Array, ...]
  length_B: jax.Array
  clock: jax.Array
  started: bool = struct.field(pytree_node=False)


@struct.dataclass
class Call:
  """How the layers of one call meet the cache; the same for all of them.

  Attributes:
    before: the cache's `positions` before the call.
    after: with the call's tokens.
    position_BT: of each new token in its text; -1 where a row has none.
    order_BT: of a prompt, the columns in the order that ends with the last
      token of each row; None while decoding.
    clock: of the cache before the call.
  """

  before: tuple[jax.Array, ...]
  after: tuple[jax.Array, ...]
  position_BT: jax.Array
  order_BT: jax.Array | None
  clock: jax.Array


def empty(
  config: config_lib.ModelConfig,
  rows: int,
  slots: int,
  dtype: Any,
  *,
  stacked: bool = True,
  whole_windows: bool = False,
) -> Cache:
  """Returns a cache that holds nothing.

  Args:
    config: of the model.
    rows: B, one text each.
    slots: S, tokens of the padded prompt and of what is generated together.
      Callers must not put in more: the oldest would be overwritten.
    dtype: of keys and values; bfloat16 halves them.
    stacked: for the scanned decoder, whose layers all have as many slots: a
      window saves slots only where every layer has it.
    whole_windows: whether layers with a window get as many slots as others.
  """
  window = config.sliding_window
  windowed = config.layer_windowed or (False,) * config.num_hidden_layers
  if stacked:
    windowed = (all(windowed),) * config.num_hidden_layers
  counts = [
    min(slots, window) if window and here and not whole_windows else slots
    for here in windowed
  ]

  def one(count: int, *leading: int) -> Slots:
    heads, width = config.num_key_value_heads, config.head_dim
    shape = (*leading, rows, heads, count, width)
    axes = ('layers',) * len(leading) + _AXES
    return Slots(
      *(logical_axes.constrain(jnp.zeros(shape, dtype), axes) for _ in range(2))
    )

  return Cache(
    slots=(one(counts[0], len(counts)),)
    if stacked
    else tuple(map(one, counts)),
    positions=tuple(
      jnp.full((rows, count), -1, jnp.int32) for count in sorted({*counts})
    ),
    length_B=jnp.zeros(rows, jnp.int32),
    clock=jnp.int32(0),
    started=False,
  )


def admit(cache: Cache, segments_BT: jax.Array) -> tuple[Cache, Call]:
  """Gives new tokens the next slots; keys and values follow layer by layer.

  Args:
    cache: before the call.
    segments_BT: int32, 0 where a row has no new token.

  Returns:
    The cache after the call but for its slots, and what layers need to know.
  """
  real_BT = segments_BT > 0
  count_B = jnp.sum(real_BT, axis=1, dtype=jnp.int32)
  place_BT = jnp.cumsum(real_BT, axis=1, dtype=jnp.int32) - 1
  position_BT = jnp.where(real_BT, cache.length_B[:, None] + place_BT, -1)
  order_BT, kept_BT = None, position_BT
  if not cache.started:
    time = segments_BT.shape[1]
    column_1T = jnp.arange(time)[None]
    last_B1 = time - 1 - jnp.argmax(real_BT[:, ::-1], axis=1)[:, None]
    order_BT = (column_1T + last_B1 + 1) % time
    kept_BT = jnp.take_along_axis(position_BT, order_BT, axis=1)
  call = Call(
    before=cache.positions,
    after=tuple(
      _put(table_BS, kept_BT, cache.clock, cache.started, axis=1)
      for table_BS in cache.positions
    ),
    position_BT=position_BT,
    order_BT=order_BT,
    clock=cache.clock,
  )
  cache = dataclasses.replace(
    cache,
    positions=call.after,
    length_B=cache.length_B + count_B,
    clock=cache.clock + segments_BT.shape[1],
    started=True,
  )
  return cache, call


def write(
  call: Call,
  slots: Slots,
  layer: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
) -> Slots:
  """Puts a layer's new keys and values into its slots.

  Args:
    call: from `admit`.
    slots: of the layer, or of all.
    layer: which one, if of all.
    k_BTKH: keys.
    v_BTKH: values.
  """

  def put(old: jax.Array, new_BTKH: jax.Array) -> jax.Array:
    if call.order_BT is not None:
      new_BTKH = jnp.take_along_axis(
        new_BTKH, call.order_BT[:, :, None, None], axis=1
      )
    new_BKTH = new_BTKH.swapaxes(1, 2).astype(old.dtype)
    started = call.order_BT is None
    if old.ndim == 4:
      return _put(old, new_BKTH, call.clock, started, axis=2)
    if started and new_BKTH.shape[2] == 1:
      # In place: the whole layer would be copied otherwise.
      at = (layer, 0, 0, call.clock % old.shape[3], 0)
      return jax.lax.dynamic_update_slice(old, new_BKTH[None], at)
    one = jax.lax.dynamic_index_in_dim(old, layer, keepdims=False)
    one = _put(one, new_BKTH, call.clock, started, axis=2)
    return jax.lax.dynamic_update_index_in_dim(old, one, layer, 0)

  return Slots(put(slots.k, k_BTKH), put(slots.v, v_BTKH))


def read(slots: Slots, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns a layer's keys and values, `[B, K, S, H]` each."""
  if slots.k.ndim == 4:
    return slots.k, slots.v
  return tuple(
    jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)
    for x in (slots.k, slots.v)
  )


def table(tables: tuple[jax.Array, ...], slots: Slots) -> jax.Array:
  """Returns the positions of a layer's slots, `[B, S]`."""
  count = slots.k.shape[-2]
  return next(table for table in tables if table.shape[1] == count)


def visible(
  key_BS: jax.Array, query_BQ: jax.Array, window: jax.Array | None
) -> jax.Array:
  """Says which keys queries may see, `[B, Q, S]`.

  Args:
    key_BS: positions of the keys; -1 is none.
    query_BQ: positions of the queries.
    window: keys that a query sees, its own included; None for all.
  """
  query_BQ1, key_B1S = query_BQ[..., None], key_BS[:, None]
  seen_BQS = (key_B1S >= 0) & (key_B1S <= query_BQ1)
  return (
    seen_BQS if window is None else seen_BQS & (query_BQ1 - key_B1S < window)
  )


def insert(cache: Cache, prompts: Cache, rows_N: jax.Array) -> Cache:
  """Replaces rows by prompts that were just run.

  Args:
    cache: that decoding goes on with.
    prompts: of N rows, with `whole_windows`, and no more slots than it has where
      there is no window.
    rows_N: int32, where each goes; one past the last row for nowhere.

  Returns:
    The cache with the prompts' last tokens in the slots before the next one.
  """

  def move(old: jax.Array, new: jax.Array, nothing: int) -> jax.Array:
    # The rows come first, or second after layers.
    lead = old.ndim == 5
    axis = 1 if old.ndim == 2 else old.ndim - 2
    size, time = old.shape[axis], new.shape[axis]
    kept = min(size, time)
    new = jax.lax.slice_in_dim(new, time - kept, time, axis=axis)
    pads = [(0, 0)] * new.ndim
    pads[axis] = (0, size - kept)
    new = jnp.pad(new, pads, constant_values=nothing)
    new = jnp.roll(new, (cache.clock - kept) % size, axis=axis)
    at = (slice(None),) * lead + (rows_N,)
    return old.at[at].set(new.astype(old.dtype), mode='drop')

  return dataclasses.replace(
    cache,
    slots=tuple(
      Slots(move(old.k, new.k, 0), move(old.v, new.v, 0))
      for old, new in zip(cache.slots, prompts.slots)
    ),
    positions=tuple(
      move(table_BS, prompts.positions[0], -1) for table_BS in cache.positions
    ),
    length_B=cache.length_B.at[rows_N].set(prompts.length_B, mode='drop'),
  )


def _put(
  old: jax.Array, new: jax.Array, clock: jax.Array, started: bool, axis: int
) -> jax.Array:
  """Puts T new entries along an axis of S, where the clock says."""
  size, time = old.shape[axis], new.shape[axis]
  if started and time == 1:
    at: list[Any] = [0] * old.ndim
    at[axis] = clock % size
    return jax.lax.dynamic_update_slice(old, new, at)
  kept = min(size, time)
  new = jax.lax.slice_in_dim(new, time - kept, time, axis=axis)
  if started:
    at_T = (clock + np.arange(time - kept, time)) % size
  elif kept == time:
    return jax.lax.dynamic_update_slice_in_dim(old, new, 0, axis)
  else:
    # Slots of a prompt that is longer are known beforehand.
    return jnp.roll(new, time % size, axis=axis)
  index = (slice(None),) * axis + (at_T,)
  return old.at[index].set(new)
