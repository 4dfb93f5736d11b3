"""Which tokens hold massive activations when they stand alone in front?

Every token of the vocabulary, or a sample, is run as a text of its own, through
the layers up to the end of the emergence span and no farther. It *spikes* if
its state there is massive (|x| > 100 and > 1000 times the median that ordinary
texts have there, Sun et al. 2024, arXiv 2402.17762) and points along the
plateau that the report found (cosine above 0.9, as secondary sinks are told in
arXiv 2512.22213).

The control is the same token as the second of a text, behind one that spikes in
front: where the spike belongs to the place and not to the word, it is gone. The
front token itself is left out there, because attention over two equal tokens is
what it is over one, and no model without a token of its own in front can tell.

Letters: X probed tokens, T tokens of a row, V vocabulary, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from me_jax import errors
from me_jax.analysis import massive_tokens
from me_jax.analysis import me_report
from me_jax.analysis import vocabulary_report as report_lib
from me_jax.models import decoder
from me_jax.models import params as params_lib

ROWS = 1024  # a pass, unless the caller says otherwise
CONTROLS = 1024
_FRONTS = 3  # massive tokens that controls are put behind


def probe(
  model: decoder.Decoder,
  params: decoder.Params,
  report: me_report.MEReport,
  *,
  ids: Sequence[int] | None = None,
  sample: int | None = None,
  seed: int = 0,
  special_ids: Collection[int] = (),
  controls: int = CONTROLS,
  rows: int = ROWS,
  progress: Callable[[int, int], Any] | None = None,
) -> report_lib.VocabularyProbe:
  """Runs tokens alone, up to the layer where the plateau starts.

  Args:
    model: the decoder.
    params: its parameters, stacked.
    report: of `find_me_layer`; says how far to run, what counts as massive
      and which way the plateau points.
    ids: tokens to run, each once; by default the whole vocabulary.
    sample: instead, the special tokens and so many others, drawn at random.
    seed: of that draw, and of the choice of control tokens.
    special_ids: for example `tokenizer.all_special_ids`; counted apart. Those
      outside the model's vocabulary are passed over.
    controls: how many tokens that spike are run again behind each other one.
    rows: tokens a pass, which bounds the memory.
    progress: called with (tokens done, tokens in all).

  Returns:
    The probe; an empty one, with the reason, if the report knows no span.

  Raises:
    MeJaxError: an id is outside the vocabulary, there are none, `ids` and
      `sample` are both given, or the model is not finite.
  """
  vocab = model.config.vocab_size
  if ids is not None and sample is not None:
    raise errors.MeJaxError('probe takes ids or sample, not both.')
  random = np.random.default_rng(seed)
  chosen = np.arange(vocab) if ids is None else _check_ids(ids, vocab)
  special = np.intersect1d(chosen, np.array(sorted(special_ids), np.int64))
  ordinary = np.setdiff1d(chosen, special)
  total = len(ordinary)
  if sample is not None:
    if sample < 1:
      raise errors.MeJaxError(f'sample is {sample}, must be at least 1.')
    some = random.choice(total, min(sample, total), replace=False)
    ordinary = ordinary[np.sort(some)]
  if not report.span:
    return _empty(report)
  last = report.span[-1]
  bound = max(
    massive_tokens.MASSIVE_VALUE,
    massive_tokens.MASSIVE_RATIO * report.median[last],
  )
  short, short_params = params_lib.first_layers(model, params, last + 1)
  run = functools.partial(
    _read, short, short_params, report.plateau_mean, bound, rows=rows
  )
  starting = [t.token_id for t in report.tokens if t.position == 0][:_FRONTS]
  # In one go, so that few tokens cost no compile of their own.
  tokens_X = np.concatenate([np.array(starting, int), special, ordinary])
  seen = run(tokens_X[:, None], progress=progress)
  alone = report_lib.Readings(*(x[len(starting) :] for x in seen))
  fronts = dict(zip(starting, seen.spikes.tolist()))
  if not fronts:
    # Massive tokens stand elsewhere in the report's texts.
    order = np.argsort(-alone.projection)[:_FRONTS]
    fronts = {int(alone.ids[x]): True for x in order if alone.spikes[x]}
  is_special = np.arange(len(alone.ids)) < len(special)
  told = report_lib.tally(alone.spikes[is_special], len(special))
  rest = report_lib.tally(alone.spikes[~is_special], total)
  return report_lib.VocabularyProbe(
    reason='',
    layers=last + 1,
    bound=float(bound),
    alone=alone,
    behind=tuple(
      _behind(run, front, spikes, alone, controls, random)
      for front, spikes in fronts.items()
    ),
    everything=_together(told, rest),
    ordinary=rest,
    special=told,
    sampled=rest.probed < rest.tokens,
  )


def _behind(
  run: Callable[..., report_lib.Readings],
  front: int,
  front_spikes: bool,
  alone: report_lib.Readings,
  controls: int,
  random: np.random.Generator,
) -> report_lib.Behind:
  """Runs tokens that spike alone again, behind another."""
  ids = alone.ids[alone.spikes & (alone.ids != front)]
  count = min(controls, len(ids))
  if not count:
    return report_lib.Behind(
      front, front_spikes, _no_readings(), report_lib.NOTHING
    )
  chosen = np.sort(random.choice(len(ids), count, replace=False))
  pairs_XT = np.stack([np.full(count, front), ids[chosen]], axis=1)
  readings = run(pairs_XT)
  return report_lib.Behind(
    front, front_spikes, readings, report_lib.tally(readings.spikes, len(ids))
  )


def _read(
  model: decoder.Decoder,
  params: decoder.Params,
  plateau_D: np.ndarray,
  bound: float,
  tokens_XT: np.ndarray,
  *,
  rows: int,
  progress: Callable[[int, int], Any] | None = None,
) -> report_lib.Readings:
  """Reads the last token of each row, a few rows at a time."""
  count = len(tokens_XT)
  # A short last pass is filled up: one compile serves all.
  rows = min(rows, count)
  pieces = []
  for start in range(0, count, rows):
    piece = tokens_XT[start : start + rows].astype(np.int32)
    missing = rows - len(piece)
    piece = np.pad(piece, ((0, missing), (0, 0)), mode='edge')
    seen = jax.device_get(measure(model, params, piece, plateau_D))
    pieces.append([x[: rows - missing] for x in seen])
    if progress:
      progress(min(start + rows, count), count)
  peak_X, projection_X, cosine_X = (np.concatenate(x) for x in zip(*pieces))
  if not np.isfinite(peak_X).all():
    raise errors.MeJaxError(
      f'the model is not finite in {np.dtype(model.dtype).name}: use float32 '
      'or bfloat16, and check its parameters.'
    )
  spikes_X = (peak_X > bound) & (cosine_X > report_lib.COSINE)
  return report_lib.Readings(
    tokens_XT[:, -1], peak_X, projection_X, cosine_X, spikes_X
  )


@functools.partial(jax.jit, static_argnums=0)
def measure(
  model: decoder.Decoder,
  params: decoder.Params,
  tokens_XT: jax.Array,
  plateau_D: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Runs rows and reads their last tokens after the last layer.

  Args:
    model: the decoder, cut to the layers wanted; the head is never computed.
    params: its parameters.
    tokens_XT: int32, rows without padding.
    plateau_D: the direction to compare with, of the plateau's length.

  Returns:
    `[X]` each: largest |x|, projection in lengths of the plateau, cosine.
  """
  with jax.default_matmul_precision('highest'):
    output = model.apply({'params': params}, tokens_XT)
    state_XD = output.resid[:, -1].astype(jnp.float32)
    along_X = state_XD @ plateau_D
  tiny = jnp.finfo(jnp.float32).tiny
  length = jnp.maximum(jnp.linalg.norm(plateau_D), tiny)
  norm_X = jnp.maximum(jnp.linalg.norm(state_XD, axis=-1), tiny)
  peak_X = jnp.max(jnp.abs(state_XD), axis=-1)
  return peak_X, along_X / length**2, along_X / length / norm_X


