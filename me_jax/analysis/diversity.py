"""How diverse is what attention is given, with and without the massive token?

Letters: B rows, P texts of a row, M sampled tokens of a text, D model width.
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
class TokenDiversity:
  """Spectra of each text's tokens: `spectrum.Diversity` of `[B, P, ...]`.

  Operand: `sample` int32 `[B, P, M]`, indices within the row, the text's own
  token first, then a control token; -1 is none.
  """

  site: str = 'attn_in'
  name: str = 'diversity'

  def __call__(
    self, value: jax.Array, context: sites.SiteContext
  ) -> spectrum.Diversity:
    """Reduces `[B, T, D]`."""
    sample_BPM = context.operands['sample']
    batch, slots, count = sample_BPM.shape
    flat_BX1 = jnp.maximum(sample_BPM, 0).reshape(batch, slots * count, 1)
    x_BXD = jnp.take_along_axis(value, flat_BX1, axis=1).astype(jnp.float32)
    x_BXD = jnp.where(sample_BPM.reshape(flat_BX1.shape) >= 0, x_BXD, 0.0)
    found = spectrum.diversity(x_BXD.reshape(batch * slots, count, -1))
    return jax.tree.map(lambda x: x.reshape(batch, slots, -1), found)


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
