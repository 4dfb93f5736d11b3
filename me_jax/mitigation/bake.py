"""Can the mitigation live in plain weights, with no mask in the forward pass?

The mask (`models/sink.py`) multiplies what attention receives of a massive
token by s. Such a token is rigid: it is nearly the same vector m in every text.
So kernels K can be changed such that m gives what m∘s gave, and all other
vectors h give what they gave before, as nearly as the calibration texts tell:

  minimise  mean_m |m K' - (m∘s) K|² + w mean_h |h K' - h K|²

over K', which is solved by

  K' = K + (M + w C)⁻¹ M (S - I) K

with the second moments M of marked and C of ordinary tokens, S = diag(s), and
kernels [in, out]. M has few directions z that matter; in the metric of C they
are independent, and each is reproduced to the share g / (g + w), where
g = zᵀ C⁻¹ z says how much more the marked tokens have of it than ordinary
ones. With M = μ μᵀ and w → 0 that is the rank-one edit
K' = K + C⁻¹μ / (μᵀC⁻¹μ) μᵀ (S - I) K.

The result is a stock model: it exports, quantises and runs anywhere.

Letters: L layers, D model width, F output width of a projection, X marked
tokens, R directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import threadpoolctl

from me_jax import errors
from me_jax.mitigation import moments
from me_jax.models import batch as batch_lib
from me_jax.models import decoder
from me_jax.models import sink

# The weight w of ordinary tokens. At 1 a direction is reproduced by more than
# half if marked tokens have more of it than ordinary ones. On the default model
# g is above 900 for the massive token's own direction and below 1 for all
# others (but one, in the last layer). Smaller weights chase the others, which costs
# ordinary tokens more than it gains: BUILD_NOTES.md has the measurement.
WEIGHT = 1.0
# C gets this share of its mean diagonal, so that directions in which few
# calibration texts have anything count as well.
RIDGE = 1e-3
# Directions of M below this share of the largest are rounding of float32.
_ROUNDING = 1e-6
_PROJECTIONS = ('q_proj', 'k_proj', 'v_proj')


@dataclasses.dataclass(frozen=True, kw_only=True)
class BakedLayer:
  """How well one layer's kernels stand for the mask, on the calibration texts.

  Attributes:
    layer: which one.
    marked: tokens whose input the mask scales.
    rigidity: mean cosine of their `attn_in`, unscaled, to its mean.
    least_rigidity: the smallest of these cosines.
    rank: directions that are reproduced by more than half.
    missing: by projection, the share of the mask's change at marked tokens
      that the kernels do not make: the root mean square of what differs from
      the mask over that of what the mask changes.
    disturbance: by projection, how much ordinary tokens' outputs change: the
      root mean square over that of the outputs, biases left out.
  """

  layer: int
  marked: int
  rigidity: float
  least_rigidity: float
  rank: int
  missing: Mapping[str, float]
  disturbance: Mapping[str, float]


class Baked(NamedTuple):
  """A mitigated model as a stock one.

  Attributes:
    params: the tree without the leaves of the mitigation, in the same types;
      leaves that are not changed are the same arrays.
    layers: how well each changed layer does.
  """

  params: dict[str, Any]
  layers: tuple[BakedLayer, ...]


# LAPACK's own threads would wait for XLA's, and the other way round.
@threadpoolctl.threadpool_limits.wrap(limits=1, user_api='blas')
def bake(
  model: decoder.Decoder,
  params: decoder.Params,
  batch: batch_lib.Batch,
  *,
  rows: int | None = None,
  progress: Callable[[int, int], Any] | None = None,
  least_rigidity: float = 0.9,
  weight: float = WEIGHT,
) -> Baked:
  """Puts the mask of `sink_scale` into the query, key and value kernels.

  The kernels of queries stay where only first tokens are marked: such a token
  sees itself alone, whatever its query.

  Args:
    model: the decoder, scanned; its edits are not used.
    params: its tree with `layers/sink_scale`, and possibly `sink_bound` or
      `sink_positions`, which say what is marked.
    batch: calibration texts. They must start as the texts do that the model
      is for: the first token is what is marked by default.
    rows: of a pass; by default what costs least.
    progress: called with (rows done, rows in all).
    least_rigidity: mean cosine of the marked tokens' `attn_in` to its mean
      below which a layer is refused: one edit cannot serve all of them.
    weight: of ordinary tokens against marked ones, above 0.

  Returns:
    The baked parameters, and per layer whose scale is not all ones how well
    they do. `fidelity.kl` compares the models' predictions.

  Raises:
    MeJaxError: the tree has no scale, or all ones, or layers that are not
      stacked; the batch is not sound; no token is marked, or none is not; a
      layer is not rigid enough.

  Examples:
    >>> import me_jax
    >>> lm = me_jax.load('smollm2')
    >>> batch = me_jax.encode(lm, ['The quick brown fox', 'def f(x):'])
    >>> report = me_jax.find_me_layer(lm.model, lm.params, batch)
    >>> masked = me_jax.wemask(lm.model, lm.params, report, layers='next')
    >>> baked = me_jax.bake(lm.model, masked, batch)
    >>> [layer.layer for layer in baked.layers], 'sink_scale' in baked.params
    ([12], False)
    >>> baked.layers[0].missing['v_proj'] < 0.1  # of what the mask changes
    True
  """
  layers = _scaled_layers(params)
  batch = batch_lib.check_batch(model.config, batch)
  if not 0.0 < weight < np.inf:
    raise errors.MeJaxError(f'weight is {weight}, must be above 0.')
  names = _PROJECTIONS[1:] if _first_only(params) else _PROJECTIONS
  scale_LD = np.asarray(params['layers'][sink.SCALE], np.float64)
  attention = params['layers']['self_attn']
  kernels = {name: attention[name]['kernel'] for name in names}
  changed: dict[str, list[np.ndarray]] = {name: [] for name in names}
  report = []
  for received in moments.collect(
    model, params, batch, layers, rows=rows, progress=progress
  ):
    if not len(received.marked_XD):
      continue
    cosine_X = _cosines(received, least_rigidity)
    layer = received.layer
    edit = _edit(received, weight)
    change_D = scale_LD[layer] - 1.0
    missing, disturbance = {}, {}
    for name in names:
      old = np.asarray(kernels[name][layer])
      old_DF = old.astype(np.float64)
      wanted_DF = change_D[:, None] * old_DF
      new = (old_DF + edit.write_DR @ (edit.read_RD @ wanted_DF)).astype(
        old.dtype
      )
      changed[name].append(new)
      made_DF = new.astype(np.float64) - old_DF
      missing[name], disturbance[name] = _errors(
        received, old_DF, wanted_DF, made_DF
      )
    report.append(
      BakedLayer(
        layer=layer,
        marked=len(cosine_X),
        rigidity=float(cosine_X.mean()),
        least_rigidity=float(cosine_X.min()),
        rank=edit.rank,
        missing=missing,
        disturbance=disturbance,
      )
    )
  if not report:
    raise errors.MeJaxError(
      'no token of the calibration texts is marked in a layer with a scale:'
      ' give texts that have massive tokens.'
    )
  at = np.array([layer.layer for layer in report])
  for name in names:
    new_LDF = jnp.asarray(kernels[name]).at[at].set(np.stack(changed[name]))
    attention = {**attention, name: {**attention[name], 'kernel': new_LDF}}
  kept = {k: v for k, v in params['layers'].items() if k != sink.SCALE}
  marks = (sink.BOUND, sink.POSITIONS)
  rest = {k: v for k, v in params.items() if k not in marks}
  return Baked(
    {**rest, 'layers': {**kept, 'self_attn': attention}}, tuple(report)
  )


class _Edit(NamedTuple):
  """K' - K = write (read (S - I) K); and what of it is more than a little."""

  write_DR: np.ndarray
  read_RD: np.ndarray
  rank: int


