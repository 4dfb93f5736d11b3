"""What does decoding keep of the tokens that it has seen?

The keys and values of every layer, in a fixed number of slots, so that one
compiled step serves a whole generation. Rows may be padded on either side and
finish at different times: every slot knows the position of its token.

Letters: L layers, B rows, T new tokens, S slots, K key-value heads, H head dim.
"""

from __future__ import annotations

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from me_jax.models import config as config_lib


@struct.dataclass
class Cache:
  """Keys and values of one text a row.

  Attributes:
    k_LBSKH: keys, rotated, in the type of the computation.
    v_LBSKH: values.
    positions_BS: int32, the position of each slot's token in its text; -1 where
      there is none.
    used: int32 scalar, slots that are filled in every row.
    started: whether it holds a prompt. Known when a call is traced: a call that
      starts a cache and one that goes on are different programs.
  """

  k_LBSKH: jax.Array
  v_LBSKH: jax.Array
  positions_BS: jax.Array
  used: jax.Array
  started: bool = struct.field(pytree_node=False)

  def admit(self, segments_BT: jax.Array) -> tuple[Cache, jax.Array, jax.Array]:
    """Gives new tokens the next slots; keys and values are written later.

    Args:
      segments_BT: int32, 0 where a row has no new token.

    Returns:
      The cache with their positions, these positions and the length of each
      token's text so far, `[B, T]` both.
    """
    real_BT = segments_BT > 0
    before_B1 = jnp.max(self.positions_BS, axis=1, keepdims=True) + 1
    position_BT = before_B1 + jnp.cumsum(real_BT, axis=1) - 1
    position_BT = jnp.maximum(position_BT, 0).astype(jnp.int32)
    positions_BS = jax.lax.dynamic_update_slice(
      self.positions_BS, jnp.where(real_BT, position_BT, -1), (0, self.used)
    )
    length_B1 = jnp.max(positions_BS, axis=1, keepdims=True) + 1
    length_BT = jnp.broadcast_to(length_B1, position_BT.shape)
    return self.replace(positions_BS=positions_BS), position_BT, length_BT

  def write(
    self, layer: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array
  ) -> Cache:
    """Puts the new tokens' keys and values of one layer into their slots."""
    at = (layer, 0, self.used, 0, 0)

    def put(all_LBSKH: jax.Array, new_BTKH: jax.Array) -> jax.Array:
      new = new_BTKH.astype(all_LBSKH.dtype)[None]
      return jax.lax.dynamic_update_slice(all_LBSKH, new, at)

    return self.replace(
      k_LBSKH=put(self.k_LBSKH, k_BTKH), v_LBSKH=put(self.v_LBSKH, v_BTKH)
    )

  def read(self, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values of one layer, `[B, S, K, H]` each."""
    return tuple(
      jax.lax.dynamic_index_in_dim(all_LBSKH, layer, keepdims=False)
      for all_LBSKH in (self.k_LBSKH, self.v_LBSKH)
    )

  def visible(
    self, position_BQ: jax.Array, window: jax.Array | None
  ) -> jax.Array:
    """Says which slots queries may see, `[B, Q, S]`.

    Args:
      position_BQ: positions of the queries.
      window: keys that a query sees, its own included; None for all.
    """
    query_BQ1 = position_BQ[..., None]
    slot_B1S = self.positions_BS[:, None]
    seen_BQS = (slot_B1S >= 0) & (slot_B1S <= query_BQ1)
    return (
      seen_BQS if window is None else seen_BQS & (query_BQ1 - slot_B1S < window)
    )

  def advanced(self, count: int) -> Cache:
    """Returns the cache after a call with `count` tokens a row."""
    return self.replace(used=self.used + count, started=True)


def empty(
  config: config_lib.ModelConfig, rows: int, slots: int, dtype: Any
) -> Cache:
  """Returns a cache that holds nothing.

  Args:
    config: of the model.
    rows: B, one text each.
    slots: S, tokens of the padded prompt and of what is generated together.
      Callers must not put in more: writes past the end would be clamped.
    dtype: of keys and values, the model's own.
  """
  shape = (
    config.num_hidden_layers,
    rows,
    slots,
    config.num_key_value_heads,
    config.head_dim,
  )
  return Cache(
    k_LBSKH=jnp.zeros(shape, dtype),
    v_LBSKH=jnp.zeros(shape, dtype),
    positions_BS=jnp.full((rows, slots), -1, jnp.int32),
    used=jnp.int32(0),
    started=False,
  )
