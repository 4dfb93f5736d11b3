"""How is an attention map drawn?

Letters: C layers, N heads, T time.
"""

from __future__ import annotations

import numpy as np

from me_jax.analysis import attention_maps
from me_jax.plotting import spec

_LEAST = 1e-3  # what is smaller has the same colour


def panel(title: str, probs_NTT: np.ndarray) -> spec.Heatmap:
  """Returns the mean over heads as a heatmap, without the empty triangle."""
  return spec.Heatmap(
    title=title,
    values=np.where(
      np.tri(probs_NTT.shape[-1], dtype=bool),
      np.maximum(probs_NTT.mean(axis=0), _LEAST),
      np.nan,
    ),
    x_label='key',
    y_label='query',
    value_label='attention',
    value_range=(_LEAST, 1.0),
    log=True,
    origin='upper',
  )


def received(maps: attention_maps.AttentionMaps) -> np.ndarray:
  """Returns mean attention to the massive token, `[C]`.

  Over heads and the queries from the token on: no earlier one can see it.
  """
  at = maps.position
  return maps.probs_CNTT[:, :, at:, at].mean(axis=(1, 2))
