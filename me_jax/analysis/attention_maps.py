"""What do the attention maps of one text look like, in chosen layers?

Letters: C captured layers, N heads, T time.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.models import decoder
from me_jax.models import sites

_PROBS = sites.Capture('attn_probs', 'probs')


class AttentionMaps(NamedTuple):
  """Whole attention maps.

  Attributes:
    layers: C of them.
    probs_CNTT: probabilities, queries in rows; float32.
    position: index of the massive token in the text.
  """

  layers: tuple[int, ...]
  probs_CNTT: np.ndarray
  position: int


def attention_maps(
  model: decoder.Decoder,
  params: decoder.Params,
  ids: Sequence[int],
  layers: Sequence[int],
  position: int = 0,
) -> AttentionMaps:
  """Returns whole maps of a few layers; one compile a length and count.

  Args:
    model: the decoder.
    params: its parameters.
    ids: one text, a short one: every map has its length squared numbers a head.
    layers: which.
    position: index of the massive token, for whoever draws them.
  """
  probs_CBNTT = _capture(
    model, params, jnp.asarray([ids], jnp.int32), jnp.asarray(layers, jnp.int32)
  )
  return AttentionMaps(tuple(layers), np.asarray(probs_CBNTT[:, 0]), position)


@functools.partial(jax.jit, static_argnums=0)
def _capture(
  model: decoder.Decoder,
  params: decoder.Params,
  tokens_BT: jax.Array,
  layers_C: jax.Array,
) -> jax.Array:
  reader = model.clone(
    sites=sites.Sites(observers=(_PROBS,), edits=model.sites.edits)
  )
  with jax.default_matmul_precision('highest'):
    _, state = reader.apply(
      {'params': params},
      tokens_BT,
      operands={_PROBS.name: layers_C},
      mutable='intermediates',
    )
  return sites.read(state)[_PROBS.name]
