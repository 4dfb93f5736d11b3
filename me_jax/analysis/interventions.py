"""Does the model need its massive activations?

Sun et al. (2024, arXiv 2402.17762) set them to zero, which breaks a model, and
to their mean over texts, which does no harm: they act as a bias, not as
information. Yu et al. (2024, arXiv 2411.07191) remove the *super weights*, the
down-projection entries that write them. Both are done here where the emergence
is complete, at the output of the span's last layer, and the loss of the next
token is compared with the stock model's, text by text. Whole neurons are removed
as well: a super weight alone leaves what its neuron writes into other channels.

Controls: as many random channels of the massive token set to zero (others in
each text), the massive channels of an ordinary token set to zero, and ten times
as many random entries of the same down-projections, as large as the super
weights where there are any, removed.

Letters: X texts, B rows, T time, K channels.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from me_jax.analysis import bootstrap
from me_jax.analysis import edited_loss
from me_jax.analysis import me_report
from me_jax.analysis import prefixes
from me_jax.analysis import super_weights as super_weights_lib
from me_jax.models import batch as batch_lib
from me_jax.models import decoder

_CONTROL_ENTRIES = 10  # for each super weight


class Condition(NamedTuple):
  """What one intervention did.

  Attributes:
    name: `zero`, `mean`, `super_weight`, `super_neuron`, and of several
      `super_weights`, `super_neurons`; or of a control, `random_channels`,
      `other_token`, `random_weights`.
    control: whether it is one.
    edited: what was done, in words.
    loss: nats per token.
    increase: of the loss over the stock model's, nats per token, with a paired
      95 % interval over texts.
    agreement: share of tokens whose likeliest next token stays the same.
  """

  name: str
  control: bool
  edited: str
  loss: float
  increase: bootstrap.Estimate
  agreement: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interventions:
  """The indispensable-bias test.

  Attributes:
    tested: False without massive activations, or texts to predict.
    reason: why not, as a sentence; empty otherwise.
    layer: at whose output channels were set.
    channels: the massive ones.
    values_XK: their values there at each text's massive token.
    super_weights: (layer, neuron, channel), the largest writer first; empty
      where no neuron dominates.
    texts: how many distinct texts with massive activations were used.
    left_out: how many distinct ones were not, for `max_tokens` or because they
      have no token to predict.
    tokens: how many were predicted.
    stock_loss: nats per token.
    conditions: the interventions and their controls.
  """

  tested: bool
  reason: str
  layer: int
  channels: tuple[int, ...]
  values_XK: np.ndarray
  super_weights: tuple[super_weights_lib.Entry, ...]
  texts: int
  left_out: int
  tokens: int
  stock_loss: float
  conditions: tuple[Condition, ...]

  def named(self, name: str) -> Condition | None:
    """Returns a condition by its name, None where it was not run."""
    return next((c for c in self.conditions if c.name == name), None)


def run(
  model: decoder.Decoder,
  params: decoder.Params,
  batch: batch_lib.Batch,
  report: me_report.MEReport,
  *,
  max_tokens: int = 512,
  seed: int = 0,
) -> Interventions:
  """Runs the test; one compile serves all conditions.

  Args:
    model: the decoder; its own edits are replaced.
    params: its parameters, which stay as they are. Of the down-projections
      there is one more copy while entries are removed.
    batch: the texts that the report is about.
    report: of `find_me_layer`.
    max_tokens: of the texts used. Whole distinct texts are taken, in an order
      that only they decide, as long as they fit; at least one.
    seed: of the random controls.

  Returns:
    Loss and agreement under every condition. A text that occurs twice counts
    once; texts without massive activations are left out.

  Raises:
    MeJaxError: the batch is not sound, or the report is about other texts.
  """
  batch = batch_lib.check_batch(model.config, batch)
  position_of = {
    ids: int(position)
    for ids, position in zip(
      prefixes.texts_of(batch, report), report.position_by_text
    )
    if position >= 0
  }
  bos = model.config.bos_token_id
  usable = [
    ids
    for ids in prefixes.in_order(list(position_of))
    if any(token != bos for token in ids[1:])
  ]
  if not report.channels or not usable:
    return _not_tested(report)
  chosen = _fitting(usable, max_tokens)
  channels_K = np.array([channel.index for channel in report.channels])
  texts = edited_loss.lay_out(model, chosen, channels_K)
  if report.span:
    layer = report.span[-1]
  else:
    # What is massive and has no span has a plateau.
    assert report.plateau is not None
    layer = report.plateau[0]
  stock = texts.score(params)
  count_X = texts.per_text(texts.counted_BT)
  main_X = texts.spans.start + [position_of[ids] for ids in texts.ids]
  seen_BTK = stock.channels_LBTK[layer]
  values_XK = seen_BTK[texts.spans.row, main_X]
  massive_BT = _massive(texts.spans, main_X, seen_BTK[..., 0])
  random = np.random.default_rng(seed)
  entries = super_weights_lib.find(report)

  def set_channels(
    channels_BTK: np.ndarray, values_K: np.ndarray | None = None
  ) -> edited_loss.Scores:
    return texts.score(
      params, layer=layer, channels_BTK=channels_BTK, values_K=values_K
    )

  one = len(channels_K) == 1
  massive = f'massive channel{"" if one else "s"}'
  at_massive_BTK = texts.at(massive_BT)
  other_BT = _others(texts.spans, massive_BT, random)
  random_BTK = _random_channels(
    texts.spans, massive_BT, channels_K, model.config.hidden_size, random
  )
  plan = [
    (
      'zero', False, f'{massive} of the massive token set to zero',
      set_channels(at_massive_BTK),
    ),
    (
      'mean', False, f'{massive} of the massive token set to the mean',
      set_channels(at_massive_BTK, values_XK.mean(axis=0)),
    ),
    (
      'random_channels', True,
      f'{len(channels_K)} random other channel{"" if one else "s"} of the'
      ' massive token set to zero',
      set_channels(random_BTK),
    ),
    (
      'other_token', True, f'{massive} of an ordinary token set to zero',
      set_channels(texts.at(other_BT)),
    ),
  ]  # fmt: skip
  if entries:
    plan += _weight_plan(texts, params, entries, random)
  return Interventions(
    tested=True,
    reason='',
    layer=layer,
    channels=tuple(channels_K.tolist()),
    values_XK=values_XK,
    super_weights=entries,
    texts=len(chosen),
    left_out=len(position_of) - len(chosen),
    tokens=int(count_X.sum()),
    stock_loss=float(stock.loss_X.sum() / count_X.sum()),
    conditions=tuple(_condition(texts, stock, *row) for row in plan),
  )


def _not_tested(report: me_report.MEReport) -> Interventions:
  reason = 'There are no massive activations to set to zero.'
  if report.channels:
    reason = 'No text with massive activations has a token to predict.'
  return Interventions(
    tested=False, reason=reason, layer=-1, channels=(),
    values_XK=np.zeros((0, 0)), super_weights=(), texts=0, left_out=0,
    tokens=0, stock_loss=float('nan'), conditions=(),
  )  # fmt: skip


def _fitting(
  texts: Sequence[prefixes.Ids], max_tokens: int
) -> list[prefixes.Ids]:
  """Takes texts in order as long as they fit, at least the shortest."""
  taken, room = [], max_tokens
  for ids in texts:
    if len(ids) <= room:
      taken.append(ids)
      room -= len(ids)
  return taken or [min(texts, key=len)]


def _massive(
  spans: batch_lib.TextSpans, main_X: np.ndarray, value_BT: np.ndarray
) -> np.ndarray:
  """Says which tokens are massive: at least half of their text's own."""
  massive_BT = np.zeros(value_BT.shape, bool)
  for row, start, length, main in zip(*spans[:3], main_X):
    size_T = np.abs(value_BT[row, start : start + length])
    bound = abs(value_BT[row, main]) / 2
    massive_BT[row, start : start + length] = size_T >= bound
  return massive_BT


