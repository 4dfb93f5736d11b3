"""Which channels of the massive token does a mask take away?

Letters: L layers, D model width.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from me_jax import errors
from me_jax.models import block
from me_jax.models import config as config_lib
from me_jax.models import decoder

# `activation` needs texts and is in `activation.py`.
SELECTIONS = ('weight', 'me_weight', 'activation', 'random', 'weight_bottom')
_ATTENTION_NORM = 'input_layernorm'


def masked(
  model: decoder.Decoder,
  params: decoder.Params,
  select: str,
  layers: Iterable[int],
  count: int,
  *,
  me_layer: int | None = None,
  seed: int = 0,
) -> np.ndarray:
  """Chooses channels from the parameters alone, or at random.

  Args:
    model: the decoder.
    params: its parameters.
    select: `weight`, the largest |γ| of each masked layer's own norm before
      attention; `weight_bottom`, the smallest (a control); `me_weight`, the
      largest |γ| of the norm before the ME Layer's FFN, the same channels in
      every layer; `random`, drawn anew in every layer (a control).
    layers: which layers are masked.
    count: channels of each.
    me_layer: for `me_weight`.
    seed: for `random`.

  Returns:
    `[L, D]` bool.

  Raises:
    MeJaxError: this architecture has no such norm, or `me_weight` has no
      layer.
  """
  config = model.config
  shape = config.num_hidden_layers, config.hidden_size
  score_LD = np.zeros(shape)
  layers = sorted(set(layers))
  if select == 'random':
    for layer in layers:
      random = np.random.default_rng([seed, layer])
      score_LD[layer] = random.permutation(shape[1])
  else:
    name = norm(config, select, me_layer)
    assert name is not None  # As it is not random.
    score_LD = _size(model, params, name)
    if select == 'me_weight':
      score_LD = np.broadcast_to(score_LD[me_layer], shape)
    elif select == 'weight_bottom':
      score_LD = -score_LD
  result_LD = np.zeros(shape, bool)
  for layer in layers:
    # Ties go to the lower channel, on every machine.
    order = np.argsort(-score_LD[layer], kind='stable')
    result_LD[layer, order[:count]] = True
  return result_LD


def norm(
  config: config_lib.ModelConfig, select: str, me_layer: int | None
) -> str | None:
  """Returns whose |γ| a selection looks at; None where it looks at none.

  Raises:
    MeJaxError: as `masked` does.
  """
  if select in ('random', 'activation'):
    return None
  if select == 'me_weight' and me_layer is None:
    raise errors.MeJaxError(
      "select='me_weight' needs an ME Layer, and this model has none"
    )
  if config.norm_placement == 'post':
    raise errors.MeJaxError(
      f'select={select!r} looks at the norm before a branch, and models of'
      f' type {config.model_type} have none: use activation'
    )
  if select == 'me_weight':
    return block.FFN_NORMS[config.norm_placement]
  return _ATTENTION_NORM


def _size(
  model: decoder.Decoder, params: decoder.Params, norm: str
) -> np.ndarray:
  """Returns |γ| of a norm in every layer, `[L, D]`."""
  weight_LD = np.asarray(params['layers'][norm]['weight'], np.float64)
  return np.abs(weight_LD + model.config.norm_offset)
