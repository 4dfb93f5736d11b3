"""What is rounded of a model, in which ways, and as which data?

Letters: L layers, S sites, B rows, T time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from me_jax.evaluation import rounding

EXACT = 'exact'


class Condition(NamedTuple):
  """What is rounded, and how.

  Attributes:
    name: of the condition.
    sites: of `rounding.SITES`, whose values are.
    by_token: whether each token has a scale, instead of one for all.
    exempt: tokens that stay exact: `massive`, `ordinary`, or none if empty.
    layers: where; None for all.
    weights: scale of kernels, one a `tensor` or an output `channel`; if empty
      they stay exact.
  """

  name: str
  sites: tuple[str, ...] = ()
  by_token: bool = False
  exempt: str = ''
  layers: tuple[int, ...] | None = None
  weights: str = ''


def all_of(depth: int, me_layer: int | None) -> tuple[Condition, ...]:
  """Returns what is rounded, one thing after the other.

  Args:
    depth: layers of the model.
    me_layer: which is looked at apart from the others, if there is one.
  """
  inputs, stream = rounding.INPUTS, rounding.STREAM
  found = [Condition(EXACT)]
  for name, used in (('activations', inputs), ('stream', stream)):
    found += [
      Condition(name, used),
      Condition(f'{name}, massive exempt', used, exempt='massive'),
      Condition(f'{name}, ordinary exempt', used, exempt='ordinary'),
      Condition(f'{name}, by token', used, by_token=True),
    ]
  found += [Condition(site, (site,)) for site in inputs]
  if me_layer is not None:
    others = tuple(i for i in range(depth) if i != me_layer)
    act = ('ffn_act',)
    found += [
      Condition('ffn_act, ME Layer', act, layers=(me_layer,)),
      Condition('ffn_act, other layers', act, layers=others),
    ]
  return (
    *found,
    Condition('weights', weights='tensor'),
    Condition('weights, by channel', weights='channel'),
    Condition('both', inputs, weights='tensor'),
    Condition('both, fine', inputs, by_token=True, weights='channel'),
  )


def operands(
  condition: Condition,
  *,
  depth: int,
  levels: float,
  real_BT: np.ndarray,
  massive_BT: np.ndarray,
  ordinary_BT: np.ndarray,
) -> dict[str, np.ndarray]:
  """Returns a condition as operands of `rounding.Round`.

  Args:
    condition: what is rounded.
    depth: layers of the model.
    levels: of `rounding.rounded`.
    real_BT: bool, tokens that are no padding.
    massive_BT: bool, the massive ones.
    ordinary_BT: bool, the ordinary ones that are exempt in their place.
  """
  how_SL = np.full((len(rounding.SITES), depth), rounding.NONE, np.int32)
  layers = range(depth) if condition.layers is None else condition.layers
  how = rounding.TOKEN if condition.by_token else rounding.TENSOR
  for site in condition.sites:
    how_SL[rounding.SITES.index(site), list(layers)] = how
  exempt_BT = {
    '': np.zeros_like(real_BT),
    'massive': massive_BT,
    'ordinary': ordinary_BT,
  }[condition.exempt]
  round_BT = real_BT & ~exempt_BT
  return {
    'round_how': how_SL,
    'round_levels': np.asarray(levels, np.float32),
    'round_BT': round_BT,
    'compared_BT': round_BT & ~massive_BT,
  }
