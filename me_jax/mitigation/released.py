"""What would the published code of WeMask have computed, faults and all?

For comparing with it, never a default. Semantics as in the repository
`vanpe20/ME_Layer` of Shi et al. (2026, arXiv 2605.08504).

Letters: B rows, T time, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp

from me_jax.mitigation import activation
from me_jax.models import decoder
from me_jax.models import sink
from me_jax.models import sites


@dataclasses.dataclass(frozen=True)
class _IndexZero:
  """Masks whatever stands at index 0 of a call.

  Attributes:
    layers: which are masked.
    count: channels of each.
    keep: what they are multiplied by.
  """

  layers: tuple[int, ...]
  count: int
  keep: float
  site: str = 'attn_in'

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Writes `[B, T, D]`."""
    size_BD = jnp.abs(value[:, 0].astype(jnp.float32))
    masked_D = activation.largest(jnp.mean(size_BD, axis=0), self.count)
    here = jnp.isin(context.layer, jnp.asarray(self.layers, jnp.int32))
    zero_BT = jnp.zeros(value.shape[:2], bool).at[:, 0].set(True)
    scale_D = jnp.where(here & masked_D, self.keep, 1.0)
    return sink.scaled(value, scale_D, zero_BT)


def as_released(
  model: decoder.Decoder,
  *,
  layers: Sequence[int],
  count: int,
  strength: float = 1.0,
) -> decoder.Decoder:
  """Returns a model that masks as the published code does, for comparison only.

  In every call, a step of decoding too, index 0 of the time axis loses the
  `count` channels in which |attn_in| is largest there, averaged over the rows
  of the batch. What is wrong with that, and why nothing here does it unasked:

  * With a cache index 0 is the newly generated token, so that every generated
    token is masked, by a choice of its own. Decoding is then no longer what the
    model computes of the same text in one call.
  * With left padding index 0 is a pad: the first token of a padded text is not
    masked at all, and the pads have a say in which channels others lose. What
    pads attend to is an accident of the attention kernel: in Hugging Face's
    eager attention to all tokens alike, in its fused one (sdpa) to none. Here
    as in the eager one, in prompts of up to `attention_chunk` tokens.
  * The choice is shared by averaging, so a text's result depends on which
    texts stand beside it.
  * Of texts packed into a row only the first is masked.

  Two faults of the published scripts lie outside the model and are not
  reproduced: training never switches the mask on, and the maths matcher accepts
  substrings ('1' matches '12').

  The mitigation itself is the leaf `sink_scale`, which acts at the first real
  token of every text and only there; with `activation.select` it is this mask
  for the prompts of an unpadded batch.

  Args:
    model: its own observers and edits stay; the mask comes before its edits,
      where the leaf would.
    layers: which are masked, from 0.
    count: channels of each.
    strength: 0 to 1; they are multiplied by 1 - strength.

  Returns:
    A copy of the model; its parameters are the same.

  Raises:
    MeJaxError: a layer, the count or the strength is impossible.
  """
  layers = activation.check_mask(model.config, layers, count, strength)
  mask = _IndexZero(layers, count, 1.0 - strength)
  return model.clone(
    sites=dataclasses.replace(model.sites, edits=(mask, *model.sites.edits))
  )