def _edit(received: moments.Received, weight: float) -> _Edit:
  """Solves for the edit, in float64 and in the few directions of M.

  With M = Zᵀ Z, (M + w C)⁻¹ Zᵀ = C⁻¹ Zᵀ (Z C⁻¹ Zᵀ + w I)⁻¹.
  """
  width = received.marked_XD.shape[1]
  marked_XD = received.marked_XD.astype(np.float64)
  _, size_R, unit_RD = np.linalg.svd(
    marked_XD / np.sqrt(len(marked_XD)), full_matrices=False
  )
  kept_R = size_R > _ROUNDING * size_R[0]
  read_RD = size_R[kept_R, None] * unit_RD[kept_R]
  ridge = RIDGE * np.trace(received.ordinary_DD) / width
  metric_DD = received.ordinary_DD + ridge * np.eye(width)
  toward_DR = np.linalg.solve(metric_DD, read_RD.T)
  gain_R, turn_RR = np.linalg.eigh(read_RD @ toward_DR)
  write_DR = toward_DR @ (turn_RR / (gain_R + weight))
  return _Edit(write_DR, turn_RR.T @ read_RD, int((gain_R > weight).sum()))


def _errors(
  received: moments.Received,
  old_DF: np.ndarray,
  wanted_DF: np.ndarray,
  made_DF: np.ndarray,
) -> tuple[float, float]:
  """Returns what is missing at marked and disturbed at ordinary tokens."""
  marked_XD = received.marked_XD.astype(np.float64)
  wanted = np.linalg.norm(marked_XD @ wanted_DF)
  missing = np.linalg.norm(marked_XD @ (made_DF - wanted_DF))

  def square(kernel_DF: np.ndarray) -> float:
    return float(np.sum((received.ordinary_DD @ kernel_DF) * kernel_DF))

  before = max(square(old_DF), np.finfo(np.float64).tiny)
  disturbed = np.sqrt(max(square(made_DF), 0.0) / before)
  # A scale of channels that are zero changes nothing, and nothing is missing.
  return float(missing / wanted) if wanted else 0.0, float(disturbed)