def _check_ids(ids: Sequence[int], vocab: int) -> np.ndarray:
  """Returns the ids as an array, if they are ids of this vocabulary."""
  ids_X = np.asarray(ids)
  if not ids_X.size:
    raise errors.MeJaxError('ids is empty: there is no token to run.')
  if ids_X.ndim != 1 or not np.issubdtype(ids_X.dtype, np.integer):
    raise errors.MeJaxError('ids must be a list of token ids.')
  wrong = ids_X[(ids_X < 0) | (ids_X >= vocab)]
  if wrong.size:
    raise errors.MeJaxError(
      f'ids holds {wrong[0]}, outside the vocabulary of {vocab}.'
    )
  return ids_X.astype(np.int64)


def _together(
  special: report_lib.Tally, ordinary: report_lib.Tally
) -> report_lib.Tally:
  """Returns both groups as one; only the ordinary part is uncertain."""
  tokens = special.tokens + ordinary.tokens

  def share(part: float) -> float:
    return (special.spikes + part * ordinary.tokens) / max(tokens, 1)

  return report_lib.Tally(
    tokens,
    special.probed + ordinary.probed,
    special.spikes + ordinary.spikes,
    *(share(x) for x in (ordinary.share, ordinary.low, ordinary.high)),
  )


def _no_readings() -> report_lib.Readings:
  none = np.zeros(0)
  return report_lib.Readings(
    none.astype(int), none, none, none, none.astype(bool)
  )


def _empty(report: me_report.MEReport) -> report_lib.VocabularyProbe:
  return report_lib.VocabularyProbe(
    reason='The model has no layers that write a plateau, so there is nothing '
    f'to compare tokens with. {report.headline()}',
    layers=0,
    bound=0.0,
    alone=_no_readings(),
    behind=(),
    everything=report_lib.NOTHING,
    ordinary=report_lib.NOTHING,
    special=report_lib.NOTHING,
    sampled=False,
  )
