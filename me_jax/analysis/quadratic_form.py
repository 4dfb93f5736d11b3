"""What can an FFN write to a channel, read off its weights alone?

Where the activation of the gate passes its input on, neuron i writes
w_ki (g_i h)(u_i h) to channel k: a quadratic form of the normalised state h,
whose length is sqrt(D) whatever the text (Sun, Canziani, LeCun and Zhu 2026,
arXiv 2603.05498). The weight of the norm before the FFN is folded into g_i and
u_i, that of a norm after it into what is written. From this follow:

* the *plain score* |w_ki| |g_i| |u_i| of a neuron, and |U_k|_F of a block, with
  U_k = sum_i w_ki g_i u_i' and |U_k|_F^2 = w_k' [(G G') * (V V')] w_k;
* the *amount* of a neuron: its form has two eigenvalues, one of either sign,
  w (g u +- |g||u|) / 2. Their sum times D, D w (g u), is by how much its better
  sign beats the other, in units of the residual stream. It is large where g and
  u are long and aligned, as a neuron needs that writes one value and never its
  opposite. Channel k itself is left out of g and u: what a neuron does with a
  spike that is there already is no emergence;
* the *answer* of the FFN to a state that holds nothing but channel k,
  h = +- sqrt(D) e_k, which is what a massive activation makes of every state.
  It is the FFN itself, without approximation. Where it opposes the sign, the
  FFN erases.

A norm after the FFN makes every write sqrt(D) long before its weight: an amount
is then divided by the length of the neuron's write and of all others' at a
random state, an answer by the length of the whole answer.

Letters: D model width, F FFN width, K some channels, S = 2 signs (+, -), C and
E neurons of two chunks, P pairs of chunks.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from me_jax.models import block as block_lib
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.models import mlp

SIGNS = (1.0, -1.0)
_CHUNK = 512  # neurons of a chunk of G G'
_STEPS = 200  # of the power iteration
_TINY = 1e-30


class Rows(NamedTuple):
  """An FFN channel by channel, in float32.

  Attributes:
    gate: `[K, F]`, with the norm before the FFN folded in.
    up: `[K, F]`, likewise.
    down: `[K, F]`, as it stands.
    after: `[K]`, weight of the norm after the FFN; ones without one.
  """

  gate: jax.Array
  up: jax.Array
  down: jax.Array
  after: jax.Array


class Neurons(NamedTuple):
  """What belongs to a neuron as a whole, `[F]` each.

  Attributes:
    gate_bias: added to its gate.
    up_bias: added to its up.
    gate2: squared length of its gate row.
    up2: squared length of its up row.
    dot: product of the two rows.
    down2: squared length of its down row.
    usual2: scalar, the FFN's mean squared write at a random state.
  """

  gate_bias: jax.Array
  up_bias: jax.Array
  gate2: jax.Array
  up2: jax.Array
  dot: jax.Array
  down2: jax.Array
  usual2: jax.Array


def read(
  config: config_lib.ModelConfig, params: decoder.Params, layer: jax.Array
) -> tuple[Rows, jax.Array, jax.Array]:
  """Takes the FFN of one layer out of the stacked parameters.

  Args:
    config: of the model.
    params: its parameters.
    layer: int32 scalar, may be traced.

  Returns:
    Its rows for all channels, and the biases of gate and up, `[F]` each.
  """
  block = {k: v for k, v in params['layers'].items() if k != 'self_attn'}
  block = jax.tree.map(
    lambda leaf: jax.lax.dynamic_index_in_dim(
      leaf, layer, keepdims=False
    ).astype(jnp.float32),
    block,
  )

  def weight(norm: str | None) -> jax.Array:
    if norm is None:
      return jnp.ones(config.hidden_size, jnp.float32)
    return block[norm]['weight'] + config.norm_offset

  ffn = block['mlp']
  before_D1 = weight(block_lib.FFN_NORMS[config.norm_placement])[:, None]
  normed = config.norm_placement != 'pre'
  rows = Rows(
    gate=ffn['gate_proj']['kernel'] * before_D1,
    up=ffn['up_proj']['kernel'] * before_D1,
    down=ffn['down_proj']['kernel'].T,
    after=weight('post_feedforward_layernorm' if normed else None),
  )
  zero_F = jnp.zeros(config.intermediate_size, jnp.float32)
  return rows, *(
    ffn[name].get('bias', zero_F) for name in ('gate_proj', 'up_proj')
  )


def neurons(
  rows: Rows, gate_bias_F: jax.Array, up_bias_F: jax.Array
) -> Neurons:
  """Sums over all channels."""
  gate2_F, up2_F, down2_F = (jnp.sum(x * x, axis=0) for x in rows[:3])
  dot_F = jnp.sum(rows.gate * rows.up, axis=0)
  # E[(g h)^2 (u h)^2] for a normal h; half the time the gate is shut.
  usual2 = 0.5 * jnp.sum(down2_F * (gate2_F * up2_F + 2 * dot_F**2))
  return Neurons(gate_bias_F, up_bias_F, gate2_F, up2_F, dot_F, down2_F, usual2)


def plain_scores(rows: Rows, each: Neurons) -> jax.Array:
  """Returns |w_ki| |g_i| |u_i|, `[K, F]`."""
  down_KF = jnp.abs(rows.after[:, None] * rows.down)
  return down_KF * jnp.sqrt(each.gate2 * each.up2)[None]


def amounts(
  config: config_lib.ModelConfig, rows: Rows, each: Neurons
) -> jax.Array:
  """Returns the signed amounts, `[K, F]`, see above."""
  width = float(config.hidden_size)
  act_KF = width * (each.dot[None] - rows.gate * rows.up)
  write_KF = act_KF * rows.down
  if config.norm_placement == 'pre':
    return write_KF
  length2_KF = act_KF**2 * each.down2[None] + each.usual2
  scale_K1 = rows.after[:, None] * width**0.5
  return scale_K1 * write_KF * jax.lax.rsqrt(jnp.maximum(length2_KF, _TINY))


def lone_acts(
  config: config_lib.ModelConfig, rows: Rows, each: Neurons, sign: float
) -> jax.Array:
  """Returns all neurons' activations where one channel alone is set, `[K, F]`.

  Args:
    config: of the model.
    rows: of those channels.
    each: of all neurons.
    sign: of what the channel holds.
  """
  value = sign * float(config.hidden_size) ** 0.5
  gate_KF = value * rows.gate + each.gate_bias[None]
  up_KF = value * rows.up + each.up_bias[None]
  return mlp.ACTIVATIONS[config.hidden_act](gate_KF) * up_KF


def answers(
  config: config_lib.ModelConfig, rows: Rows, each: Neurons
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Feeds the FFN every state that holds one channel alone.

  Args:
    config: of the model.
    rows: of all channels.
    each: of all neurons.

  Returns:
    `[D, S]` each: what the FFN takes away from the channel, the neuron that
    takes away most, and the scale between a write and what the norm after the
    FFN makes of it.
  """
  found = []
  for sign in SIGNS:
    act_DF = lone_acts(config, rows, each, sign)
    scale_D = jnp.ones_like(rows.after)
    if config.norm_placement != 'pre':
      with jax.default_matmul_precision('highest'):
        whole_DD = act_DF @ rows.down.T
      length_D = jnp.maximum(jnp.linalg.norm(whole_DD, axis=1), _TINY)
      scale_D = rows.after * float(config.hidden_size) ** 0.5 / length_D
    loss_DF = -sign * scale_D[:, None] * act_DF * rows.down
    found.append((jnp.sum(loss_DF, axis=1), jnp.argmax(loss_DF, 1), scale_D))
  loss_D2, neuron_D2, scale_D2 = (jnp.stack(x, axis=1) for x in zip(*found))
  return loss_D2, neuron_D2, scale_D2


