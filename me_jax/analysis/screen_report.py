"""What is said about a model's weights, and how it is written down.

Layers count from 0. `screen` has the rule and its reasons.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

from me_jax.analysis import me_report

Roles = Literal['writer', 'eraser', 'amplifier']
Kind = Literal['writer and eraser', 'writer only']


class Entry(NamedTuple):
  """A neuron and a channel that it writes to.

  Attributes:
    layer: from 0.
    channel: k.
    neuron: i.
    score: what the list is ranked by.
    plain: |w_ki| |g_i| |u_i|.
    cosine: between the gate and up rows.
    amount: signed, in units of the residual stream.
    answer: what the neuron adds along the sign of a state that holds nothing
      but the channel, of the sign that it answers more.
    role: `eraser` if the answer is below -100, `amplifier` if above 100.
    erased: how much of the amount's sign later layers take away.
    eraser_layer: the one that takes away most; None without one.
    eraser_neuron: its neuron.
  """

  layer: int
  channel: int
  neuron: int
  score: float
  plain: float
  cosine: float
  amount: float
  answer: float
  role: Roles
  erased: float
  eraser_layer: int | None
  eraser_neuron: int | None


class Block(NamedTuple):
  """What a whole FFN can write to a channel.

  Attributes:
    layer: from 0.
    channel: k.
    score: |U_k|_F.
  """

  layer: int
  channel: int
  score: float


class NeuronShare(NamedTuple):
  """A neuron of the predicted FFN.

  Attributes:
    index: of the neuron.
    share: of what the FFN writes to the channel at the state it answers most.
  """

  index: int
  share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
  """Where the weights say that massive activations start.

  Attributes:
    kind: `writer and eraser`, or `writer only`, which is always weak.
    clear: whether there is an eraser, and it stands out both from the
      next best layer and channel (1.5 times) and from the control (5 times).
    entry: the predicted layer, channel and neuron.
    sign: of the predicted activation.
    strength: its score over that of the next best layer and channel.
    over_control: its score over the best of shuffled weights.
    neurons: the fewest that make 0.8 of what the FFN writes there.
    write: the most that the FFN can write there.
    muted: share of the layers between writer and eraser (to the end without
      one) whose FFN norm lowers the channel below a tenth of its median
      weight; NaN where there is none.
    muted_usual: the same for the mean channel.
  """

  kind: Kind
  clear: bool
  entry: Entry
  sign: int
  strength: float
  over_control: float
  neurons: tuple[NeuronShare, ...]
  write: float
  muted: float
  muted_usual: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Screen:
  """Entries of all layers, ranked; the first ones of each list.

  Attributes:
    plain: by the plain score.
    pairs: by sqrt(|amount| * erased).
    writers: by |amount|, without those that answer their own channel.
    blocks: layers and channels by |U_k|_F.
    control_pairs: as `pairs`, of shuffled weights.
    control_writers: as `writers`, of shuffled weights.
    prediction: None if nothing stands out from the control.
    layers: L.
  """

  plain: tuple[Entry, ...]
  pairs: tuple[Entry, ...]
  writers: tuple[Entry, ...]
  blocks: tuple[Block, ...]
  control_pairs: tuple[Entry, ...]
  control_writers: tuple[Entry, ...]
  prediction: Prediction | None
  layers: int

  def headline(self) -> str:
    """Says the prediction in one sentence."""
    found = self.prediction
    if found is None:
      return (
        'The weights name no single layer: no writer reaches five times what '
        'shuffled weights do.'
      )
    entry = found.entry
    how = 'predict' if found.clear else 'suggest, weakly,'
    erased = ' and no later FFN erases'
    if found.kind == 'writer and eraser':
      erased = f' and layer {entry.eraser_layer} erases'
    return (
      f'The weights {how} layer {entry.layer}, whose neuron {entry.neuron} '
      f'writes channel {entry.channel}{erased}: {found.strength:.3g} times any '
      f'other layer or channel, {found.over_control:.3g} times shuffled weights.'
    )

  def to_json(self) -> dict[str, Any]:
    """Returns the lists as plain values; the keys are the attributes' names."""
    values = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
    if self.prediction is not None:
      values['prediction'] = vars(self.prediction)
    values['headline'] = self.headline()
    return me_report.plain(values)
