"""What is said about massive activations at one moment of training?

Letters: B rows, L layers, N heads, P texts of a row, C chosen tokens of a row,
X texts or tokens, K inputs, D model width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from me_jax.analysis import emergence
from me_jax.analysis import massive_tokens
from me_jax.analysis import me_report
from me_jax.analysis import rigidity
from me_jax.analysis import sinks
from me_jax.analysis import sums as sums_lib
from me_jax.analysis import trace as trace_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Readings:
  """What one call saw. Layers count from 0.

  The *own* token of a text is its massive one, or its first where it has none;
  numbers are about the texts with massive activations as soon as there is one.
  *Control* tokens are two ordinary ones of each text. What cannot be said is
  None: what asks for an ME Layer or a plateau where there is none, and
  cosines across inputs where all texts begin alike.

  Attributes:
    verdict: as in `MEReport`, as the next three are.
    me_layer: the ME Layer; None without one.
    span: the emergence span.
    plateau: first and last layer that put the plateau out.
    texts: number of texts.
    massive_texts: number of texts that hold massive activations.
    spike: the largest |x| of any layer's output.
    spike_ratio: over the median |x| of that output in the same text.
    spike_layer: whose output.
    spike_control: the largest |x| of a control token there.
    plateau_norm: mean norm of the own token in the state where its plateau is
      highest.
    plateau_norm_control: the same of control tokens, in the same state.
    sink_rate: share of heads, in all layers, in which the first token of a text
      receives more than 0.3 of the attention of its first 64 tokens, mean over
      texts (Gu et al. 2024, arXiv 2410.10781, with T = 64). A text that is
      shorter raises it.
    sink_rate_control: the same of control tokens, from all later tokens.
    sink_rate_by_layer: `[L]`.
    attention_by_layer: `[L]`, what the first token receives, mean over heads
      and texts.
    attention_after: its mean over the layers after the ME Layer.
    attention_before: over the others: what the ME Layer's own attention
      receives is not massive yet.
    attention_after_control: what control tokens receive after the ME Layer.
    rigidity: cosine between the own token's states in two inputs, mean over
      pairs and the plateau's layers.
    rigidity_control: the same of one control token a text.
    rigidity_before: of the own token in layers before the plateau.
    rigidity_attn_in: of what attention receives of the own token in the layers
      after the first of the plateau, which a mask or gates change.
    rigidity_attn_in_control: the same of the control token.
    rigidity_layers: cosine between the own token's states after two layers of
      the plateau, mean over pairs and texts.
    rigidity_layers_control: the same of control tokens.
  """

  verdict: str
  me_layer: int | None
  span: tuple[int, ...]
  plateau: tuple[int, int] | None
  texts: int
  massive_texts: int
  spike: float
  spike_ratio: float
  spike_layer: int
  spike_control: float | None
  plateau_norm: float
  plateau_norm_control: float | None
  sink_rate: float
  sink_rate_control: float | None
  sink_rate_by_layer: np.ndarray
  attention_by_layer: np.ndarray
  attention_after: float | None
  attention_before: float | None
  attention_after_control: float | None
  rigidity: float | None
  rigidity_control: float | None
  rigidity_before: float | None
  rigidity_attn_in: float | None
  rigidity_attn_in_control: float | None
  rigidity_layers: float | None
  rigidity_layers_control: float | None

  def to_json(self) -> dict[str, Any]:
    """Returns plain values by the attributes' names, floats to six digits."""
    fields = dataclasses.fields(self)
    return me_report.plain({f.name: getattr(self, f.name) for f in fields})


