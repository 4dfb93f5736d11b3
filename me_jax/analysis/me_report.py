"""What is said about a model's massive activations, and how it is written down.

Letters: L layers, Z = L + 1 states (0 the embedding, l + 1 what layer l puts
out), X texts, D model width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np


class Shares(NamedTuple):
  """Who wrote the plateau; sums to one.

  Attributes:
    attn: `[L]`, each attention's share.
    ffn: `[L]`, each FFN's share.
    embedding: the embedding's share.
  """

  attn: np.ndarray
  ffn: np.ndarray
  embedding: float


class Control(NamedTuple):
  """The same arithmetic for ordinary tokens, spread over the texts.

  Attributes:
    shares: who wrote its largest state.
    span: the shortest run of layers that wrote 0.8 of it.
    norm: `[Z]`, mean norm of its state.
    profile: `[Z, D]`, mean |x|.
  """

  shares: Shares
  span: tuple[int, ...]
  norm: np.ndarray
  profile: np.ndarray


class Channel(NamedTuple):
  """A channel of the residual stream that is massive on the plateau.

  Attributes:
    index: of the channel.
    value: its mean over texts.
    std: its standard deviation over texts.
    energy: its part of the plateau's squared norm.
  """

  index: int
  value: float
  std: float
  energy: float


class Neuron(NamedTuple):
  """An FFN neuron that writes the plateau.

  Attributes:
    layer: whose FFN it belongs to.
    index: of the neuron.
    share: its part of the plateau.
  """

  layer: int
  index: int
  share: float


class MassiveToken(NamedTuple):
  """A token that holds massive activations.

  Attributes:
    position: its index within its text.
    token_id: which token.
    string: how the tokenizer spells it; None without a tokenizer.
    texts: in how many texts.
  """

  position: int
  token_id: int
  string: str | None
  texts: int


class Peak(NamedTuple):
  """The largest activation of any token in any layer's output.

  Of the texts with massive activations, or of all where none has any.

  Attributes:
    value: |x|.
    ratio: over the median |x| of that output in the same text.
    layer: whose output.
  """

  value: float
  ratio: float
  layer: int


class Agreement(NamedTuple):
  """What three rules say, text by text.

  Attributes:
    texts: how many there are.
    massive: how many hold massive activations.
    rules: for `share` (this file's rule on one text alone), `sun` (first
      layer whose output is massive, arXiv 2402.17762) and `jump` (largest
      growth of the token's norm): how many texts name which layer.
  """

  texts: int
  massive: int
  rules: dict[str, dict[int | None, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MEReport:
  """Where a model's massive activations come from. Layers count from 0.

  Attributes:
    verdict: `single` (one layer), `multi-step` (two or three), `gradual`
      (more), `embedding` (no run of layers writes 0.8) or `none` (no massive
      activations).
    layer: the ME Layer; None unless the verdict is `single` or `multi-step`.
    span: the emergence span's layers, in order.
    shares: who wrote the plateau, averaged over texts.
    share_by_text: `[X]`, the span's share in each text used.
    control: the same for ordinary tokens.
    jump: `[L]`, growth of the token's norm, geometric mean over texts.
    channels: the massive channels, largest first.
    neurons: the fewest neurons, at most eight a layer, that make 0.8 of each
      FFN's share in the span.
    tokens: the massive tokens, most frequent first.
    position_by_text: `[X]`, index within its text of the massive token that
      the numbers are about, -1 in a text that has none.
    plateau: first and last layer that put the plateau out; None without one.
    plateau_mean: `[D]`, the massive tokens' plateau state, averaged over texts;
      of first tokens where none is massive.
    peak: the largest activation.
    agreement: by kind of text (`with_bos`, `without_bos`).
    texts: number of texts.
    massive_texts: number of texts that hold massive activations.
    norm: `[Z]`, mean norm of the massive token's state.
    others: `[Z]`, median norm of tokens that are not massive.
    median: `[L]`, median |x| of each layer's output within a text, averaged
      over the texts that the numbers are about.
    profile: `[Z, D]`, mean |x| of the massive token.
    provenance: how the numbers were made.

  Examples:
    >>> import me_jax
    >>> lm = me_jax.load('smollm2')
    >>> batch = me_jax.encode(lm, ['The quick brown fox', 'def f(x):'])
    >>> report = me_jax.find_me_layer(lm.model, lm.params, batch)
    >>> report.verdict, report.layer, report.span, report.plateau
    ('single', 11, (11,), (11, 27))
    >>> [channel.index for channel in report.channels]
    [507]
    >>> [(neuron.layer, neuron.index) for neuron in report.neurons]
    [(11, 1229), (11, 1487)]
    >>> report.to_json()['layer_from_one']
    12
  """

  verdict: str
  layer: int | None
  span: tuple[int, ...]
  shares: Shares
  share_by_text: np.ndarray
  control: Control
  jump: np.ndarray
  channels: tuple[Channel, ...]
  neurons: tuple[Neuron, ...]
  tokens: tuple[MassiveToken, ...]
  position_by_text: np.ndarray
  plateau: tuple[int, int] | None
  plateau_mean: np.ndarray
  peak: Peak
  agreement: dict[str, Agreement]
  texts: int
  massive_texts: int
  norm: np.ndarray
  others: np.ndarray
  median: np.ndarray
  profile: np.ndarray
  provenance: dict[str, Any]

  def headline(self) -> str:
    """Says the verdict in one sentence."""
    massive = f'{self.massive_texts} of {self.texts} prompts'
    if self.verdict == 'none':
      return (
        f'No massive activations: the largest |x| is {self.peak.value:,.4g}, '
        f"{self.peak.ratio:.3g} times its layer's median."
      )
    if self.verdict == 'embedding':
      return (
        f'Massive activations ({massive}), but no run of layers writes most of '
        f'them: {self.shares.embedding:.1%} come with the embedding.'
      )
    share = self.share_by_text.mean()
    if self.verdict == 'gradual':
      return (
        f'Massive activations ({massive}) emerge gradually over layers '
        f'{self.span[0]}-{self.span[-1]} ({share:.1%} of the plateau): no '
        'single ME Layer.'
      )
    assert self.layer is not None  # As the other verdicts are told above.
    span = ''
    if len(self.span) > 1:
      span = f' in the span {self.span[0]}-{self.span[-1]}'
    return (
      f'Layer {self.layer} (layer {self.layer + 1} of {len(self.jump)}) is '
      f'the ME Layer{span}: {share:.1%} of the plateau, in {massive}.'
    )

  def to_json(self) -> dict[str, Any]:
    """Returns the report as plain values, floats to six digits.

    The keys are the attributes' names. Profiles, `plateau_mean` and
    `position_by_text` are left out for their size; `share_by_text` becomes its
    mean, spread and smallest value, `span_share`.
    """
    large = ('profile', 'plateau_mean', 'share_by_text', 'position_by_text')
    values = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name not in large
    }
    control = self.control._asdict()
    del control['profile']
    values['control'] = control
    spread = self.share_by_text
    values['span_share'] = {
        'mean': spread.mean(),
        'std': spread.std(),
        'min': spread.min(),
    } if self.span else None  # fmt: skip
    values['layer_from_one'] = None if self.layer is None else self.layer + 1
    return plain(values)


def plain(value: Any) -> Any:
  """Returns what JSON can hold.

  Args:
    value: of named tuples, dicts, lists, arrays, numbers and strings.

  Returns:
    The same with objects for named tuples, strings as keys (`none` for None),
    lists for arrays, floats of six digits, and None for what is not finite.
  """
  if isinstance(value, np.ndarray):
    value = value.tolist()
  if hasattr(value, '_asdict'):
    value = value._asdict()
  if isinstance(value, dict):
    return {
      'none' if key is None else str(key): plain(item)
      for key, item in value.items()
    }
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float):
    return float(f'{value:.6g}') if math.isfinite(value) else None
  return value
