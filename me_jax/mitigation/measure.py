"""What does a mask change, on texts that had no say in choosing it?

Always beside its controls: as many random channels, those of the smallest |γ|,
all channels, the same mask on another token, and on layers before the span.

Letters: X texts, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from me_jax.analysis import bootstrap
from me_jax.analysis import diagnosis
from me_jax.analysis import me_report
from me_jax.analysis import passes
from me_jax.mitigation import fidelity
from me_jax.mitigation import scoring
from me_jax.mitigation import wemask
from me_jax.models import batch as batch_lib
from me_jax.models import decoder
from me_jax.models import sink

# The other token: late enough to be no first one under any template.
_OTHER = 5

Progress = Callable[[int, int], Any]


class Change(NamedTuple):
  """What a mask does to one corpus, in nats per token, with 95 % intervals.

  Attributes:
    loss: change of the loss of all predicted tokens.
    answer: change of the loss of the answers that chats end with; of plain
      text, the same as `loss`.
    kl: divergence of the masked model from the stock model.
  """

  loss: bootstrap.Estimate
  answer: bootstrap.Estimate
  kl: bootstrap.Estimate


class Sums(NamedTuple):
  """The same text by text, as sums over its predicted tokens, in nats `[X]`.

  Attributes:
    before: loss of the stock model.
    after: loss with the mask.
    answer_before: of the answer alone.
    answer_after: of the answer alone.
    kl: divergence.
  """

  before: np.ndarray
  after: np.ndarray
  answer_before: np.ndarray
  answer_after: np.ndarray
  kl: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stock:
  """The stock model on one corpus.

  Attributes:
    chat: whether it is of chats.
    texts: how many.
    tokens: predicted tokens.
    loss: nats per predicted token.
    answer: nats per predicted token of the answers.
  """

  chat: bool
  texts: int
  tokens: int
  loss: float
  answer: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
  """What the stock model gave on one corpus, for any number of comparisons.

  Attributes:
    chat: whether it is of chats.
    texts: the corpus.
    hidden: what the head received, `[B, T, D]`, pass by pass.
  """

  chat: bool
  texts: scoring.Texts
  hidden: tuple[np.ndarray, ...]


class Internals(NamedTuple):
  """What a mask does inside, averaged over layers after the span.

  Attributes:
    attention: to the massive token, mean over heads.
    sink_rate: share of layers, heads and texts in which it exceeds 0.3.
    rigidity: mean cosine across inputs of what attention receives of it.
    effective_rank: of what attention receives of a text.
    attention_by_layer: `[L]`.
    sink_rate_by_layer: `[L]`.
    massive_texts: texts that hold massive activations.
  """

  attention: float
  sink_rate: float
  rigidity: float
  effective_rank: float
  attention_by_layer: np.ndarray
  sink_rate_by_layer: np.ndarray
  massive_texts: int


def controls(
  model: decoder.Decoder, recipe: wemask.Recipe, report: me_report.MEReport
) -> dict[str, wemask.Recipe]:
  """Returns the controls of a recipe by name; fewer where one cannot be."""
  found = {}
  width = model.config.hidden_size
  # All channels have no others to be compared with.
  if recipe.count < width:
    for name, select in (
      ('random channels', 'random'),
      ('smallest |γ|', 'weight_bottom'),
    ):
      if select != recipe.select:
        found[name] = dataclasses.replace(recipe, select=select)
    found['all channels'] = dataclasses.replace(recipe, count=width)
  if recipe.select != 'activation' and recipe.tokens != (_OTHER,):
    found[f'token {_OTHER} instead'] = dataclasses.replace(
      recipe, tokens=(_OTHER,), after_layer=None, bound=0.0
    )
  before = [i for i in range(report.span[0] if report.span else 0)]
  before = [i for i in before if i not in recipe.layers]
  if before and recipe.tokens != 'massive':
    taken = before[-len(recipe.layers) :]
    found['layers before the span'] = dataclasses.replace(
      recipe, layers=tuple(taken), strength=recipe.strength[-len(taken) :]
    )
  if model.config.norm_placement == 'post':
    found.pop('smallest |γ|', None)
  return found


def reference(
  model: decoder.Decoder,
  params: decoder.Params,
  texts: scoring.Texts,
  *,
  chat: bool,
  progress: Progress | None = None,
) -> Reference:
  """Runs a model on a corpus, for others to be compared with it.

  Args:
    model: the decoder.
    params: its parameters, masked or not.
    texts: of the corpus.
    chat: whether they are chats.
    progress: called with (rows done, in all).
  """
  before = params
  if sink.SCALE not in params['layers']:
    # With the same leaves as masked ones they share a compile.
    before = wemask.ones(model, params)
  count = len(texts.counted_BT)
  hidden = []
  for start in range(0, count, texts.rows):
    piece = passes.take_rows(texts.batch, start, texts.rows)
    hidden.append(np.asarray(fidelity.hidden(model, before, *piece)))
    if progress:
      progress(min(start + texts.rows, count), count)
  return Reference(chat=chat, texts=texts, hidden=tuple(hidden))


def change(
  model: decoder.Decoder,
  params: decoder.Params,
  masked: decoder.Params,
  against: Reference,
  *,
  seed: int = 0,
  progress: Progress | None = None,
) -> tuple[Change, Stock]:
  """Compares other parameters with those of a reference, text by text.

  Args:
    model: the decoder.
    params: of the reference.
    masked: the other parameters.
    against: what the stock model gave.
    seed: of the bootstrap, which draws whole texts.
    progress: called with (rows done, in all).

  Returns:
    What has changed, and from where.
  """
  sums = compare(model, params, masked, against, progress=progress)
  return summary(sums, against, seed=seed)


def compare(
  model: decoder.Decoder,
  params: decoder.Params,
  masked: decoder.Params,
  against: Reference,
  *,
  progress: Progress | None = None,
) -> Sums:
  """Returns what `change` is made of, for masks to be compared by text."""
  texts = against.texts
  count = len(texts.counted_BT)
  found = []
  for start, before in zip(range(0, count, texts.rows), against.hidden):
    piece = passes.take_rows(texts.batch, start, texts.rows)
    after = fidelity.hidden(model, masked, *piece)
    parts = fidelity.compare(
      model, params, masked, before, after, piece.tokens_BT
    )
    found.append([np.asarray(part) for part in parts])
    if progress:
      progress(min(start + texts.rows, count), count)
  kl_BT, before_BT, after_BT = (
    np.concatenate(x)[:count].astype(np.float64) for x in zip(*found)
  )
  return Sums(
    before=texts.sums(before_BT),
    after=texts.sums(after_BT),
    answer_before=texts.answer_sums(before_BT),
    answer_after=texts.answer_sums(after_BT),
    kl=texts.sums(kl_BT),
  )


def summary(
  sums: Sums, against: Reference, *, seed: int = 0
) -> tuple[Change, Stock]:
  """Returns means over texts with their intervals, and the stock model's."""
  tokens_X, answers_X = against.texts.tokens_X, against.texts.answers_X
  return (
    Change(
      loss=_mean(sums.after - sums.before, tokens_X, seed),
      answer=_mean(sums.answer_after - sums.answer_before, answers_X, seed),
      kl=_mean(sums.kl, tokens_X, seed),
    ),
    Stock(
      chat=against.chat,
      texts=len(tokens_X),
      tokens=int(tokens_X.sum()),
      loss=float(sums.before.sum() / tokens_X.sum()),
      answer=float(sums.answer_before.sum() / answers_X.sum()),
    ),
  )


