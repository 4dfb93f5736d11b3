"""Do the norm and the neurons write the spike together, or one alone?

A factorial experiment with two factors, each switched on (1) or off (0):

* factor A, the norm: its weight is *flattened*, every channel gets the mean of
  the layer's weight. The norm before the FFN; where norms come only after the
  branches (OLMo 2), the norm after the FFN.
* factor B, the neurons: the dominating neurons of the layer are *neutralised*,
  their `ffn_act` becomes its mean over ordinary tokens (or zero).

The outcome y is what is left of the spike: the projection of the massive token's
state on the direction of its stock plateau, over the stock projection, 1 where
nothing changed. With y_ab for A = a and B = b (y00 = 1):

  effect of A   = [(y10 - y00) + (y11 - y01)] / 2
  effect of B   = [(y01 - y00) + (y11 - y10)] / 2
  interaction   = y11 - y10 - y01 + y00

A spike that needs both loses all of itself to either, and the interaction undoes
the second loss: A = B = -1/2, interaction +1. One that needs only the neurons
has B = -1 and nothing else. Because what switches do to a spike multiplies, all
three are given for ln y too (y at least `FLOOR`): there, factors that act one
after the other have no interaction.

Controls: the same switches at every later layer, with as many neurons of its own
that contribute most; and other neurons of the ME Layer, random ones and the
largest contributors after the dominating ones. The switches are thrown at earlier
layers, too, where a loss says that they prepare what the ME Layer reads.

Flattening keeps the mean, so it takes away the weight's pattern and leaves its
level. *Doses* tell the two apart: the weight halved (a spike that is a quadratic
form of what the FFN is given falls to 1/4), and some of its channels at zero,
the largest, the smallest or random ones.

Letters: L layers, X prefixes, M conditions, D model width, F FFN width; A and B
are the two factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Literal, NamedTuple

import numpy as np

from me_jax.analysis import attribution
from me_jax.analysis import bootstrap
from me_jax.analysis import me_report
from me_jax.analysis import switches
from me_jax.analysis import token_states
from me_jax.models import decoder

FLOOR = 1e-3  # of y in logarithms: a state without a spike is of this order
_TOKENS = 128  # of all prefixes together, padding included
_RANDOM_DRAWS = 5
_DROPPED = (0.1, 0.25)  # shares of the channels

Kind = Literal['me', 'layer', 'random', 'matched']
Change = Literal['halved', 'largest', 'smallest', 'random']


class Effects(NamedTuple):
  """Two main effects and their interaction, with 95 % intervals."""

  norm: bootstrap.Estimate
  neurons: bootstrap.Estimate
  interaction: bootstrap.Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
  """One place where both factors were switched.

  Attributes:
    kind: `me` (the emergence span, the dominating neurons), `layer` (another
      layer, its own top neurons), `random` or `matched` (the span, but other
      neurons than the dominating ones).
    layers: whose norm is flattened.
    neurons: as (layer, neuron).
    peak_ABX: y where the stock plateau is largest.
    end_ABX: y at the plateau's last layer, which layers after the peak can
      still change.
    raw: effects on y at the peak.
    log: effects on ln y at the peak.
  """

  kind: Kind
  layers: tuple[int, ...]
  neurons: tuple[tuple[int, int], ...]
  peak_ABX: np.ndarray
  end_ABX: np.ndarray
  raw: Effects
  log: Effects


class Dose(NamedTuple):
  """Another change of the norm's weight, in the span's layers.

  Attributes:
    change: `halved`, or which channels get weight 0: the `largest` |weight|,
      the `smallest` or `random` ones (mean of several draws).
    share: of the channels; 1 where all are halved.
    left: y at the peak.
  """

  change: Change
  share: float
  left: bootstrap.Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factorial:
  """The experiment.

  Attributes:
    tested: False without massive activations or without a span that wrote
      them: then there are no units.
    reason: why not, as a sentence; empty otherwise.
    norm: name of the norm that is flattened.
    after: whether that norm comes after the FFN.
    neutral: what neutralised neurons were set to, `mean` or `zero`.
    prefixes: X, how many distinct massive tokens it ran on.
    left_out: distinct massive tokens that it did not run on.
    peak_X: the layer at whose output each has its largest plateau state.
    end: the plateau's last layer.
    units: the emergence span first.
    doses: other changes of the norm.
  """

  tested: bool
  reason: str
  norm: str
  after: bool
  neutral: str
  prefixes: int
  left_out: int
  peak_X: np.ndarray
  end: int
  units: tuple[Unit, ...]
  doses: tuple[Dose, ...]

  def of_kind(self, kind: Kind) -> tuple[Unit, ...]:
    """Returns the units of one kind, in order."""
    return tuple(unit for unit in self.units if unit.kind == kind)


class _Place(NamedTuple):
  """What is switched in one unit."""

  kind: Kind
  layers: tuple[int, ...]
  neurons: tuple[tuple[int, int], ...]


def run(
  model: decoder.Decoder,
  params: decoder.Params,
  report: me_report.MEReport,
  states: token_states.TokenStates,
  *,
  share_LF: np.ndarray | None = None,
  neutral: Literal['mean', 'zero'] = 'mean',
  seed: int = 0,
) -> Factorial:
  """Runs the experiment; all conditions are one compile.

  Args:
    model: the decoder; its own edits are replaced.
    params: its parameters.
    report: of `find_me_layer`.
    states: of the same model, from `token_states.capture`.
    share_LF: from `token_states.contributions`; None works it out.
    neutral: what neutralised neurons are set to.
    seed: of the random neurons and channels.

  Returns:
    The cells and effects of every unit, with intervals over prefixes.
  """
  norm, _ = attribution.norm_names(model.config.norm_placement)
  after = model.config.norm_placement == 'post'
  if not (states.prefixes.massive and report.span):
    return Factorial(
      tested=False, reason=_why_not(report), norm=norm, after=after,
      neutral=neutral, prefixes=0, left_out=0, peak_X=np.zeros(0, int), end=-1,
      units=(), doses=(),
    )  # fmt: skip
  if share_LF is None:
    share_LF = token_states.contributions(model, params, states)
  tokens_XT, segments_XT = states.prefixes.batch
  count = min(len(tokens_XT), max(1, _TOKENS // tokens_XT.shape[1]))
  random = np.random.default_rng(seed)
  places = _places(token_states.writers(report, share_LF), share_LF, random)
  weight_LD = np.asarray(params['layers'][norm]['weight'], np.float32)
  size_LD = np.abs(weight_LD + model.config.norm_offset)
  plateau_XD = states.plateau_XD[:count]
  act_LF = states.ordinary_act_LF
  left_MLX = switches.sweep(
    model,
    params,
    norm,
    tokens_XT[:count],
    segments_XT[:count],
    _conditions(places, len(weight_LD)),
    direction_XD=plateau_XD / np.linalg.norm(plateau_XD, axis=-1)[:, None],
    neutral_LF=act_LF if neutral == 'mean' else np.zeros_like(act_LF),
    rank_RLD=_rankings(size_LD, random),
  )
  # What has a span has a plateau.
  assert report.plateau is not None
  peak_X, end = states.peak_X[:count], report.plateau[1]
  peak_MX = left_MLX[:, peak_X, np.arange(count)]
  return Factorial(
    tested=True,
    reason='',
    norm=norm,
    after=after,
    neutral=neutral,
    prefixes=count,
    left_out=states.prefixes.distinct - count,
    peak_X=peak_X,
    end=end,
    units=tuple(
      _unit(place, peak_MX[rows], left_MLX[rows, end])
      for place, rows in zip(places, _rows(len(places)))
    ),
    doses=_doses(peak_MX[1 + 3 * len(places) :]),
  )


def effects(y_ABX: np.ndarray) -> Effects:
  """Returns both main effects and the interaction, see above.

  Args:
    y_ABX: `[2, 2, X]`, outcomes by norm flattened and neurons neutralised.
  """
  (y00_X, y01_X), (y10_X, y11_X) = y_ABX
  return Effects(
    norm=bootstrap.weighted_mean(((y10_X - y00_X) + (y11_X - y01_X)) / 2),
    neurons=bootstrap.weighted_mean(((y01_X - y00_X) + (y11_X - y10_X)) / 2),
    interaction=bootstrap.weighted_mean(y11_X - y10_X - y01_X + y00_X),
  )


def _why_not(report: me_report.MEReport) -> str:
  if report.verdict == 'none':
    return 'There are no massive activations to take apart.'
  return 'No run of layers writes most of the massive activations.'


def _places(
  writers: Mapping[int, tuple[int, ...]],
  share_LF: np.ndarray,
  random: np.random.Generator,
) -> list[_Place]:
  """Returns the units: the span, control neurons, control layers."""
  layers, width = share_LF.shape
  span = tuple(writers)
  most = max(map(len, writers.values()))
  order_LF = np.argsort(-np.abs(share_LF), axis=1)
  others = {i: np.setdiff1d(np.arange(width), writers[i]) for i in span}

  def pairs(
    chosen: Mapping[int, Sequence[int] | np.ndarray],
  ) -> tuple[tuple[int, int], ...]:
    return tuple((i, int(f)) for i, row in chosen.items() for f in row)

  def draw() -> dict[int, np.ndarray]:
    # A narrow layer may not have as many others.
    counts = {i: min(len(writers[i]), len(others[i])) for i in span}
    return {i: random.choice(others[i], counts[i], replace=False) for i in span}

  matched = {
    i: [f for f in order_LF[i] if f not in writers[i]][: len(writers[i])]
    for i in span
  }
  return [
    _Place('me', span, pairs(writers)),
    _Place('matched', span, pairs(matched)),
    *(_Place('random', span, pairs(draw())) for _ in range(_RANDOM_DRAWS)),
    *(
      _Place('layer', (i,), pairs({i: order_LF[i, :most]}))
      for i in range(layers)
      if i not in span
    ),
  ]


def _rows(places: int) -> np.ndarray:
  """Returns which condition is which cell, `[places, 2, 2]`."""
  first = 3 * np.arange(places)[:, None]
  return np.pad(first + [1, 2, 3], ((0, 0), (1, 0))).reshape(-1, 2, 2)


def _dose_plan() -> list[tuple[Change, float, int, float, float]]:
  """Returns (change, share, ranking, low, high) of each dose's condition."""
  return [
    row
    for share in _DROPPED
    for row in (
      ('largest', share, 0, 0.0, share),
      ('smallest', share, 0, 1 - share, 1.0),
      *(('random', share, 1 + r, 0.0, share) for r in range(_RANDOM_DRAWS)),
    )
  ]


