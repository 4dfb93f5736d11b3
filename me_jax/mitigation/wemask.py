"""WeMask without training: a transform of the parameters.

At the massive token, some channels of what attention receives are multiplied by
1 - strength, in layers after the emergence span. The residual stream and the
FFN's input are untouched. Shi et al., ICML 2026, arXiv 2605.08504; the choices
that the paper and its code leave open are arguments.

Letters: L layers, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import operator
from typing import Any

import jax.numpy as jnp
import numpy as np

from me_jax import errors
from me_jax.analysis import massive_tokens
from me_jax.analysis import me_report
from me_jax.mitigation import activation
from me_jax.mitigation import channels
from me_jax.models import batch as batch_lib
from me_jax.models import decoder
from me_jax.models import sink

LAYERS = ('after', 'next')
TOKENS = ('first', 'massive')
_LEAVES = (sink.BOUND, sink.POSITIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """One setting of WeMask, with everything resolved; layers count from 0.

  Attributes:
    select: how channels are chosen, see `channels.masked`.
    layers: which layers are masked.
    tokens: `first`, `massive`, or positions in the text.
    count: channels of a layer.
    strength: how much of them is taken away in each of the layers, 1 all.
    seed: of `random`.
    me_layer: of the model, for `me_weight`.
    after_layer: tokens are found massive in its output, for `massive`.
    bound: |x| that makes a token massive there.
  """

  select: str
  layers: tuple[int, ...]
  tokens: str | tuple[int, ...]
  count: int
  strength: tuple[float, ...]
  seed: int
  me_layer: int | None
  after_layer: int | None
  bound: float

  def to_json(self) -> dict[str, Any]:
    """Returns it as JSON types."""
    content = dataclasses.asdict(self)
    content['layers'] = list(self.layers)
    content['strength'] = list(self.strength)
    if not isinstance(self.tokens, str):
      content['tokens'] = list(self.tokens)
    return content


def wemask(
  model: decoder.Decoder,
  params: decoder.Params,
  report: me_report.MEReport,
  *,
  rate: float = 0.5,
  k: int | None = None,
  strength: float | Sequence[float] = 1.0,
  select: str = 'weight',
  layers: str | Sequence[int] = 'after',
  tokens: str | Sequence[int] = 'first',
  seed: int = 0,
  batch: batch_lib.Batch | None = None,
) -> decoder.Params:
  """Masks a part of what attention receives of the massive token.

  Nothing is trained and no weight of the model is changed: the mask is a small
  leaf of its own, `layers/sink_scale`, which generation, saving and training
  treat like any parameter. What is masked is masked further; `remove` undoes
  everything. `rate=0` gives the stock model's numbers to the last bit.

  Args:
    model: the decoder.
    params: its parameters.
    report: of `find_me_layer`.
    rate: the share of channels that is masked; int(rate · D) of them.
    k: the number of channels instead.
    strength: how much of a masked channel is taken away, 1 is all: a number, or
      one a layer, in the order of `layers` (ascending for its names).
    select: `weight` (largest |γ| of the layer's norm before attention),
      `me_weight` (of the norm before the ME Layer's FFN), `activation` (largest
      |h| at the token, averaged over `batch`: the published code), or the
      controls `random` and `weight_bottom`.
    layers: `after` (all after the emergence span), `next` (the one after it),
      or a list, counted from 0.
    tokens: `first` (of every text), `massive` (those whose |x| exceeds 100 and
      1000 × the median after the span, found while the model runs), or
      positions in the text.
    seed: of `random`.
    batch: texts for `activation`.

  Returns:
    The parameters with the mask; arrays are shared, not copied.

  Raises:
    MeJaxError: an argument is out of range, the report has no ME Layer and
      `layers` does not list any, or the parameters mask other tokens.

  Examples:
    >>> lm = me_jax.load('smollm2')
    >>> batch = me_jax.encode(lm, ['The quick brown fox'])
    >>> report = me_jax.find_me_layer(lm.model, lm.params, batch)
    >>> params = me_jax.wemask(lm.model, lm.params, report, rate=0.5)
    >>> params['layers']['sink_scale'].sum(axis=1)[11:13].tolist()
    [576.0, 288.0]
  """
  recipe = resolve(
    model, report, rate=rate, k=k, strength=strength, select=select,
    layers=layers, tokens=tokens, seed=seed,
  )  # fmt: skip
  return apply(model, params, recipe, batch=batch)


def remove(params: decoder.Params) -> decoder.Params:
  """Returns the parameters without any mask: the stock model again."""
  kept = {name: leaf for name, leaf in params.items() if name not in _LEAVES}
  layers = dict(params['layers'])
  layers.pop(sink.SCALE, None)
  return {**kept, 'layers': layers}


def resolve(
  model: decoder.Decoder,
  report: me_report.MEReport,
  *,
  rate: float = 0.5,
  k: int | None = None,
  strength: float | Sequence[float] = 1.0,
  select: str = 'weight',
  layers: str | Sequence[int] = 'after',
  tokens: str | Sequence[int] = 'first',
  seed: int = 0,
) -> Recipe:
  """Checks the arguments of `wemask` and says what they stand for."""
  width = model.config.hidden_size
  check_report(model, report)
  if select not in channels.SELECTIONS:
    raise errors.MeJaxError(
      f'select is {select!r}, must be one of {", ".join(channels.SELECTIONS)}'
      f'{errors.nearest(str(select), channels.SELECTIONS)}'
    )
  try:
    within = 0 <= float(rate) <= 1
  except (TypeError, ValueError):
    within = False
  if not within:
    raise errors.MeJaxError(f'rate is {rate}, must be between 0 and 1')
  channels.norm(model.config, select, report.layer)
  chosen = chosen_layers(model, report, layers)
  count = int(float(rate) * width) if k is None else _whole([k], 'k')[0]
  activation.check_mask(model.config, chosen, count, strength)
  after_layer, bound = None, 0.0
  if not isinstance(tokens, str):
    tokens = positions(model, tokens)
    if select == 'activation':
      raise errors.MeJaxError(
        "select='activation' looks at the first token: tokens cannot be"
        ' positions'
      )
  elif tokens not in TOKENS:
    raise errors.MeJaxError(
      f'tokens is {tokens!r}, must be {" or ".join(TOKENS)}, or positions'
      f'{errors.nearest(tokens, TOKENS)}'
    )
  elif tokens == 'massive':
    after_layer, bound = _massive(report)
    if min(chosen) <= after_layer:
      raise errors.MeJaxError(
        f'layer {min(chosen)} cannot be masked at tokens that are found massive'
        f' after layer {after_layer} only'
      )
  seed = _whole([seed], 'seed')[0]
  if seed < 0:
    raise errors.MeJaxError(f'seed is {seed}, must be 0 or more')
  # A strength stays with its layer.
  strengths = np.broadcast_to(np.asarray(strength, float), len(chosen))
  return Recipe(
    select=select,
    layers=tuple(sorted(chosen)),
    tokens=tokens,
    count=count,
    strength=tuple(strengths[np.argsort(chosen)].tolist()),
    seed=seed,
    me_layer=report.layer,
    after_layer=after_layer,
    bound=bound,
  )


def apply(
  model: decoder.Decoder,
  params: decoder.Params,
  recipe: Recipe,
  *,
  batch: batch_lib.Batch | None = None,
) -> decoder.Params:
  """Returns the parameters with a recipe's mask, see `wemask`."""
  return scaled(
    params,
    scale(model, params, recipe, batch=batch),
    marks(model, recipe),
  )


def scale(
  model: decoder.Decoder,
  params: decoder.Params,
  recipe: Recipe,
  *,
  batch: batch_lib.Batch | None = None,
) -> np.ndarray:
  """Returns what a recipe multiplies by, `[L, D]` float32."""
  if recipe.select == 'activation':
    if batch is None:
      raise errors.MeJaxError("select='activation' needs texts: give a batch")
    masked_LD = activation.select(
      model, params, batch, recipe.layers, recipe.count, recipe.strength
    )
  else:
    masked_LD = channels.masked(
      model,
      params,
      recipe.select,
      recipe.layers,
      recipe.count,
      me_layer=recipe.me_layer,
      seed=recipe.seed,
    )
  keep_L1 = np.ones((len(masked_LD), 1))
  keep_L1[list(recipe.layers), 0] -= recipe.strength
  return np.where(masked_LD, keep_L1, 1.0).astype(np.float32)


def marks(model: decoder.Decoder, recipe: Recipe) -> dict[str, np.ndarray]:
  """Returns the leaves that say which tokens a recipe is about."""
  if recipe.tokens == 'first':
    return {}
  if isinstance(recipe.tokens, str):  # `massive`.
    bound_L = np.zeros(model.config.num_hidden_layers, np.float32)
    bound_L[recipe.after_layer] = recipe.bound
    return {sink.BOUND: bound_L}
  wanted_W = np.zeros(max(recipe.tokens) + 1, np.float32)
  wanted_W[list(recipe.tokens)] = 1.0
  return {sink.POSITIONS: wanted_W}


def scaled(
  params: decoder.Params,
  scale_LD: np.ndarray,
  leaves: Mapping[str, np.ndarray],
) -> decoder.Params:
  """Returns the parameters with a scale multiplied in.

  Args:
    params: of a decoder, masked or not.
    scale_LD: float32.
    leaves: of `marks`.

  Raises:
    MeJaxError: the parameters mask other tokens already.
  """
  before = params['layers'].get(sink.SCALE)
  if before is not None:
    before = np.asarray(before, np.float32)
  if before is None or (before == 1).all():
    # Nothing is masked, whichever tokens may be marked.
    params = remove(params)
  else:
    now = {name: params[name] for name in _LEAVES if name in params}
    if now.keys() != leaves.keys() or any(
      not np.array_equal(now[name], leaves[name]) for name in leaves
    ):
      raise errors.MeJaxError(
        'the parameters mask other tokens already, and a model has one set of'
        ' masked tokens: take that mask away first, with wemask.remove'
      )
    scale_LD = before * scale_LD
  new = {name: jnp.asarray(leaf) for name, leaf in leaves.items()}
  return with_scale({**params, **new}, scale_LD)


def ones(model: decoder.Decoder, params: decoder.Params) -> decoder.Params:
  """Returns the stock model with a scale of ones, which changes no number.

  Compiled functions are the same for it and for any mask.
  """
  shape = model.config.num_hidden_layers, model.config.hidden_size
  return with_scale(remove(params), np.ones(shape, np.float32))


def with_scale(params: decoder.Params, scale_LD: np.ndarray) -> decoder.Params:
  """Returns the parameters with this scale, whatever theirs was."""
  scale = jnp.asarray(scale_LD, jnp.float32)
  return {**params, 'layers': {**params['layers'], sink.SCALE: scale}}


def check_report(model: decoder.Decoder, report: me_report.MEReport) -> None:
  """Raises MeJaxError for what is no report, or one on another model."""
  if not isinstance(report, me_report.MEReport):
    raise errors.MeJaxError(
      f'report must be what find_me_layer returns, not {str(report):.40}'
    )
  depth = model.config.num_hidden_layers
  if len(report.median) != depth:
    raise errors.MeJaxError(
      f'the report is about a model of {len(report.median)} layers, and this'
      f' one has {depth}'
    )


def chosen_layers(
  model: decoder.Decoder,
  report: me_report.MEReport | None,
  layers: str | Sequence[int],
) -> tuple[int, ...]:
  """Returns the layers that are meant, as given; a list needs no report."""
  depth = model.config.num_hidden_layers
  if isinstance(layers, str):
    if layers not in LAYERS:
      raise errors.MeJaxError(
        f'layers is {layers!r}, must be {" or ".join(LAYERS)}, or a list'
        f'{errors.nearest(layers, LAYERS)}'
      )
    assert report is not None  # Who gives none gives a list.
    if report.layer is None:
      raise errors.MeJaxError(
        f'the model has no ME Layer ({report.verdict}) for layers={layers!r}'
        ' to follow: list the layers to mask'
      )
    start = report.span[-1] + 1
    if start >= depth:
      raise errors.MeJaxError('no layer comes after the emergence span')
    return tuple(range(start, depth if layers == 'after' else start + 1))
  chosen = _whole(layers, 'layers')
  if not chosen or min(chosen) < 0 or max(chosen) >= depth:
    raise errors.MeJaxError(
      f'layers must be some of 0 to {depth - 1}, not {str(list(chosen)):.60}'
    )
  if len(set(chosen)) < len(chosen):
    raise errors.MeJaxError(f'layers lists one twice: {str(list(chosen)):.60}')
  return chosen


def positions(model: decoder.Decoder, tokens: Sequence[int]) -> tuple[int, ...]:
  """Returns the positions that are meant, each once, in order."""
  longest = model.config.context_length
  chosen = sorted(set(_whole(tokens, 'tokens')))
  if not chosen or chosen[0] < 0 or chosen[-1] >= longest:
    raise errors.MeJaxError(
      f'tokens must be positions in a text, some of 0 to {longest - 1}, not'
      f' {str(chosen):.60}'
    )
  return tuple(chosen)


def _whole(values: Sequence[int], what: str) -> tuple[int, ...]:
  """Returns whole numbers of any integer type."""
  try:
    return tuple(operator.index(value) for value in values)
  except TypeError:
    raise errors.MeJaxError(
      f'{what} must be given in whole numbers, not {str(values):.60}'
    ) from None


def _massive(report: me_report.MEReport) -> tuple[int, float]:
  """Returns after which layer tokens are found massive, and the bound."""
  if report.layer is None:
    raise errors.MeJaxError(
      "tokens='massive' needs an ME Layer, and this model has none:"
      " tokens='first' or positions work"
    )
  layer = report.span[-1]
  return layer, max(
    massive_tokens.MASSIVE_VALUE,
    massive_tokens.MASSIVE_RATIO * float(report.median[layer]),
  )
