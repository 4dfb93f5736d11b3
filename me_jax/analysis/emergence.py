"""Which layer creates the massive activations, and how sure is that?

With u the unit direction of the massive token's plateau, the share of a write
is its projection on u over the plateau's own; the shares of the embedding and
of every attention and FFN sum to one. The *emergence span* is the shortest run
of consecutive layers whose shares sum to at least 0.8. The *ME Layer* is the
one of them where the token's norm jumps by the largest factor.

A model without massive activations has no ME Layer, nor has one whose span is
longer than three layers: its emergence is gradual.

Letters: L layers, Z = L + 1 states, X texts, D model width, F FFN width.
"""

from __future__ import annotations

from collections.abc import Callable
import platform
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax import __version__
from me_jax import errors
from me_jax.analysis import host
from me_jax.analysis import massive_tokens
from me_jax.analysis import me_report
from me_jax.analysis import residual
from me_jax.analysis import trace as trace_lib
from me_jax.models import batch as batch_lib
from me_jax.models import decoder

SPAN_SHARE = 0.8
LONGEST_SPAN = 3
_PLATEAU = 0.5  # of the largest projection: where the plateau ends
_MOST_NEURONS = 8  # listed per layer
_LEAST_FFN_SHARE = 0.05  # for which neurons are listed


class Emergence(NamedTuple):
  """Where the plateau comes from; the first six as in `MEReport`.

  Attributes:
    verdict: in one word.
    layer: the ME Layer; None without one.
    span: the emergence span.
    shares: who wrote the plateau.
    jump: `[L]`, growth of the token's norm.
    plateau: first and last layer that put it out; None without one.
    peak_state: the state, 0 to L, that reaches farthest along the plateau; of
      first tokens where none is massive.
  """

  verdict: str
  layer: int | None
  span: tuple[int, ...]
  shares: me_report.Shares
  jump: np.ndarray
  plateau: tuple[int, int] | None
  peak_state: int


def find_me_layer(
  model: decoder.Decoder,
  params: decoder.Params,
  batch: batch_lib.Batch,
  *,
  bos_token_id: int | None = None,
  spell: Callable[[int], str | None] | None = None,
  rows: int | None = None,
  measure: trace_lib.Measure = residual.measure,
  progress: Callable[[int, int], Any] | None = None,
) -> me_report.MEReport:
  """Finds the layer that writes the massive activations.

  Args:
    model: the decoder.
    params: its parameters.
    batch: texts to look at; a few dozen of varied kind, see `encode`.
    bos_token_id: tells texts with BOS from others; by default the
      configuration's.
    spell: names a token in the report, for example `tokenizer.decode`.
    rows: rows of the batch per pass, which bounds the memory; by default
      at most 512 tokens.
    measure: `residual.measure`, or the same compiled ahead of time.
    progress: called with (rows done, rows in all).

  Returns:
    The report; its `layer` is None when there is no ME Layer.

  Raises:
    MeJaxError: the batch is not sound.

  Examples:
    >>> import me_jax
    >>> lm = me_jax.load('smollm2')
    >>> batch = me_jax.encode(lm, ['The quick brown fox', 'def f(x):'])
    >>> report = me_jax.find_me_layer(lm.model, lm.params, batch)
    >>> report.layer, report.verdict
    (11, 'single')
    >>> report.shares.ffn[report.layer].item() > 0.99
    True
  """
  if not isinstance(model, decoder.Decoder) or not isinstance(
    batch, batch_lib.Batch
  ):
    raise errors.MeJaxError(
      f'find_me_layer got a {type(model).__name__} and a'
      f' {type(batch).__name__}, it takes lm.model, lm.params and what encode'
      ' returns.'
    )
  trace = trace_lib.trace(
    model, params, batch, rows=rows, measure=measure, progress=progress
  )
  if bos_token_id is None:
    bos_token_id = model.config.bos_token_id
  groups = _groups(bos_token_id, trace)
  found = decide(trace)
  span, shares = found.span, found.shares
  control = _shares(trace.control)
  massive = found.plateau is not None
  return me_report.MEReport(
    verdict=found.verdict,
    layer=found.layer,
    span=span,
    shares=shares,
    share_by_text=_write_shares(trace.token)[list(span)].sum(axis=0),
    control=me_report.Control(
      shares=control,
      span=emergence_span(control.attn + control.ffn),
      norm=_mean(trace.control.norm_ZX),
      profile=trace.control.profile_ZD,
    ),
    jump=found.jump,
    channels=_channels(trace, found.peak_state) if massive else (),
    neurons=_neurons(model, params, trace, span, shares.ffn),
    tokens=_tokens(trace, spell),
    position_by_text=trace.position_X,
    plateau=found.plateau,
    plateau_mean=trace.token.plateau_XD.mean(axis=0),
    peak=peak(trace),
    agreement={name: _agreement(trace, mask) for name, mask in groups.items()},
    texts=len(trace.massive_X),
    massive_texts=int(trace.massive_X.sum()),
    norm=_mean(trace.token.norm_ZX),
    others=trace.others_Z,
    median=_mean(trace.median_LX[:, trace.used_X]),
    profile=trace.token.profile_ZD,
    provenance=_provenance(model),
  )