def of_pass(look: massive_tokens.Look, trace: trace_lib.Trace) -> Readings:
  """Reduces what one pass saw.

  Args:
    look: of the pass; besides what `trace` needs it saw `attn_in` `[L, B, C,
      D]`, `first` `[L, B, P, N]` (what the first token of each text receives
      among the first 64) and `chosen` `[L, B, C, N]` (what chosen tokens do).
    trace: of the same pass.
  """
  found, peak = emergence.decide(trace), emergence.peak(trace)
  layer, plateau = found.layer, found.plateau
  nowhere = slice(0)
  after = nowhere if layer is None else slice(layer + 1, None)
  before = nowhere if layer is None else slice(layer + 1)
  high = slice(plateau[0], plateau[1] + 1) if plateau else nowhere
  own = tuple(at_X[trace.used_X] for at_X in look.token_at)
  control = look.control_at
  seen = {
    name: np.asarray(look.seen[name])
    for name in ('peak', 'state', 'attn_in', 'first', 'chosen')
  }
  first_LXN = seen['first'][:, *look.token_at].astype(np.float64)
  control_LXN = seen['chosen'][:, *control].astype(np.float64)
  sink_L = (first_LXN > sinks.SINK).mean(axis=(1, 2))
  attention_L = first_LXN.mean(axis=(1, 2))
  control_peak_X = seen['peak'][peak.layer, control[0], look.chosen_BC[control]]
  return Readings(
    verdict=found.verdict,
    me_layer=layer,
    span=found.span,
    plateau=plateau,
    texts=len(trace.massive_X),
    massive_texts=int(trace.massive_X.sum()),
    spike=peak.value,
    spike_ratio=peak.ratio,
    spike_layer=peak.layer,
    spike_control=float(control_peak_X.max()) if control_peak_X.size else None,
    plateau_norm=float(trace.token.norm_ZX[found.peak_state].mean()),
    plateau_norm_control=_mean(trace.control.norm_ZX[found.peak_state]),
    sink_rate=float(sink_L.mean()),
    sink_rate_control=_mean(control_LXN > sinks.SINK),
    sink_rate_by_layer=sink_L,
    attention_by_layer=attention_L,
    attention_after=_mean(attention_L[after]),
    attention_before=_mean(attention_L[before]),
    attention_after_control=_mean(control_LXN[after]),
    **_rigidity(look, seen, own, high),
  )


def _rigidity(
  look: massive_tokens.Look,
  seen: dict[str, np.ndarray],
  own: tuple[np.ndarray, np.ndarray],
  high: slice,
) -> dict[str, float | None]:
  """Returns the cosines; `high` are the plateau's layers."""
  low = slice(high.start or 0)
  # What the plateau's first layer receives came before it.
  receiving = slice((high.start or 0) + 1, high.stop)
  inputs, control_inputs = (
    sums_lib.inputs_of(look, seen, *at, len(look.massive_X))
    for at in (own, sums_lib.one_a_text(look))
  )

  def across_inputs(value_KLD: np.ndarray, layers: slice) -> float | None:
    return _mean(rigidity.cosines(value_KLD).mean_L[layers])

  def across_layers(at: tuple[np.ndarray, np.ndarray]) -> float | None:
    state_XLD = seen['state'][high][:, *at].swapaxes(0, 1)
    count = state_XLD.shape[1]
    pairs = np.triu_indices(count, 1)
    return _mean(rigidity.between_layers(state_XLD)[:, *pairs])

  return {
    'rigidity': across_inputs(inputs.state_KLD, high),
    'rigidity_control': across_inputs(control_inputs.state_KLD, high),
    'rigidity_before': across_inputs(inputs.state_KLD, low),
    'rigidity_attn_in': across_inputs(inputs.attn_in_KLD, receiving),
    'rigidity_attn_in_control': across_inputs(
      control_inputs.attn_in_KLD, receiving
    ),
    'rigidity_layers': across_layers(own),
    'rigidity_layers_control': across_layers(look.control_at),
  }


def _mean(values: np.ndarray) -> float | None:
  """Returns the mean; None where there is nothing, or no number."""
  mean = np.mean(values) if values.size else np.nan
  return float(mean) if np.isfinite(mean) else None
