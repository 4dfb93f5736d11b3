"""Which channels does the released code of WeMask choose?

Those in which |attn_in| of the first token is largest, averaged over texts, and
one layer after the other: the mask of a layer is in force when the next one is
looked at (Shi et al. 2026, arXiv 2605.08504, `select='activation'`).

The first token sees itself alone, so its states depend on nothing but which
token it is. The choice is therefore one pass over the different tokens that
texts start with, a row of one token each: exact, and the same however texts are
padded, packed or cut into passes.

Letters: L layers, B rows, T time, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from me_jax import errors
from me_jax.models import batch as batch_lib
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.models import sink
from me_jax.models import sites

# Different first tokens of one pass: bounds its memory, [this, FFN width].
MOST_STARTS = 8192


@dataclasses.dataclass(frozen=True)
class _ChooseAndMask:
  """Scales the channels that are largest, and puts the choice aside.

  Operands: `mask_layers` bool `[L]`, `mask_count` int32 and `mask_keep`
  float32 `[L]`, the factors; `weight` float32 `[B]`, each row's share of the
  texts.
  """

  site: str = 'attn_in'

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Writes `[B, 1, D]`."""
    operands = context.operands
    size_BD = jnp.abs(value[:, 0].astype(jnp.float32))
    score_D = jnp.sum(operands['weight'][:, None] * size_BD, axis=0)
    here = operands['mask_layers'][context.layer]
    masked_D = here & largest(score_D, operands['mask_count'])
    context.captured[_Chosen.name] = masked_D
    keep = operands['mask_keep'][context.layer]
    scale_D = jnp.where(masked_D, keep, 1.0)
    return sink.scaled(value, scale_D, context.segments_BT > 0)


@dataclasses.dataclass(frozen=True)
class _Chosen:
  """What `_ChooseAndMask` chose, before it masked: `[D]` bool."""

  site: str = 'attn_in'
  name: str = 'chosen'

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Returns what was put aside."""
    return context.captured[self.name]


def select(
  model: decoder.Decoder,
  params: decoder.Params,
  batch: batch_lib.Batch,
  layers: Sequence[int],
  count: int,
  strength: float | Sequence[float] = 1.0,
) -> np.ndarray:
  """Chooses the channels with the largest |attn_in| at the first token.

  Args:
    model: the decoder; its own edits stay, and see the first tokens only.
    params: its parameters. Leaves of an earlier mask (`sink.py`) are left out:
      the new one is to take their place.
    batch: the texts, each weighing the same however often its start occurs.
    layers: which are masked, from 0.
    count: channels of each.
    strength: of the mask, 0 to 1, one for all or one a layer; what is chosen is
      multiplied by 1 - strength before the next layer is looked at.

  Returns:
    `[L, D]` bool, `count` channels in each of `layers` and none elsewhere. Of
    equal channels the lower ones are taken.

  Raises:
    MeJaxError: the batch is not sound, or its texts start with more than
      `MOST_STARTS` different tokens; a layer, the count or the strength is
      impossible; or a first token's states are not finite.
  """
  strength_L = np.zeros(model.config.num_hidden_layers)
  checked = check_mask(model.config, layers, count, strength)
  # In the order given: a strength stays with its layer.
  strength_L[list(layers)] = strength
  layers = checked
  tokens_BT, segments_BT = batch_lib.check_batch(model.config, batch)
  spans = batch_lib.text_spans(segments_BT)
  starts_B, times_B = np.unique(
    tokens_BT[spans.row, spans.start], return_counts=True
  )
  if len(starts_B) > MOST_STARTS:
    raise errors.MeJaxError(
      f'texts start with {len(starts_B)} different tokens; at most '
      f'{MOST_STARTS} fit into the pass that chooses channels: give fewer texts.'
    )
  mask_layers = np.zeros(model.config.num_hidden_layers, bool)
  mask_layers[list(layers)] = True
  operands = {
    'mask_layers': mask_layers,
    'mask_count': np.int32(count),
    'mask_keep': (1.0 - strength_L).astype(np.float32),
    'weight': (times_B / times_B.sum()).astype(np.float32),
  }
  own = dataclasses.replace(
    model.sites,
    observers=(_Chosen(),),
    edits=(_ChooseAndMask(), *model.sites.edits),
  )
  masked_LD = np.asarray(
    _chosen(
      model.clone(sites=own), _unmasked(params), starts_B[:, None], operands
    )
  )
  short = [i for i in layers if masked_LD[i].sum() != count]
  if short:
    raise errors.MeJaxError(
      f'what attention receives of the first token in layer {short[0]} is not '
      'finite: no channels can be chosen by its size.'
    )
  return masked_LD


def largest(score_D: jax.Array, count: int | jax.Array) -> jax.Array:
  """Marks the `count` largest entries, the lower ones among equals.

  Args:
    score_D: what is compared; what is not finite is never marked.
    count: may be traced, so that a sweep is one compile.
  """
  rank_D = jnp.argsort(jnp.argsort(-score_D, stable=True))
  return (rank_D < count) & jnp.isfinite(score_D)


def check_mask(
  config: config_lib.ModelConfig,
  layers: Sequence[int],
  count: int,
  strength: float | Sequence[float],
) -> tuple[int, ...]:
  """Returns the layers, each once and in order, after looking a mask over.

  Raises:
    MeJaxError: the model has no such layer or fewer channels, or the strength
      is not within 0 and 1.
  """
  layers = sorted({operator.index(layer) for layer in layers})
  wrong = [i for i in layers if not 0 <= i < config.num_hidden_layers]
  if wrong:
    raise errors.MeJaxError(
      f'there is no layer {wrong[0]} to mask: layers are 0 to '
      f'{config.num_hidden_layers - 1}.'
    )
  if not 0 <= operator.index(count) <= config.hidden_size:
    raise errors.MeJaxError(
      f'cannot mask {count} channels: the model has {config.hidden_size}.'
    )
  try:
    strengths = np.atleast_1d(np.asarray(strength, float))
  except (TypeError, ValueError):
    strengths = np.array([np.nan])
  if strengths.ndim > 1 or not ((strengths >= 0) & (strengths <= 1)).all():
    raise errors.MeJaxError(
      f'the strength of a mask is {strength}; it goes from 0 to 1.'
    )
  if len(strengths) not in (1, len(layers)):
    raise errors.MeJaxError(
      f'{len(strengths)} strengths for {len(layers)} layers: give one for all,'
      ' or one for each.'
    )
  return tuple(layers)


@functools.partial(jax.jit, static_argnums=0)
def _chosen(
  model: decoder.Decoder,
  params: decoder.Params,
  tokens_BT: jax.Array,
  operands: Mapping[str, jax.Array],
) -> jax.Array:
  """Runs the pass; `[L, D]`. Logits are not computed."""
  with jax.default_matmul_precision('highest'):
    _, state = model.apply(
      {'params': params}, tokens_BT, None, operands, mutable='intermediates'
    )
  return sites.read(state)[_Chosen.name]


def _unmasked(params: decoder.Params) -> dict[str, Any]:
  """Returns the tree without the leaves of `sink.py`, stacked or not."""
  leaves = (sink.SCALE, sink.BOUND, sink.POSITIONS)
  return {
    name: _unmasked(value) if name.startswith('layers') else value
    for name, value in params.items()
    if name not in leaves
  }