def _others(
  spans: batch_lib.TextSpans,
  massive_BT: np.ndarray,
  random: np.random.Generator,
) -> np.ndarray:
  """Marks as many ordinary tokens of each text as it has massive ones."""
  marked_BT = np.zeros(massive_BT.shape, bool)
  for row, start, length, _ in zip(*spans):
    massive_T = massive_BT[row, start : start + length]
    free = np.flatnonzero(~massive_T)
    count = min(int(massive_T.sum()), len(free))
    marked_BT[row, start + random.choice(free, count, replace=False)] = True
  return marked_BT


def _random_channels(
  spans: batch_lib.TextSpans,
  massive_BT: np.ndarray,
  channels_K: np.ndarray,
  width: int,
  random: np.random.Generator,
) -> np.ndarray:
  """Chooses other channels for each text's massive tokens, `[B, T, K]`."""
  others = np.setdiff1d(np.arange(width), channels_K)
  count = min(len(channels_K), len(others))
  chosen_BTK = np.full((*massive_BT.shape, len(channels_K)), -1)
  for row, start, length, _ in zip(*spans):
    here = start + np.flatnonzero(massive_BT[row, start : start + length])
    drawn = random.choice(others, count, replace=False)
    chosen_BTK[row, here, :count] = drawn
  return chosen_BTK


