"""What is said about which tokens spike, and how it is written down.

Letters: X probed tokens.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from me_jax.analysis import bootstrap
from me_jax.analysis import me_report

COSINE = 0.9  # with the plateau, at least, of a token that spikes
_LISTED = 64  # ids in the JSON


class Readings(NamedTuple):
  """What was seen of some tokens after the last layer of the span.

  Attributes:
    ids: `[X]`, token ids.
    peak: `[X]`, largest |x|.
    projection: `[X]`, the state's part along the plateau, in lengths of the
      plateau: 1 for a token that is there entirely.
    cosine: `[X]`, between state and plateau.
    spikes: `[X]`, bool.
  """

  ids: np.ndarray
  peak: np.ndarray
  projection: np.ndarray
  cosine: np.ndarray
  spikes: np.ndarray


class Tally(NamedTuple):
  """How many of a group spike.

  Attributes:
    tokens: how many the group has.
    probed: how many of them were run.
    spikes: how many of those spike.
    share: of the group, estimated where not all were run.
    low: lower end of its 95 % interval; the share itself if all were run.
    high: upper end.
  """

  tokens: int
  probed: int
  spikes: int
  share: float
  low: float
  high: float


NOTHING = Tally(0, 0, 0, 0.0, 0.0, 0.0)


class Behind(NamedTuple):
  """A control: tokens that spike alone, behind another.

  Attributes:
    front: the token in front.
    front_spikes: whether it spikes where it stands.
    readings: of the second tokens.
    tally: of all that spike alone, how many still do here.
  """

  front: int
  front_spikes: bool
  readings: Readings
  tally: Tally


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyProbe:
  """Which tokens spike at the start of a text, and which do not.

  Attributes:
    reason: why nothing was run; empty if something was.
    layers: how many layers were run.
    bound: what |x| must exceed.
    alone: each token by itself, special ones first if there are any.
    behind: the controls, behind each of the report's most frequent massive
      tokens that start a text.
    everything: special and ordinary tokens together.
    ordinary: all but special tokens.
    special: the special tokens, as far as they were told.
    sampled: whether the ordinary tokens are a random sample.
  """

  reason: str
  layers: int
  bound: float
  alone: Readings
  behind: tuple[Behind, ...]
  everything: Tally
  ordinary: Tally
  special: Tally
  sampled: bool

  @property
  def quiet(self) -> np.ndarray:
    """Ids that do not spike, the smallest projection first."""
    at = np.flatnonzero(~self.alone.spikes)
    return self.alone.ids[at[np.argsort(self.alone.projection[at])]]

  def to_json(self) -> dict[str, Any]:
    """Returns the probe as plain values; of the tokens, their distribution."""
    values = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
    values['alone'] = distribution(self.alone)
    values['behind'] = [
      one._asdict() | {'readings': distribution(one.readings)}
      for one in self.behind
    ]
    values['quiet'] = self.quiet[:_LISTED]
    values['quiet_count'] = len(self.quiet)
    return me_report.plain(values)


def tally(spikes_X: np.ndarray, tokens: int) -> Tally:
  """Counts, with Wilson's 95 % interval where a group was sampled.

  Args:
    spikes_X: bool, of the tokens that were run.
    tokens: how many the whole group has.
  """
  probed, spikes = len(spikes_X), int(spikes_X.sum())
  share = spikes / max(probed, 1)
  low, high = share, share
  if probed < tokens:
    low, high = bootstrap.wilson(spikes, probed)
  return Tally(tokens, probed, spikes, share, low, high)


def distribution(readings: Readings) -> dict[str, Any]:
  """Returns quantiles of the readings, and a histogram of log10 of the peak.

  The bins are a tenth of a decade wide.
  """
  quantiles = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
  if not len(readings.ids):
    return {'tokens': 0}
  log_X = np.log10(np.maximum(readings.peak, 1e-3))
  low, high = math.floor(log_X.min() * 10), math.ceil(log_X.max() * 10)
  edges = np.arange(low, max(high, low + 1) + 1) / 10
  return {
    'tokens': len(readings.ids),
    'spikes': int(readings.spikes.sum()),
    'quantiles': quantiles,
    'peak': np.quantile(readings.peak, quantiles),
    'projection': np.quantile(readings.projection, quantiles),
    'cosine': np.quantile(readings.cosine, quantiles),
    'log10_peak_edges': edges,
    'log10_peak_counts': np.histogram(log_X, edges)[0],
  }
