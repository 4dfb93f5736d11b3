"""Where does the mitigation act, and how? It is a parameter.

Optional leaves of the parameter tree:

  layers/sink_scale [L, D]   multiplies what attention receives of the marked
                             tokens; ones change nothing
  sink_bound [L]             if there, tokens are marked from the next layer on
                             when their largest |x| after layer l exceeds entry
                             l; 0 is no bound
  sink_positions [W]         if there, the tokens are marked at whose position in
                             their text stands 1

Without the last two the first token of every text is marked, and a decoding
step marks nothing: that token enters the cache with the prompt, and what the
mask does to it is in the cache from then on. `decoder` marks, `block` multiplies.

Letters: L layers, B rows, T time, D model width, W positions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

SCALE = 'sink_scale'
BOUND = 'sink_bound'
POSITIONS = 'sink_positions'


def marked_from_start(
  positions_BT: jax.Array,
  segments_BT: jax.Array,
  wanted_W: jax.Array | None,
  by_size: bool,
) -> jax.Array:
  """Says which tokens are marked before the first layer, `[B, T]` bool.

  Args:
    positions_BT: of each token in its text.
    segments_BT: 0 for padding.
    wanted_W: the leaf `sink_positions`, None without it.
    by_size: whether tokens are marked by `sink_bound`: then none is yet.
  """
  real_BT = segments_BT > 0
  if by_size:
    return jnp.zeros_like(real_BT)
  if wanted_W is None:
    return real_BT & (positions_BT == 0)
  inside_BT = positions_BT < wanted_W.shape[0]
  wanted_BT = jnp.take(wanted_W, positions_BT, mode='clip') > 0
  return real_BT & inside_BT & wanted_BT


def exceeding(
  x_BTD: jax.Array, segments_BT: jax.Array, bound: jax.Array
) -> jax.Array:
  """Says whose largest |x| exceeds a bound above 0, `[B, T]` bool."""
  peak_BT = jnp.max(jnp.abs(x_BTD), axis=-1)
  return (segments_BT > 0) & (bound > 0) & (peak_BT > bound)


def scaled(
  h_BTD: jax.Array, scale_D: jax.Array, marked_BT: jax.Array
) -> jax.Array:
  """Multiplies the marked tokens' vectors, in their own type."""
  factor_BTD = jnp.where(
    marked_BT[..., None], scale_D.astype(h_BTD.dtype), jnp.ones((), h_BTD.dtype)
  )
  return h_BTD * factor_BTD