def decide(trace: trace_lib.Trace) -> Emergence:
  """Returns the ME Layer of what a batch showed, and why it is that one."""
  massive = bool(trace.massive_X.any())
  shares = _shares(trace.token)
  jump_L = np.exp(np.log(_jumps(trace.token)).mean(axis=1))
  span = emergence_span(shares.attn + shares.ffn) if massive else ()
  plateau, peak_state = _plateau(trace.token)
  return Emergence(
    verdict=_verdict(massive, span),
    layer=me_layer(span, jump_L),
    span=span,
    shares=shares,
    jump=jump_L,
    plateau=plateau if massive else None,
    peak_state=peak_state,
  )


def emergence_span(share_L: np.ndarray) -> tuple[int, ...]:
  """Returns the shortest run of layers whose shares sum to `SPAN_SHARE`.

  Among runs of one length, the one with the largest sum. Empty when no run
  reaches it: the embedding already holds the plateau.
  """
  for width in range(1, len(share_L) + 1):
    sums = np.convolve(share_L, np.ones(width), 'valid')
    if sums.max() >= SPAN_SHARE:
      start = int(sums.argmax())
      return tuple(range(start, start + width))
  return ()


def me_layer(span: tuple[int, ...], jump_L: np.ndarray) -> int | None:
  """Returns the layer of the span with the largest jump; None if gradual."""
  if not span or len(span) > LONGEST_SPAN:
    return None
  return max(span, key=lambda layer: jump_L[layer])


def peak(trace: trace_lib.Trace) -> me_report.Peak:
  """Returns the largest activation, of massive texts where there are any."""
  peak_LX = trace.peak_LX[:, trace.used_X]
  layer, text = np.unravel_index(peak_LX.argmax(), peak_LX.shape)
  median = float(trace.median_LX[:, trace.used_X][layer, text])
  value = float(peak_LX[layer, text])
  return me_report.Peak(value, value / max(median, 1e-30), int(layer))


def _verdict(found: bool, span: tuple[int, ...]) -> str:
  if not found:
    return 'none'
  if not span:
    return 'embedding'
  if len(span) > LONGEST_SPAN:
    return 'gradual'
  return 'single' if len(span) == 1 else 'multi-step'


def _groups(
  bos_token_id: int | None, trace: trace_lib.Trace
) -> dict[str, np.ndarray]:
  """Splits the texts by whether they start with BOS."""
  with_X = trace.first_id_X == bos_token_id
  groups = {'with_bos': with_X, 'without_bos': ~with_X}
  return {name: mask for name, mask in groups.items() if mask.any()}


def _mean(values: np.ndarray) -> np.ndarray:
  """Returns the mean over the last axis; 0 where there is no text."""
  return values.sum(axis=-1) / max(values.shape[-1], 1)


def _write_shares(token: trace_lib.TokenTrace) -> np.ndarray:
  """Returns each layer's share, attention and FFN together, `[L, X]`."""
  return token.attn_share_LX + token.ffn_share_LX


def _shares(token: trace_lib.TokenTrace) -> me_report.Shares:
  """Averages the shares over texts."""
  return me_report.Shares(
    _mean(token.attn_share_LX),
    _mean(token.ffn_share_LX),
    float(_mean(token.embedding_share_X)),
  )


def _jumps(token: trace_lib.TokenTrace) -> np.ndarray:
  """Returns the growth of the token's norm in each layer, `[L, X]`."""
  tiny = np.finfo(np.float32).tiny
  return np.maximum(token.norm_ZX[1:], tiny) / np.maximum(
    token.norm_ZX[:-1], tiny
  )


def _plateau(token: trace_lib.TokenTrace) -> tuple[tuple[int, int], int]:
  """Returns the first and last layer of the plateau, and its peak's state."""
  along_Z = _mean(token.projection_ZX)
  peak = int(along_Z.argmax())
  high_Z = along_Z >= _PLATEAU * along_Z[peak]
  first = last = peak
  while first > 0 and high_Z[first - 1]:
    first -= 1
  while last + 1 < len(high_Z) and high_Z[last + 1]:
    last += 1
  return (max(first - 1, 0), max(last - 1, 0)), peak


