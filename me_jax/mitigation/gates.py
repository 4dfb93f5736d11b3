"""The mitigation as something that is trained: one gate a channel and layer.

A gate is an entry of `layers/sink_scale` (models/sink.py): what attention
receives of the marked tokens is multiplied by it. What an optimiser moves is
the scale itself, held inside an interval:

  scale = min(max(raw, low), high)

with the gradient of the identity, and `project` after each step, which
together are projected gradient descent. A squashing function would do neither
of two things: a scale that starts at one, or at a WeMask's zero, is exactly
that, so that the first step sees the very model that was given; and a channel
that was masked can come back, where a sigmoid's gradient would be zero.

The interval is 0 to 1.5 unless said otherwise. Below 0 a channel would change
its sign, which is another thing than taking a part of it away; the upper end
lets a gate say that a channel is too weak, and is as far as `bake` was
measured to follow.

A trained gate does not say by itself that massive activations matter: scaling
any constant token trains like a prefix does. The same gates on another token
(`tokens`) and in other layers (`layers`) are the controls.

Letters: L layers, G layers with gates, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax import errors
from me_jax.analysis import me_report
from me_jax.mitigation import wemask
from me_jax.models import decoder
from me_jax.models import sink

LAYERS = ('after', 'before', 'next', 'all')
TOKENS = ('first', 'marked')
PENALTIES = ('l1', 'squared')
_MASKED = 0.5  # a gate below it has lost more than it keeps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gates:
  """Where there are gates, and how far they go.

  Attributes:
    layers: `after` (all after the emergence span), `next` (the one after it),
      `before` (all before it), `all`, or a list, counted from 0.
    tokens: `first` (of every text), `marked` (those that the parameters mark
      already, such as a WeMask's), or positions in the text.
    low: the least a gate may be.
    high: the most.
  """

  layers: str | tuple[int, ...] = 'after'
  tokens: str | tuple[int, ...] = 'first'
  low: float = 0.0
  high: float = 1.5


class Statistics(NamedTuple):
  """What gates have become; a few numbers for a monitor, float32.

  Attributes:
    mean: of all gates.
    masked: the share of gates below a half.
    mean_G: by layer.
    masked_G: the same.
  """

  mean: jax.Array
  masked: jax.Array
  mean_G: jax.Array
  masked_G: jax.Array


class Start(NamedTuple):
  """Gates before the first step.

  Attributes:
    raw_GD: what is trained, float32.
    layers: that have gates, in order.
    params: the parameters with `layers/sink_scale` and marks; other leaves are
      the same arrays.
  """

  raw_GD: jax.Array
  layers: tuple[int, ...]
  params: decoder.Params


def check(settings: Gates) -> None:
  """Raises MeJaxError for an interval that gates cannot have."""
  if not 0 <= settings.low < settings.high < np.inf or not (
    settings.low <= 1 <= settings.high
  ):
    raise errors.MeJaxError(
      f'gates between {settings.low} and {settings.high}: must be from 0 on, and'
      ' have 1, which changes nothing, inside'
    )


def start(
  model: decoder.Decoder,
  params: decoder.Params,
  settings: Gates,
  report: me_report.MEReport | None = None,
) -> Start:
  """Puts gates where the settings say, at the values that are there.

  Args:
    model: the decoder.
    params: its parameters. Gates start from the mask that they hold
      (`wemask`), and from ones where they hold none; layers without gates keep
      theirs.
    settings: of the gates.
    report: of `find_me_layer`, for layers that are meant by name.

  Raises:
    MeJaxError: settings are impossible or need a report, the parameters mask
      other tokens, or their mask is outside of the interval.

  Examples:
    >>> import me_jax
    >>> from me_jax.mitigation import gates
    >>> lm = me_jax.load('smollm2')
    >>> begin = gates.start(lm.model, lm.params, gates.Gates(layers=(12, 13)))
    >>> begin.raw_GD.shape, begin.raw_GD.min().item()  # ones: the stock model
    ((2, 576), 1.0)
  """
  check(settings)
  layers = chosen_layers(model, settings.layers, report)
  params = _marked(model, params, settings.tokens)
  raw_GD = np.asarray(params['layers'][sink.SCALE], np.float32)[list(layers)]
  if not ((raw_GD >= settings.low) & (raw_GD <= settings.high)).all():
    raise errors.MeJaxError(
      f'layers/{sink.SCALE} goes from {raw_GD.min():g} to {raw_GD.max():g},'
      f' outside of the gates: between {settings.low} and {settings.high}'
    )
  return Start(jnp.array(raw_GD), layers, params)


def apply(
  params: decoder.Params,
  raw_GD: jax.Array,
  settings: Gates,
  layers: Sequence[int],
) -> decoder.Params:
  """Returns the parameters with these gates; pure, differentiable in `raw_GD`.

  Args:
    params: of `Start`.
    raw_GD: float32.
    settings: of the gates.
    layers: of `Start`.
  """
  scale_LD = jnp.asarray(params['layers'][sink.SCALE], jnp.float32)
  scale_LD = scale_LD.at[np.asarray(layers)].set(scale(raw_GD, settings))
  return {**params, 'layers': {**params['layers'], sink.SCALE: scale_LD}}


def scale(raw_GD: jax.Array, settings: Gates) -> jax.Array:
  """Returns what the gates multiply by, inside the interval."""
  return _held(raw_GD, settings.low, settings.high)


def project(raw_GD: jax.Array, settings: Gates) -> jax.Array:
  """Brings back what a step took out of the interval.

  Without it nothing leaves the interval either, but a gate that was pushed
  far beyond an end needs as many steps to come back.
  """
  return jnp.clip(raw_GD, settings.low, settings.high)


def penalty(raw_GD: jax.Array, settings: Gates, kind: str = 'l1') -> jax.Array:
  """Returns how far gates are from changing nothing, for a loss; 0 at ones.

  Args:
    raw_GD: float32.
    settings: of the gates.
    kind: `l1`, the mean of |scale - 1|, under which gates that help little stay
      at one; or `squared`, of its square.

  Raises:
    MeJaxError: there is no such penalty.
  """
  if kind not in PENALTIES:
    raise errors.MeJaxError(
      f'the penalty is {kind!r}, must be {" or ".join(PENALTIES)}'
      f'{errors.nearest(str(kind), PENALTIES)}'
    )
  change_GD = scale(raw_GD, settings) - 1
  if kind == 'squared':
    return jnp.mean(change_GD**2)
  # The gradient of jnp.abs at zero is one: it would push every gate off its
  # start.
  return jnp.mean(change_GD * jnp.sign(change_GD))


def statistics(raw_GD: jax.Array, settings: Gates) -> Statistics:
  """Describes gates, under jit or outside."""
  scale_GD = scale(raw_GD, settings)
  masked_GD = (scale_GD < _MASKED).astype(jnp.float32)
  return Statistics(
    jnp.mean(scale_GD),
    jnp.mean(masked_GD),
    jnp.mean(scale_GD, axis=1),
    jnp.mean(masked_GD, axis=1),
  )


def chosen_layers(
  model: decoder.Decoder,
  layers: str | Sequence[int],
  report: me_report.MEReport | None = None,
) -> tuple[int, ...]:
  """Returns the layers that are meant, in order.

  Args:
    model: the decoder.
    layers: as in `Gates`.
    report: of `find_me_layer`; a list, and `all`, need none.

  Raises:
    MeJaxError: the name is unknown, a layer does not exist, there is none, or a
      report is missing or names no ME Layer.
  """
  if not isinstance(layers, str):
    return tuple(sorted(wemask.chosen_layers(model, None, layers)))
  if layers not in LAYERS:
    raise errors.MeJaxError(
      f'layers is {layers!r}, must be one of {", ".join(LAYERS)}, or a list'
      f'{errors.nearest(layers, LAYERS)}'
    )
  if layers == 'all':
    return tuple(range(model.config.num_hidden_layers))
  if report is None:
    raise errors.MeJaxError(
      f'layers={layers!r} is about the emergence span: give the report of'
      ' find_me_layer, or list the layers'
    )
  wemask.check_report(model, report)
  if layers != 'before':
    return wemask.chosen_layers(model, report, layers)
  if report.layer is None or report.span[0] == 0:
    raise errors.MeJaxError(
      "no layer comes before the emergence span for layers='before'"
      f' (verdict {report.verdict}): list the layers'
    )
  return tuple(range(report.span[0]))


def _marked(
  model: decoder.Decoder,
  params: decoder.Params,
  tokens: str | Sequence[int],
) -> decoder.Params:
  """Returns the parameters with a scale and marks for these tokens."""
  shape = model.config.num_hidden_layers, model.config.hidden_size
  ones_LD = np.ones(shape, np.float32)
  if tokens == 'marked':
    if sink.SCALE in params['layers']:
      return dict(params)
    return wemask.with_scale(params, ones_LD)
  leaves = {}
  if not isinstance(tokens, str):
    tokens = wemask.positions(model, tokens)
    wanted_W = np.zeros(max(tokens) + 1, np.float32)
    wanted_W[list(tokens)] = 1.0
    leaves = {sink.POSITIONS: wanted_W}
  elif tokens != 'first':
    raise errors.MeJaxError(
      f'tokens is {tokens!r}, must be {" or ".join(TOKENS)}, or positions'
      f'{errors.nearest(tokens, TOKENS)}'
    )
  return wemask.scaled(params, ones_LD, leaves)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _held(raw: jax.Array, low: float, high: float) -> jax.Array:
  """Clips, with the gradient of the identity: exact sums of parts need it.

  To drop what points outwards at an end would depend on the sign of a part of
  the batch, and on an end itself `jnp.clip` halves what points back in.
  """
  return jnp.clip(raw, low, high)


@_held.defjvp
def _held_jvp(low, high, primals, tangents):
  return _held(*primals, low, high), tangents[0]