def less(
  one: Sums, other: Sums, against: Reference, *, seed: int = 0
) -> bootstrap.Estimate:
  """Returns one mask's loss less another's, nats per token, paired by text."""
  return _mean(one.after - other.after, against.texts.tokens_X, seed)


def _mean(
  sums_X: np.ndarray, tokens_X: np.ndarray, seed: int
) -> bootstrap.Estimate:
  return bootstrap.weighted_mean(sums_X / tokens_X, tokens_X, seed=seed)


def internals(
  model: decoder.Decoder,
  params: decoder.Params,
  batch: batch_lib.Batch,
  report: me_report.MEReport,
  progress: Progress | None = None,
) -> Internals:
  """Looks at attention and states with a mask, or without.

  Args:
    model: the decoder.
    params: masked or not.
    batch: any texts, such as those the ME Layer was found on.
    report: of the stock model, whose span counts.
    progress: called with (rows done, in all).
  """
  seen = diagnosis.diagnose(model, params, batch, progress=progress)
  after = slice(report.span[-1] + 1 if report.span else 0, None)
  attention_L = seen.sinks.attention.mean(axis=1)
  rate_L = seen.sinks.rate.mean(axis=1)
  return Internals(
    attention=float(attention_L[after].mean()),
    sink_rate=float(rate_L[after].mean()),
    rigidity=float(seen.rigidity.attn_in.mean_L[after].mean()),
    effective_rank=float(seen.diversity.effective_rank[after, 0].mean()),
    attention_by_layer=attention_L,
    sink_rate_by_layer=rate_L,
    massive_texts=seen.massive_texts,
  )


def to_json(value: Any) -> Any:
  """Returns results as JSON types."""
  if hasattr(value, 'to_json'):
    return value.to_json()
  if hasattr(value, '_asdict'):
    return {name: to_json(part) for name, part in value._asdict().items()}
  if dataclasses.is_dataclass(value):
    return to_json(
      {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    )
  if isinstance(value, Mapping):
    return {name: to_json(part) for name, part in value.items()}
  if isinstance(value, tuple | list):
    return [to_json(part) for part in value]
  return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