def frobenius(rows: Rows) -> jax.Array:
  """Returns |U_k|_F of every channel, `[D]`; G G' is never whole."""
  width, count = rows.gate.shape
  chunk = min(_CHUNK, count)
  missing = -count % chunk
  padded = [jnp.pad(x, ((0, 0), (0, missing))) for x in rows[:3]]

  def take(index: jax.Array) -> list[jax.Array]:
    start = (0, index * chunk)
    return [jax.lax.dynamic_slice(x, start, (width, chunk)) for x in padded]

  def part(pair_2: jax.Array) -> jax.Array:
    (gate_DC, up_DC, down_DC), (gate_DE, up_DE, down_DE) = map(take, pair_2)
    form_CE = (gate_DC.T @ gate_DE) * (up_DC.T @ up_DE)
    # The form is symmetric: its other half is the same.
    twice = jnp.where(pair_2[0] == pair_2[1], 1.0, 2.0)
    return twice * jnp.sum(down_DC * (down_DE @ form_CE.T), axis=1)

  with jax.default_matmul_precision('highest'):
    pairs_P2 = jnp.stack(jnp.triu_indices((count + missing) // chunk), axis=1)
    square_D = jnp.sum(jax.lax.map(part, pairs_P2), axis=0)
  return jnp.abs(rows.after) * jnp.sqrt(jnp.maximum(square_D, 0.0))


def reorder(
  rows: Rows, biases: tuple[jax.Array, jax.Array], orders_3F: jax.Array
) -> tuple[Rows, jax.Array, jax.Array]:
  """Gives every neuron another's gate, another's up and another's down row.

  Rows keep their lengths and channels their outliers; what is lost is only
  which rows belong together. With three equal orders nothing is lost.

  Args:
    rows: of all channels.
    biases: of gate and up.
    orders_3F: int32, where the rows of gate, up and down come from.

  Returns:
    The same in that order.
  """
  gate_F, up_F, down_F = orders_3F
  mixed = Rows(
    rows.gate[:, gate_F], rows.up[:, up_F], rows.down[:, down_F], rows.after
  )
  return mixed, biases[0][gate_F], biases[1][up_F]


@functools.partial(jax.jit, static_argnums=0)
def best_write(
  config: config_lib.ModelConfig,
  params: decoder.Params,
  layer: jax.Array,
  channel: jax.Array,
  sign: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Feeds the FFN the state that its form for one channel answers most.

  That state is sqrt(D) times the eigenvector of the symmetric part of U_k with
  the largest eigenvalue of the wanted sign; it or its opposite opens the gates.

  Args:
    config: of the model.
    params: its parameters, stacked.
    layer: int32 scalar, traced.
    channel: int32 scalar, traced: k.
    sign: float32 scalar, traced: +1 or -1, of what is to be written.

  Returns:
    What the FFN itself then writes to the channel, along the sign, and the
    parts of it by neuron, `[F]`, which sum to one.
  """
  rows, gate_bias_F, up_bias_F = read(config, params, layer)
  width = config.hidden_size
  down_F = rows.down[channel]
  with jax.default_matmul_precision('highest'):
    form_DD = (rows.gate * (sign * down_F)[None]) @ rows.up.T
    form_DD = (form_DD + form_DD.T) / 2
    # Shifted by a bound of its eigenvalues, the largest is largest in size.
    shift = jnp.linalg.norm(form_DD)

    def step(_: int, state_D: jax.Array) -> jax.Array:
      state_D = form_DD @ state_D + shift * state_D
      return state_D / jnp.maximum(jnp.linalg.norm(state_D), _TINY)

    # No eigenvector is exactly across a column of the form's own largest row.
    start_D = form_DD[jnp.argmax(jnp.sum(form_DD**2, axis=1))]
    state_D = jax.lax.fori_loop(0, _STEPS, step, start_D)
    state_SD = float(width) ** 0.5 * jnp.stack([state_D, -state_D])
    gate_SF = state_SD @ rows.gate + gate_bias_F[None]
    up_SF = state_SD @ rows.up + up_bias_F[None]
    act_SF = mlp.ACTIVATIONS[config.hidden_act](gate_SF) * up_SF
    scale_S = jnp.ones(2)
    if config.norm_placement != 'pre':
      length_S = jnp.linalg.norm(act_SF @ rows.down.T, axis=1)
      scale_S = rows.after[channel] * float(width) ** 0.5
      scale_S = scale_S / jnp.maximum(length_S, _TINY)
  part_SF = sign * scale_S[:, None] * act_SF * down_F[None]
  write_S = jnp.sum(part_SF, axis=1)
  best = jnp.argmax(write_S)
  return write_S[best], part_SF[best] / jnp.maximum(write_S[best], _TINY)