def _cosines(received: moments.Received, least_rigidity: float) -> np.ndarray:
  """Returns marked tokens' cosines to their mean, `[X]`, or refuses."""
  if not received.ordinary:
    raise errors.MeJaxError(
      f'every token is marked in layer {received.layer}, and the edit must'
      ' leave others alone: give longer calibration texts.'
    )
  marked_XD = received.marked_XD.astype(np.float64)
  mean_D = marked_XD.mean(axis=0)
  length_X = np.linalg.norm(marked_XD, axis=1) * np.linalg.norm(mean_D)
  cosine_X = marked_XD @ mean_D / np.maximum(length_X, 1e-300)
  if not cosine_X.mean() >= least_rigidity:
    raise errors.MeJaxError(
      f'the marked tokens are not rigid in layer {received.layer}: the mean'
      f' cosine to their mean is {cosine_X.mean():.3f}, below'
      f' {least_rigidity:g}. Weights cannot stand for this mask: keep it as'
      ' sink_scale, or mark massive tokens only.'
    )
  return cosine_X


def _scaled_layers(params: decoder.Params) -> list[int]:
  """Returns the layers whose scale is not all ones, or refuses."""
  if 'layers' not in params:
    raise errors.MeJaxError('the parameter tree holds no stacked layers.')
  if sink.SCALE not in params['layers']:
    raise errors.MeJaxError(
      f'there is nothing to bake: the parameters have no layers/{sink.SCALE}.'
    )
  scale_LD = np.asarray(params['layers'][sink.SCALE], np.float64)
  if not np.isfinite(scale_LD).all():
    raise errors.MeJaxError(f'layers/{sink.SCALE} is not finite everywhere.')
  layers = np.flatnonzero((scale_LD != 1.0).any(axis=1)).tolist()
  if not layers:
    raise errors.MeJaxError(
      f'there is nothing to bake: layers/{sink.SCALE} is all ones.'
    )
  return layers


def _first_only(params: decoder.Params) -> bool:
  """Says whether no token can be marked but the first of a text."""
  if sink.BOUND in params:
    return False
  wanted_W = np.asarray(params.get(sink.POSITIONS, [1.0]))
  return not (wanted_W[1:] > 0).any()