def _conditions(places: list[_Place], layers: int) -> switches.Conditions:
  """Returns stock, (A, B) = (0, 1), (1, 0), (1, 1) of each unit, the doses."""
  doses = _dose_plan()
  first_dose = 1 + 3 * len(places)
  found = switches.stock(
    first_dose + 1 + len(doses),
    layers,
    max(len(place.neurons) for place in places),
  )
  for place, rows in zip(places, _rows(len(places))):
    for row in rows[1]:
      found.norm_ML[row, list(place.layers)] = True
      found.flat_M[row] = True
    for row in rows[:, 1]:
      count = len(place.neurons)
      found.layer_ME[row, :count] = [layer for layer, _ in place.neurons]
      found.neuron_ME[row, :count] = [neuron for _, neuron in place.neurons]
  found.norm_ML[first_dose:, list(places[0].layers)] = True
  found.factor_M[first_dose] = 0.5
  for row, (_, _, ranking, low, high) in enumerate(doses, first_dose + 1):
    found.ranking_M[row] = ranking
    found.low_M[row], found.high_M[row] = low, high
  return found


def _rankings(size_LD: np.ndarray, random: np.random.Generator) -> np.ndarray:
  """Returns ranks in [0, 1) by falling size, then random ones, `[R, L, D]`."""
  orders = [-size_LD]
  orders += [random.random(size_LD.shape) for _ in range(_RANDOM_DRAWS)]
  return np.stack(
    [order.argsort(axis=1).argsort(axis=1) for order in orders]
  ) / float(size_LD.shape[1])


def _unit(place: _Place, peak_ABX: np.ndarray, end_ABX: np.ndarray) -> Unit:
  return Unit(
    **place._asdict(),
    peak_ABX=peak_ABX,
    end_ABX=end_ABX,
    raw=effects(peak_ABX),
    log=effects(np.log(np.maximum(peak_ABX, FLOOR))),
  )


def _doses(peak_MX: np.ndarray) -> tuple[Dose, ...]:
  """Averages the draws of each dose."""
  groups: dict[tuple[Change, float], list[np.ndarray]] = {
    ('halved', 1.0): [peak_MX[0]]
  }
  for (change, share, *_), y_X in zip(_dose_plan(), peak_MX[1:]):
    groups.setdefault((change, share), []).append(y_X)
  return tuple(
    Dose(*key, bootstrap.weighted_mean(np.mean(rows, axis=0)))
    for key, rows in groups.items()
  )
