"""How diverse is what attention is given, with and without the massive token?

Letters: L layers, B rows, P texts of a row, M sampled tokens of a text, D model
width.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.analysis import spectrum
from me_jax.models import batch as batch_lib
from me_jax.models import sites

# Tokens of a text that are looked at: a spectrum costs their number cubed.
MOST_TOKENS = 512


@dataclasses.dataclass(frozen=True)
class TokenProducts:
  """Products of each text's tokens, `spectrum.products`: `[B, P, M, M]`.

  Operand: `sample` int32 `[B, P, M]`, indices within the row, the text's own
  token first, then a control token; -1 is none.
  """

  site: str = 'attn_in'
  name: str = 'products'

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Reduces `[B, T, D]`."""
    sample_BPM = context.operands['sample']
    batch, slots, count = sample_BPM.shape
    flat_BX1 = jnp.maximum(sample_BPM, 0).reshape(batch, slots * count, 1)
    x_BXD = jnp.take_along_axis(value, flat_BX1, axis=1)
    # In its own type, in which products are exact and half as much is read.
    x_BXD = jnp.where(sample_BPM.reshape(flat_BX1.shape) >= 0, x_BXD, 0)
    found = spectrum.products(x_BXD.reshape(batch * slots, count, -1))
    return found.reshape(batch, slots, *found.shape[1:])


def spectra(products_LBPMM: jax.Array) -> spectrum.Diversity:
  """Returns the spectra of `TokenProducts`, `[L, B, P, ...]` each.

  After the loop over layers, one layer at a time: on a TPU the matrix that is
  worked on then stays on the chip.
  """

  def of_layer(products_BPMM: jax.Array) -> spectrum.Diversity:
    sets = products_BPMM.shape[:2]
    found = spectrum.of_products(
      products_BPMM.reshape(-1, *products_BPMM.shape[2:])
    )
    return jax.tree.map(lambda x: x.reshape(*sets, -1), found)

  return jax.lax.map(of_layer, products_LBPMM)


def sample(
  spans: batch_lib.TextSpans,
  rows: int,
  slots: int,
  own_X: np.ndarray,
  control_X: np.ndarray,
  count: int,
) -> np.ndarray:
  """Chooses the tokens of each text that are looked at.

  Args:
    spans: where the texts stand.
    rows: B.
    slots: P.
    own_X: index in the row of each text's own token, which comes first.
    control_X: the same of a control token, which comes second, where it is
      another.
    count: M; of longer texts, so many evenly spaced tokens.

  Returns:
    `[B, P, M]` int32, -1 where there is none.
  """
  result_BPM = np.full((rows, slots, count), -1, np.int32)
  for own, control, row, start, length, slot in zip(own_X, control_X, *spans):
    stride = max(length / count, 1.0)
    taken = start + (np.arange(min(length, count)) * stride).astype(np.int32)
    for place, wanted in enumerate(dict.fromkeys((own, control))):
      if place < len(taken):
        # The nearest one makes room for it, and goes where it stood.
        near = place + np.abs(taken[place:] - wanted).argmin()
        taken[near] = taken[place]
        taken[place] = wanted
    result_BPM[row, slot, : len(taken)] = taken
  return result_BPM


def sample_size(longest: int) -> int:
  """Returns M for texts of at most so many tokens, a few sizes in all."""
  return min(MOST_TOKENS, 1 << max(3, (longest - 1).bit_length()))