def _channels(
  trace: trace_lib.Trace, peak_state: int
) -> tuple[me_report.Channel, ...]:
  """Returns the channels that are massive in the mean plateau."""
  plateau_XD = trace.token.plateau_XD
  mean_D = plateau_XD.mean(axis=0)
  bound = max(
    massive_tokens.MASSIVE_VALUE,
    massive_tokens.MASSIVE_RATIO
    * trace.median_LX[max(peak_state - 1, 0), trace.used_X].mean(),
  )
  massive = np.flatnonzero(np.abs(mean_D) > bound)
  energy_D = (plateau_XD**2).sum(axis=0) / (plateau_XD**2).sum()
  return tuple(
      me_report.Channel(
          int(c), float(mean_D[c]), float(plateau_XD[:, c].std()),
          float(energy_D[c]),
      )
      for c in sorted(massive, key=lambda c: -abs(mean_D[c]))
  )  # fmt: skip


def _neurons(
  model: decoder.Decoder,
  params: decoder.Params,
  trace: trace_lib.Trace,
  span: tuple[int, ...],
  ffn_L: np.ndarray,
) -> tuple[me_report.Neuron, ...]:
  """Returns the fewest neurons that make `SPAN_SHARE` of each FFN's share.

  At most eight a layer: their shares say how much of it they make.
  """
  if len(span) > LONGEST_SPAN:
    return ()
  found = []
  for layer in span:
    # Where attention wrote the step, neurons have nothing to explain.
    if ffn_L[layer] < _LEAST_FFN_SHARE:
      continue
    share_XF = residual.neuron_shares(
      model,
      params,
      jnp.int32(layer),
      trace.mid_LKD[layer],
      trace.token.plateau_XD[: trace.mid_LKD.shape[1]],
    )
    share_F = np.asarray(host.readable(share_XF)).mean(axis=0)
    order = np.argsort(-share_F)[:_MOST_NEURONS]
    reached = np.cumsum(share_F[order]) >= SPAN_SHARE * ffn_L[layer]
    count = int(reached.argmax()) + 1 if reached.any() else len(order)
    found += [
      me_report.Neuron(layer, int(f), float(share_F[f]))
      for f in order[:count]
      if share_F[f] > 0
    ]
  return tuple(found)


def _tokens(
  trace: trace_lib.Trace, spell: Callable[[int], str | None] | None
) -> tuple[me_report.MassiveToken, ...]:
  """Counts the massive tokens by position and id, the most frequent first."""
  counts: dict[tuple[int, int], int] = {}
  for _, position, token in trace.massive_tokens:
    counts[position, token] = counts.get((position, token), 0) + 1
  return tuple(
    me_report.MassiveToken(
      position, token, spell(token) if spell else None, count
    )
    for (position, token), count in sorted(
      counts.items(), key=lambda item: (-item[1], item[0])
    )
  )


def _agreement(trace: trace_lib.Trace, mask: np.ndarray) -> me_report.Agreement:
  """Counts what three rules say of each text taken alone."""
  rules: dict[str, dict[int | None, int]] = {'share': {}, 'sun': {}, 'jump': {}}
  share_LX, jump_LX = _write_shares(trace.token), _jumps(trace.token)
  # The token's texts are the massive ones, as soon as there is one.
  for column, x in enumerate(np.flatnonzero(trace.used_X)):
    if not (mask[x] and trace.massive_X[x]):
      continue
    jump_L = jump_LX[:, column]
    named = {
      'share': me_layer(emergence_span(share_LX[:, column]), jump_L),
      'sun': int(trace.massive_LX[:, x].argmax()),
      'jump': int(jump_L.argmax()),
    }
    for rule, layer in named.items():
      rules[rule][layer] = rules[rule].get(layer, 0) + 1
  return me_report.Agreement(
    texts=int(mask.sum()),
    massive=int((mask & trace.massive_X).sum()),
    rules=rules,
  )


def _provenance(model: decoder.Decoder) -> dict[str, Any]:
  from importlib import metadata

  return {
    'dtype': jnp.dtype(model.dtype).name,
    'param_dtype': jnp.dtype(model.param_dtype).name,
    'residual_dtype': jnp.dtype(model.residual_dtype).name,
    'matmul_precision': 'highest',
    'attention': f'exact softmax in chunks of {model.attention_chunk} queries',
    'device': jax.devices()[0].device_kind,
    'versions': {
      name: metadata.version(name) for name in ('jax', 'jaxlib', 'flax')
    }
    | {'python': platform.python_version(), 'me_jax': __version__},
  }
