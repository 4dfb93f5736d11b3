"""Where would massive activations start, going by the weights alone?

No text is run. Two rankings of all entries (layer, channel, neuron) are given.

The *plain* ranking is the published one, |w_ki| |g_i| |u_i|. It shows where
weights are large, and a block that takes a spike away needs weights as large as
the one that writes it.

The second predicts. A massive activation is written once, kept, and taken away
before the head, so its channel has a *writer* and, in a later layer, an
*eraser*; other large weights have no such partner. An entry is ranked by the
geometric mean of

* its amount, which is large where gate and up rows are long and aligned while
  neither reads the channel itself (`quadratic_form` has the formula), and
* how much of the amount's sign all later FFNs together take away from a state
  that holds nothing but that channel.

Both are in units of the residual stream, and nothing is tuned. The entry that
comes first is the predicted ME Layer, channel and neuron. Its *strength* is its
score over that of the next layer and channel; the *control* is the same rule on
weights whose neurons' rows were shuffled within each layer.

Where the premise fails: without an eraser, the largest writer is named, and
marked as weak. Where many layers build the state up step by step, or in random
weights, nothing stands out from the control, and there is no prediction. An
attention that writes or erases is not seen at all.

Letters: L layers, N entries, D model width, F FFN width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from me_jax import errors
from me_jax.analysis import emergence
from me_jax.analysis import quadratic_form
from me_jax.analysis import screen_layer
from me_jax.analysis import screen_report
from me_jax.models import block
from me_jax.models import decoder

# What a prediction must reach to be called one, and a clear one. Shuffled and
# random weights stay below half the first.
OVER_CONTROL = 5.0
CLEAR = 1.5
_MUTED = 0.1  # of the layer's median norm weight
_MOST_NEURONS = 8


def screen(
  model: decoder.Decoder,
  params: decoder.Params,
  *,
  top: int = 100,
  seed: int = 0,
  progress: Callable[[int, int], Any] | None = None,
) -> screen_report.Screen:
  """Ranks every entry, and predicts the ME Layer from weights alone.

  Layers are read one after another from the last; the memory it takes does not
  depend on how many there are.

  Args:
    model: the decoder.
    params: its parameters, stacked.
    top: entries of each list.
    seed: of the shuffled weights.
    progress: called with (layers done, layers in all).

  Returns:
    The rankings and the prediction.

  Raises:
    MeJaxError: `top` is no positive number, the layers are not stacked, or
      weights are not finite.
  """
  if top < 1:
    raise errors.MeJaxError(f'top is {top}, must be at least 1.')
  if 'layers' not in params:
    raise errors.MeJaxError('the parameter tree holds no stacked layers.')
  config = model.config
  count = config.num_hidden_layers
  random = np.random.default_rng(seed)
  in_order_3F = np.tile(
    np.arange(config.intermediate_size, dtype=np.int32), (3, 1)
  )
  nothing = screen_layer.nothing_later(config.hidden_size)
  later = {'': nothing, 'control_': nothing}
  found: dict[str, list[Any]] = {}

  def add(name: str, entries: list[Any]) -> None:
    # Two channels a layer are enough for the next best, however short the lists.
    kept = 2 if 'best' in name else top
    found[name] = _first(found.get(name, []) + entries, kept)

  def collect(layer: int, blocks: Any, scores: dict[str, Any]) -> None:
    blocks = jax.device_get(blocks)
    if not np.isfinite(blocks.score).all():
      raise errors.MeJaxError(
        f'the FFN of layer {layer} holds weights that are not finite.'
      )
    add('blocks', _blocks(layer, blocks))
    for prefix, rankings in scores.items():
      for name, ranking in jax.device_get(rankings)._asdict().items():
        read = _blocks if name.startswith('best') else _entries
        add(prefix + name, read(layer, ranking))
    if progress:
      progress(count - layer, count)

  # Results of a layer are read while the device has the next one to do.
  waiting: tuple[int, Any, dict[str, Any]] | None = None
  for layer in range(count - 1, -1, -1):
    at = jnp.int32(layer)
    orders_3F = random.permuted(in_order_3F, axis=1)
    ffn, shuffled = screen_layer.read(config, params, at, orders_3F)
    blocks, scores = screen_layer.score_blocks(ffn[0], top), {}
    for prefix, rows in (('', ffn), ('control_', shuffled)):
      scores[prefix], later[prefix] = screen_layer.score_layer(
        config, rows, at, later[prefix], top
      )
    if waiting:
      collect(*waiting)
    waiting = layer, blocks, scores
  if waiting:
    collect(*waiting)
  lists = ('plain', 'pairs', 'writers', 'blocks', 'control_pairs',
           'control_writers')  # fmt: skip
  return screen_report.Screen(
    **{name: tuple(found[name]) for name in lists},
    prediction=_predict(model, params, found),
    layers=count,
  )


def _blocks(
  layer: int, channels: screen_layer.Channels
) -> list[screen_report.Block]:
  """Returns a layer's channels, without those of score 0."""
  return [
    screen_report.Block(layer, int(channel), float(score))
    for score, channel in zip(*map(np.asarray, channels))
    if score > 0
  ]


