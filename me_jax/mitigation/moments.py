"""What does attention receive of marked tokens, and of all others?

For baking (`bake.py`): the marked tokens' vectors before they are scaled, which
are few, and the second moment of all other tokens' vectors, summed over the
texts inside the forward pass, so that no `[L, B, T, D]` exists.

Letters: L layers, C layers of a round, B rows, T time, W marked tokens of a
row, X marked tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.analysis import observers
from me_jax.analysis import passes
from me_jax.models import batch as batch_lib
from me_jax.models import decoder
from me_jax.models import sites

_SITE = 'attn_unscaled'
# Of the second moments that exist at a time, on the device: more layers are
# seen to in rounds, each a run over all texts.
_MOMENT_BYTES = 2 << 30


class Received(NamedTuple):
  """What one layer's attention receives, before any scaling.

  Attributes:
    layer: which one.
    marked_XD: the vector of every marked token, float32.
    ordinary_DD: mean of h hᵀ over the other tokens, float64.
    ordinary: how many they are.
  """

  layer: int
  marked_XD: np.ndarray
  ordinary_DD: np.ndarray
  ordinary: int


class _Sums(NamedTuple):
  """Sums over ordinary tokens: of h hᵀ, and how many."""

  moment_CDD: jax.Array
  count_C: jax.Array


class _Marked(NamedTuple):
  """Marked tokens: the first W of every row, and how many there are."""

  value_BWD: jax.Array
  count_B: jax.Array


@dataclasses.dataclass(frozen=True)
class _OrdinarySums:
  """Adds up `_Sums` in a buffer that goes from layer to layer.

  `operands[name]` holds the sums so far and `operands['sum_layers']`, int32
  `[C]`, the layers wanted.
  """

  site: str = _SITE
  name: str = 'ordinary'

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Returns `[B, T, D]` as it is: `store` reduces it."""
    return value

  def start(self, shape: tuple[int, ...], operands: Mapping[str, Any]) -> _Sums:
    """Returns the sums so far."""
    return operands[self.name]

  def store(
    self, buffer: _Sums, value: jax.Array, context: sites.SiteContext
  ) -> _Sums:
    """Adds this layer's tokens, if it is wanted."""
    assert context.marked_BT is not None  # As the scale is a parameter.
    hit_C = context.operands['sum_layers'] == context.layer
    kept_BT = (context.segments_BT > 0) & ~context.marked_BT & hit_C.any()
    h_BTD = jnp.where(kept_BT[..., None], value, 0).astype(jnp.float32)
    moment_DD = jnp.einsum('BTD,BTE->DE', h_BTD, h_BTD)
    at = jnp.argmax(hit_C)
    return _Sums(
      buffer.moment_CDD.at[at].add(moment_DD),
      buffer.count_C.at[at].add(jnp.sum(kept_BT, dtype=jnp.int32)),
    )


@dataclasses.dataclass(frozen=True)
class _MarkedVectors:
  """The vectors of the first `most` marked tokens of every row: `_Marked`."""

  most: int
  site: str = _SITE
  name: str = 'marked'

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> _Marked:
    """Takes tokens out of `[B, T, D]`."""
    assert context.marked_BT is not None
    marked_BT = context.marked_BT.astype(jnp.int32)
    # Of equal entries the first come first.
    _, at_BW = jax.lax.top_k(marked_BT, self.most)
    value_BWD = observers.at(value, at_BW).astype(jnp.float32)
    return _Marked(value_BWD, jnp.sum(marked_BT, axis=1))


def collect(
  model: decoder.Decoder,
  params: decoder.Params,
  batch: batch_lib.Batch,
  layers: Sequence[int],
  *,
  rows: int | None = None,
  progress: Callable[[int, int], Any] | None = None,
) -> Iterator[Received]:
  """Yields what attention receives, a layer at a time.

  Args:
    model: the decoder; its own edits and observers are not used.
    params: its parameters, with the leaves of `sink.py`: the scale acts while
      this is measured, because it changes what later layers receive.
    batch: texts, checked.
    layers: which ones, ascending.
    rows: of a pass.
    progress: called with (rows done, rows in all), over all rounds.
  """
  width = model.config.hidden_size
  most = max(1, _MOMENT_BYTES // (4 * width * width))
  rounds = [layers[i : i + most] for i in range(0, len(layers), most)]
  count, time = batch.tokens_BT.shape
  rows = passes.rows_of(batch, rows)
  kept = min(time, passes.slots_of(batch))
  for number, wanted in enumerate(rounds):
    sums = _empty(len(wanted), width)
    layers_C = np.array(wanted, np.int32)
    found: list[list[np.ndarray]] = [[] for _ in wanted]
    for start in range(0, count, rows):
      piece = passes.take_rows(batch, start, rows)
      sums, marked = _run(_with(model, kept), params, piece, sums, layers_C)
      needed = int(marked.count_B.max())
      if needed > kept:
        kept = min(time, 1 << (needed - 1).bit_length())
        nowhere = np.array([-1], np.int32)
        _, marked = _run(
          _with(model, kept), params, piece, _empty(1, width), nowhere
        )
      value_CBWD, count_CB = (np.asarray(x[layers_C]) for x in marked)
      there_CBW = np.arange(kept) < count_CB[..., None]
      for i, there_BW in enumerate(there_CBW):
        found[i].append(value_CBWD[i][there_BW])
      if progress:
        done = number * count + min(start + rows, count)
        progress(done, len(rounds) * count)
    for i, layer in enumerate(wanted):
      tokens = int(sums.count_C[i])
      moment_DD = np.asarray(sums.moment_CDD[i], np.float64)
      yield Received(
        int(layer), np.concatenate(found[i]), moment_DD / max(tokens, 1), tokens
      )


def _empty(count: int, width: int) -> _Sums:
  return _Sums(
    jnp.zeros((count, width, width), jnp.float32), jnp.zeros(count, jnp.int32)
  )


def _with(model: decoder.Decoder, most: int) -> decoder.Decoder:
  seeing = (_OrdinarySums(), _MarkedVectors(most))
  return model.clone(sites=sites.Sites(observers=seeing))


# The sums are donated: a second copy of them would be the largest thing here.
@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _run(
  model: decoder.Decoder,
  params: decoder.Params,
  piece: batch_lib.Batch,
  sums: _Sums,
  layers_C: jax.Array,
) -> tuple[_Sums, _Marked]:
  with jax.default_matmul_precision('highest'):
    _, state = model.apply(
      {'params': params},
      *piece,
      {'ordinary': sums, 'sum_layers': layers_C},
      mutable='intermediates',
    )
  seen: dict[str, Any] = sites.read(state)
  return seen['ordinary'], seen['marked']