def _weight_plan(
  texts: edited_loss.Texts,
  params: decoder.Params,
  entries: Sequence[super_weights_lib.Entry],
  random: np.random.Generator,
) -> list[tuple[str, bool, str, edited_loss.Scores]]:
  """Removes the super weights, then other entries of their size."""

  def without(
    name: str,
    control: bool,
    what: str,
    gone: Sequence[super_weights_lib.Entry],
  ) -> tuple[str, bool, str, edited_loss.Scores]:
    size_E = super_weights_lib.sizes(params, gone)
    low, high = f'{size_E.min():.3g}', f'{size_E.max():.3g}'
    size = low if low == high else f'{low} to {high}'
    scores = texts.score(super_weights_lib.remove(params, gone))
    return name, control, f'{what} removed (|weight| {size})', scores

  def without_neurons(
    name: str, what: str, gone: Sequence[super_weights_lib.Entry]
  ) -> tuple[str, bool, str, edited_loss.Scores]:
    scores = texts.score(super_weights_lib.remove_neurons(params, gone))
    return name, False, f'{what} at zero', scores

  plan = [
    without('super_weight', False, 'the super weight', entries[:1]),
    without_neurons('super_neuron', 'its whole neuron', entries[:1]),
  ]
  if len(entries) > 1:
    several = f'all {len(entries)} super weights'
    plan += [
      without('super_weights', False, several, entries),
      without_neurons('super_neurons', 'all their neurons', entries),
    ]
  drawn = super_weights_lib.like(params, entries, _CONTROL_ENTRIES, random)
  if drawn:
    several = f'{len(drawn)} random large entries'
    plan.append(without('random_weights', True, several, drawn))
  return plan


def _condition(
  texts: edited_loss.Texts,
  stock: edited_loss.Scores,
  name: str,
  control: bool,
  edited: str,
  scores: edited_loss.Scores,
) -> Condition:
  """Compares a run with the stock model's."""
  count_X = texts.per_text(texts.counted_BT)
  total = count_X.sum()
  return Condition(
    name=name,
    control=control,
    edited=edited,
    loss=float(scores.loss_X.sum() / total),
    increase=bootstrap.weighted_mean(
      (scores.loss_X - stock.loss_X) / count_X, count_X
    ),
    agreement=float(
      texts.per_text(scores.top_BT == stock.top_BT).sum() / total
    ),
  )
