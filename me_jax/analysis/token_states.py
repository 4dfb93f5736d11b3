"""What do massive and ordinary tokens look like inside every block?

Whole vectors at a few sites, of a few dozen tokens: one compiled pass for the
prefixes and one for the ordinary tokens, from which the cause of the spike is
then worked out.

Letters: B rows, T time, L layers, X prefixes, O ordinary tokens, C chosen tokens
of a row, D model width, F FFN width.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.analysis import me_report
from me_jax.analysis import observers
from me_jax.analysis import prefixes as prefixes_lib
from me_jax.analysis import residual
from me_jax.models import decoder
from me_jax.models import sites

SITES = ('attn_in', 'resid_mid', 'ffn_in', 'ffn_out', 'resid_post')
_LEAST_SHARE = 0.8  # of an FFN's share that its dominating neurons make
_MOST_NEURONS = 8


@dataclasses.dataclass(frozen=True)
class _MeanAct:
  """Mean `ffn_act` of the chosen tokens: `[F]` float32.

  `operands['weights']` is float32 `[B, C]`, 1 where a chosen token counts.
  """

  site: str = 'ffn_act'
  name: str = 'mean_act'

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Reduces `[B, T, F]`."""
    act_BCF = observers.AtPositions(self.site, self.name)(value, context)
    weights_BC = context.operands['weights']
    total_F = jnp.einsum(
      'BCF,BC->F', act_BCF, weights_BC, precision=jax.lax.Precision.HIGHEST
    )
    return total_F / jnp.maximum(jnp.sum(weights_BC), 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenStates:
  """Vectors of massive and ordinary tokens, on the host, in float32.

  Attributes:
    prefixes: the tokens.
    massive: `[L, X, D]` by site, of each prefix's last token.
    ordinary: `[L, O, D]` by site.
    ordinary_act_LF: mean of `ffn_act` over the ordinary tokens.
    peak_X: the layer that puts out each massive token's largest plateau state.
    plateau_XD: that state.
  """

  prefixes: prefixes_lib.Prefixes
  massive: Mapping[str, np.ndarray]
  ordinary: Mapping[str, np.ndarray]
  ordinary_act_LF: np.ndarray
  peak_X: np.ndarray
  plateau_XD: np.ndarray


def capture(
  model: decoder.Decoder,
  params: decoder.Params,
  prefixes: prefixes_lib.Prefixes,
  report: me_report.MEReport,
) -> TokenStates:
  """Runs the prefixes and the ordinary tokens once.

  Args:
    model: the decoder.
    params: its parameters.
    prefixes: what to run, from `prefixes.select`.
    report: of the same texts; says where the plateau is.

  Returns:
    Their states. Where there is no plateau the largest state of all counts.
  """
  rows, time = prefixes.batch.tokens_BT.shape
  operands = {
    'positions': np.full((rows, 1), time - 1, np.int32),
    'weights': np.ones((rows, 1), np.float32),
  }
  seen = jax.device_get(_capture(model, params, *prefixes.batch, operands))
  massive = {name: seen[name][:, :, 0] for name in SITES}
  operands = {
    'positions': prefixes.positions_YC,
    'weights': prefixes.ordinary_YC.astype(np.float32),
  }
  seen = jax.device_get(_capture(model, params, *prefixes.ordinary, operands))
  ordinary = {name: seen[name][:, prefixes.ordinary_YC] for name in SITES}
  norm_LX = np.linalg.norm(massive['resid_post'], axis=-1)
  first, last = report.plateau or (0, len(norm_LX) - 1)
  peak_X = first + norm_LX[first : last + 1].argmax(axis=0)
  return TokenStates(
    prefixes=prefixes,
    massive=massive,
    ordinary=ordinary,
    ordinary_act_LF=seen['mean_act'],
    peak_X=peak_X,
    plateau_XD=massive['resid_post'][peak_X, np.arange(rows)],
  )


@functools.partial(jax.jit, static_argnums=0)
def _capture(
  model: decoder.Decoder,
  params: decoder.Params,
  tokens_BT: jax.Array,
  segments_BT: jax.Array,
  operands: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
  """Returns `[L, B, C, D]` by site and `mean_act` `[L, F]`."""
  used = dataclasses.replace(
    model.sites,
    observers=(
      *(observers.AtPositions(site, site) for site in SITES),
      _MeanAct(),
    ),
  )
  with jax.default_matmul_precision('highest'):
    _, intermediates = model.clone(sites=used).apply(
      {'params': params},
      tokens_BT,
      segments_BT,
      operands,
      mutable='intermediates',
    )
  return sites.read(intermediates)


def contributions(
  model: decoder.Decoder, params: decoder.Params, states: TokenStates
) -> np.ndarray:
  """Returns each neuron's share of the plateau in every layer, `[L, F]`.

  Averaged over prefixes. Unlike the shares of the report, layers behind the
  largest state count too: what they write, over the plateau's length, is what
  they add to it or take from it.
  """
  return np.stack(
    [
      np.asarray(
        residual.neuron_shares(
          model, params, jnp.int32(layer), mid_XD, states.plateau_XD
        )
      ).mean(axis=0)
      for layer, mid_XD in enumerate(states.massive['resid_mid'])
    ]
  )


def writers(
  report: me_report.MEReport, share_LF: np.ndarray
) -> dict[int, tuple[int, ...]]:
  """Returns the dominating neurons of each layer of the span.

  Args:
    report: names them where it has an ME Layer.
    share_LF: from `contributions`, for spans whose neurons it does not name:
      gradual ones, and layers whose attention wrote the plateau.

  Returns:
    Neurons by layer, by falling share, at least one each.
  """
  found = {}
  for layer in report.span:
    named = [n.index for n in report.neurons if n.layer == layer]
    if not named:
      order = np.argsort(-share_LF[layer])[:_MOST_NEURONS]
      reached = np.cumsum(share_LF[layer, order])
      enough = reached >= _LEAST_SHARE * share_LF[layer].sum()
      count = int(enough.argmax()) + 1 if enough.any() else len(order)
      named = order[:count].tolist()
    found[layer] = tuple(named)
  return found