def _entries(
  layer: int, ranking: screen_layer.Ranking
) -> list[screen_report.Entry]:
  """Returns a layer's ranking, without entries of score 0."""
  rows = (screen_layer.Ranking(*values) for values in zip(*ranking))
  return [_entry(layer, one) for one in rows if one.score > 0]


def _entry(layer: int, one: screen_layer.Ranking) -> screen_report.Entry:
  """Returns one row of a ranking as plain numbers."""
  answer = float(one.answer[np.abs(one.answer).argmax()])
  role = 'writer'
  if abs(answer) >= screen_layer.MASSIVE:
    role = 'eraser' if answer < 0 else 'amplifier'
  erased = one.eraser_layer >= 0 and one.erased > 0
  return screen_report.Entry(
    layer=layer,
    channel=int(one.channel),
    neuron=int(one.neuron),
    score=float(one.score),
    plain=float(one.plain),
    cosine=float(one.cosine),
    amount=float(one.amount),
    answer=answer,
    role=role,
    erased=float(one.erased),
    eraser_layer=int(one.eraser_layer) if erased else None,
    eraser_neuron=int(one.eraser_neuron) if erased else None,
  )


def _first(entries: list[Any], top: int) -> list[Any]:
  """Returns those of largest score, in order."""
  return sorted(entries, key=lambda entry: -entry.score)[:top]


def _predict(
  model: decoder.Decoder,
  params: decoder.Params,
  found: dict[str, list[Any]],
) -> screen_report.Prediction | None:
  """Applies the rule to the rankings.

  Args:
    model: the decoder.
    params: its parameters.
    found: the rankings by name, and the two best layers and channels of two
      of them.
  """
  kinds: dict[str, screen_report.Kind] = {
    'pairs': 'writer and eraser',
    'writers': 'writer only',
  }
  for name, kind in kinds.items():
    if not found[name]:
      continue
    entry = found[name][0]
    # Nobody is compared with less than what is massive at all.
    least = screen_layer.MASSIVE
    control = max([least] + [e.score for e in found[f'control_{name}'][:1]])
    if entry.score < OVER_CONTROL * control:
      continue
    next_best = max(
      [least] + [block.score for block in found[f'best_{name}'][1:]]
    )
    sign = 1 if entry.amount > 0 else -1
    where = (jnp.int32(x) for x in (entry.layer, entry.channel))
    write, share_F = quadratic_form.best_write(
      model.config, params, *where, jnp.float32(sign)
    )
    strength = entry.score / next_best
    return screen_report.Prediction(
      kind=kind,
      clear=name == 'pairs' and strength >= CLEAR,
      entry=entry,
      sign=sign,
      strength=strength,
      over_control=entry.score / control,
      neurons=_neurons(np.asarray(share_F)),
      write=float(write),
      **_muting(model, params, entry),
    )
  return None


def _neurons(share_F: np.ndarray) -> tuple[screen_report.NeuronShare, ...]:
  """Returns the fewest neurons that make the share that `find` asks for."""
  order = np.argsort(-share_F)[:_MOST_NEURONS]
  reached = np.cumsum(share_F[order]) >= emergence.SPAN_SHARE
  count = int(reached.argmax()) + 1 if reached.any() else len(order)
  return tuple(
    screen_report.NeuronShare(int(f), float(share_F[f])) for f in order[:count]
  )


def _muting(
  model: decoder.Decoder, params: decoder.Params, entry: screen_report.Entry
) -> dict[str, float]:
  """Says whether later norms shut out the channel, as they need not."""
  name = block.FFN_NORMS[model.config.norm_placement]
  end = entry.eraser_layer or model.config.num_hidden_layers
  if name is None or end <= entry.layer + 1:
    return {'muted': float('nan'), 'muted_usual': float('nan')}
  between = params['layers'][name]['weight'][entry.layer + 1 : end]
  weight_LD = np.abs(np.asarray(between, np.float32) + model.config.norm_offset)
  muted_LD = weight_LD < _MUTED * np.median(weight_LD, axis=1, keepdims=True)
  return {
    'muted': float(muted_LD[:, entry.channel].mean()),
    'muted_usual': float(muted_LD.mean()),
  }
