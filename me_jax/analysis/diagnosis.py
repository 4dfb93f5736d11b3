"""What do massive activations do to a model, over any number of texts?

One pass measures everything: the residual stream, rigidity, attention sinks
and diversity. Texts stream through it, and what is kept are sums, of one size
whatever their number; their order and how they are batched change nothing but
the last digits (of the median, the third).

A text's own token is its massive one, or its first where it has none. Numbers
are about the texts with massive activations as soon as there is one.

Letters: B rows, T time, L layers, Z = L + 1 states, N heads, W window of the
first tokens, P texts of a row, C chosen tokens of a row, X texts, G = 2 groups
of texts (with and without massive activations), D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
from typing import Any

from flax import struct
import jax
import numpy as np
import threadpoolctl

from me_jax import errors
from me_jax.analysis import diversity
from me_jax.analysis import emergence
from me_jax.analysis import massive_tokens
from me_jax.analysis import observers
from me_jax.analysis import passes
from me_jax.analysis import residual
from me_jax.analysis import rigidity
from me_jax.analysis import sinks
from me_jax.analysis import sums as sums_lib
from me_jax.models import batch as batch_lib
from me_jax.models import decoder

_ALSO = (
  observers.AtPositions('attn_in', 'attn_in'),
  sinks.ReceivedAttention(),
  sinks.CosineToToken(),
  diversity.TokenProducts(),
)


@struct.dataclass
class Stream:
  """What happened to the residual stream; means over tokens.

  Attributes:
    norm: `[Z]`, of the texts' own token.
    control_norm: `[Z]`, of control tokens.
    ordinary_norm: `[Z]`, of all tokens that are never massive.
    jump: `[L]`, growth of the own token's norm, geometric mean.
    attn_share: `[L]`, share of its plateau that each attention wrote.
    ffn_share: `[L]`, the same of each FFN.
    embedding_share: share that the embedding holds; all sum to one.
    massive: `[L]`, share of texts whose own token is massive after the layer.
    peak: `[L]`, largest |x| of a text after the layer.
    median: `[L]`, median |x| of a text after the layer, to 1 %.
    plateau: `[D]`, the own token's plateau.
    plateau_std: `[D]`, its standard deviation over texts.
  """

  norm: np.ndarray
  control_norm: np.ndarray
  ordinary_norm: np.ndarray
  jump: np.ndarray
  attn_share: np.ndarray
  ffn_share: np.ndarray
  embedding_share: np.ndarray
  massive: np.ndarray
  peak: np.ndarray
  median: np.ndarray
  plateau: np.ndarray
  plateau_std: np.ndarray


@struct.dataclass
class Rigidity:
  """How alike states are; cosines.

  Attributes:
    state: across inputs, of the own token after each layer.
    attn_in: across inputs, of what attention receives of it.
    control_state: the same of control tokens.
    control_attn_in: the same of control tokens.
    layers: `[L, L]`, between the own token's states after two layers.
    layers_least: `[L, L]`, the same in the text where it is smallest.
    control_layers: `[L, L]`, the same of control tokens.
  """

  state: rigidity.Cosines
  attn_in: rigidity.Cosines
  control_state: rigidity.Cosines
  control_attn_in: rigidity.Cosines
  layers: np.ndarray
  layers_least: np.ndarray
  control_layers: np.ndarray


@struct.dataclass
class Sinks:
  """Who receives attention; means over texts. See `sinks` for alpha.

  Attributes:
    attention: `[L, N]`, alpha of the own token.
    attention_std: `[L, N]`, its standard deviation over texts.
    rate: `[L, N]`, share of texts in which it exceeds 0.3.
    largest: `[L, N]`, share of later queries that look at it most.
    control_attention: `[L, N]`, alpha of control tokens.
    control_largest: `[L, N]`, share of later queries that look at them most.
    by_position: `[L, N, W]`, alpha of the first tokens among each other.
    rate_by_position: `[L, N, W]`, share of texts in which it exceeds 0.3.
    secondary: `[L]`, tokens a text, besides its own, whose |cosine| to it
      exceeds 0.9 before the layer.
    secondary_attention: `[L]`, alpha of such a token, mean over heads; NaN
      where there is none.
  """

  attention: np.ndarray
  attention_std: np.ndarray
  rate: np.ndarray
  largest: np.ndarray
  control_attention: np.ndarray
  control_largest: np.ndarray
  by_position: np.ndarray
  rate_by_position: np.ndarray
  secondary: np.ndarray
  secondary_attention: np.ndarray


@struct.dataclass
class Diversity:
  """Spectra of what attention receives of a text's tokens; means over texts.

  The last axis is: all tokens, without the text's own, and (participation
  alone) without a control token instead.

  Attributes:
    entropy: `[L, 2]`, matrix entropy in nats.
    effective_rank: `[L, 2]`, exp(entropy).
    stable_rank: `[L, 2]`.
    anisotropy: `[L, 2]`.
    participation: `[L, 3]`.
  """

  entropy: np.ndarray
  effective_rank: np.ndarray
  stable_rank: np.ndarray
  anisotropy: np.ndarray
  participation: np.ndarray


@struct.dataclass
class Diagnosis:
  """Everything that one pass over the texts shows.

  Attributes:
    texts: how many there are.
    massive_texts: how many hold massive activations.
    span: the emergence span by the mean shares; empty without massive texts.
    layer: the ME Layer by them; None without one.
    stream: the residual stream.
    rigidity: of the own token's state.
    sinks: attention to it.
    diversity: of what attention receives.

  Examples:
    >>> import me_jax
    >>> lm = me_jax.load('smollm2')
    >>> batch = me_jax.encode(lm, ['The quick brown fox', 'def f(x):'])
    >>> found = me_jax.diagnose(lm.model, lm.params, batch)
    >>> found.stream.norm.shape  # [Z]: the embedding, and each layer's output
    (31,)
    >>> found.stream.jump.argmax().item()
    11
  """

  texts: int
  massive_texts: int
  span: tuple[int, ...] = struct.field(pytree_node=False)
  layer: int | None = struct.field(pytree_node=False)
  stream: Stream
  rigidity: Rigidity
  sinks: Sinks
  diversity: Diversity


@functools.partial(jax.jit, static_argnums=0)
def measure(
  model: decoder.Decoder,
  params: decoder.Params,
  tokens_BT: jax.Array,
  segments_BT: jax.Array,
  operands: Mapping[str, jax.Array],
) -> dict[str, Any]:
  """Runs a pass; see `residual.observe` and the observers in `_ALSO`."""
  seen = residual.observe(
    model, params, tokens_BT, segments_BT, operands, _ALSO
  )[1]
  with jax.default_matmul_precision('highest'):
    seen['diversity'] = diversity.spectra(seen.pop('products'))
  return seen


# LAPACK's own threads would wait for XLA's, and the other way round.
@threadpoolctl.threadpool_limits.wrap(limits=1, user_api='blas')
def diagnose(
  model: decoder.Decoder,
  params: decoder.Params,
  batch: batch_lib.Batch,
  *,
  rows: int | None = None,
  inputs: int = 48,
  measure: massive_tokens.Measure = measure,
  progress: Callable[[int, int], Any] | None = None,
) -> Diagnosis:
  """Measures a batch of texts, however many.

  Args:
    model: the decoder.
    params: its parameters.
    batch: the texts, see `encode`.
    rows: rows of the batch per pass, which bounds the memory; by default at
      most 512 tokens.
    inputs: different inputs whose states are compared, at most.
    measure: this module's `measure`, or the same compiled ahead of time.
    progress: called with (rows done, rows in all).

  Returns:
    The diagnosis.

  Raises:
    MeJaxError: the batch is not sound, or the model's states are not finite.

  Examples:
    >>> import me_jax
    >>> lm = me_jax.load('smollm2')
    >>> batch = me_jax.encode(lm, ['The quick brown fox', 'def f(x):'])
    >>> found = me_jax.diagnose(lm.model, lm.params, batch)
    >>> round(found.rigidity.state.mean_L[11].item(), 3)  # across inputs
    1.0
    >>> sinks = found.sinks.attention.mean(axis=1)  # [L]
    >>> bool(sinks[12:].mean() > sinks[:12].mean())
    True
  """
  if not isinstance(model, decoder.Decoder) or not isinstance(
    batch, batch_lib.Batch
  ):
    raise errors.MeJaxError(
      f'diagnose got a {type(model).__name__} and a {type(batch).__name__}, it'
      ' takes lm.model, lm.params and what encode returns.'
    )
  batch = batch_lib.check_batch(model.config, batch)
  slots = passes.slots_of(batch)
  rows = passes.rows_of(batch, rows)
  longest = int(batch_lib.text_spans(batch.segments_BT).length.max())
  operands = functools.partial(
    operands_of, slots, diversity.sample_size(longest)
  )
  count, sums = len(batch.tokens_BT), None
  for start in range(0, count, rows):
    piece = passes.take_rows(batch, start, rows)
    look = massive_tokens.look(measure, model, params, piece, slots, operands)
    found = sums_lib.of_pass(look, model, params, inputs)
    sums = found if sums is None else sums_lib.add(sums, found, inputs)
    if progress:
      progress(min(start + rows, count), count)
  assert sums is not None  # A batch has rows.
  return _diagnosis(sums)


def operands_of(
  slots: int, count: int, piece: batch_lib.Batch, chosen_BC: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns what the further observers ask for."""
  spans = batch_lib.text_spans(piece.segments_BT)
  row_X, _, _, slot_X = spans
  each = (chosen_BC.shape[1] - slots) // slots
  return passes.places(piece, spans) | {
    'sample': diversity.sample(
      spans,
      len(piece.tokens_BT),
      slots,
      own_X=chosen_BC[row_X, slot_X],
      control_X=chosen_BC[row_X, slots + slot_X * each + each // 2],
      count=count,
    ),
  }


def _diagnosis(sums: sums_lib.Sums) -> Diagnosis:
  """Turns sums into means."""
  texts_G = sums.texts['count']
  group = 0 if texts_G[0] else 1
  count = max(texts_G[group], 1.0)
  own = {name: value[group] / count for name, value in sums.texts.items()}
  controls = max(sums.controls['count'], 1.0)
  control = {name: value / controls for name, value in sums.controls.items()}
  massive = bool(texts_G[0])
  share_L = own['attn_share'] + own['ffn_share']
  jump_L = np.exp(own['log_jump'])
  span = emergence.emergence_span(share_L) if massive else ()
  some_W = np.maximum(own['long_enough'], 1e-30)
  secondary_L = own['secondary']
  with np.errstate(invalid='ignore', divide='ignore'):
    secondary_attention = own['secondary_attention'] / secondary_L
  variance = own['attention_square'] - own['attention'] ** 2
  spread = own['plateau_square'] - own['plateau'] ** 2
  return Diagnosis(
    texts=int(texts_G.sum()),
    massive_texts=int(texts_G[0]),
    span=span,
    layer=emergence.me_layer(span, jump_L),
    stream=Stream(
      norm=own['norm'],
      control_norm=control['norm'],
      ordinary_norm=sums.ordinary['norm'] / max(sums.ordinary['count'], 1.0),
      jump=jump_L,
      attn_share=own['attn_share'],
      ffn_share=own['ffn_share'],
      embedding_share=own['embedding_share'],
      massive=own['massive'],
      peak=own['peak'],
      median=own['median'],
      plateau=own['plateau'],
      plateau_std=np.sqrt(np.maximum(spread, 0.0)),
    ),
    rigidity=Rigidity(
      state=rigidity.cosines(sums.own[group].state_KLD),
      attn_in=rigidity.cosines(sums.own[group].attn_in_KLD),
      control_state=rigidity.cosines(sums.control.state_KLD),
      control_attn_in=rigidity.cosines(sums.control.attn_in_KLD),
      layers=own['between_layers'],
      layers_least=sums.least['between_layers'][group],
      control_layers=control['between_layers'],
    ),
    sinks=Sinks(
      attention=own['attention'],
      attention_std=np.sqrt(np.maximum(variance, 0.0)),
      rate=own['rate'],
      largest=own['largest'],
      control_attention=control['attention'],
      control_largest=control['largest'],
      by_position=own['by_position'] / some_W,
      rate_by_position=own['rate_by_position'] / some_W,
      secondary=secondary_L,
      secondary_attention=secondary_attention,
    ),
    diversity=Diversity(
      entropy=own['entropy'],
      effective_rank=own['effective_rank'],
      stable_rank=own['stable_rank'],
      anisotropy=own['anisotropy'],
      participation=own['participation'],
    ),
  )
