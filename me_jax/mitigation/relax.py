"""From a found ME Layer to a chosen mask and what it does, in one call.

A quarter of the calibration texts thins out the settings, all of them choose
among the best, and other texts say what came of it.

Letters: X texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from me_jax import errors
from me_jax.analysis import bootstrap
from me_jax.analysis import me_report
from me_jax.mitigation import corpora
from me_jax.mitigation import measure
from me_jax.mitigation import outcome
from me_jax.mitigation import scoring
from me_jax.mitigation import tune
from me_jax.mitigation import wemask
from me_jax.models import batch as batch_lib
from me_jax.models import decoder

BUDGET = 0.005
_FIRST, _FINAL = 4, 4  # a fraction of the texts; settings that stay
_ROW = 640  # tokens of a row at least: several texts pack well
_DOSE = ('weight', 'random', 'weight_bottom')

# Called with (what is being done, done, in all).
Progress = Callable[[str, int, int], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
  """Encoded texts of one corpus.

  Attributes:
    name: of the corpus.
    chat: whether they are chats.
    calibration: what a mask is chosen on.
    held_out: what it is measured on.
  """

  name: str
  chat: bool
  calibration: Sequence[corpora.Encoded]
  held_out: Sequence[corpora.Encoded]


def relax(
  model: decoder.Decoder,
  params: decoder.Params,
  report: me_report.MEReport,
  texts: Sequence[Texts],
  batch: batch_lib.Batch,
  settings: Mapping[str, wemask.Recipe],
  *,
  by_layer: bool = True,
  most: int = 32,
  budget: float = BUDGET,
  seed: int = 0,
  progress: Progress | None = None,
) -> outcome.Outcome:
  """Chooses a mask on calibration texts and measures it on held-out ones.

  Args:
    model: the decoder.
    params: of the stock model.
    report: of `find_me_layer`.
    texts: the corpora.
    batch: texts for looking inside, and for `select='activation'`.
    settings: of which one is chosen, see `tune.grid`; a single one is taken as
      it is.
    by_layer: whether to look for a strength for each layer too.
    most: calibration texts of a kind, taken from its corpora in turn.
    budget: nats per token that plain text may lose on calibration texts.
    seed: of random channels and of the bootstrap.
    progress: told of every step.

  Returns:
    The outcome; the chosen mask is `outcome.chosen.recipe`.

  Raises:
    MeJaxError: there is nothing to choose on, or to measure on.
  """

  def step(what: str) -> Callable[[int, int], Any] | None:
    return None if progress is None else lambda i, n: progress(what, i, n)

  # Missed before any work.
  if not _measured(texts):
    raise errors.MeJaxError(
      'there is no text to measure a mask on: all are too short, or chats that'
      ' are too long'
    )
  length = _row_length(texts)
  whole, few = _calibration(model, texts, length, most)
  trials, dose = _choose(
    model, params, report, settings, (whole, few), batch, by_layer, seed, step
  )
  chosen = trials[0] if len(trials) == 1 else tune.best(trials, budget)
  masks = _masks(model, report, chosen, seed)
  stock, changes, less = _measure(
    model, params, texts, masks, batch, length, seed, step
  )
  insides = {'stock': wemask.ones(model, params)}
  insides |= {
    name: wemask.apply(model, params, recipe, batch=batch)
    for name, recipe in masks.items()
  }
  internals = {}
  for done, (name, tree) in enumerate(insides.items()):
    if progress:
      progress('looking inside', done, len(insides))
    internals[name] = measure.internals(model, tree, batch, report)
  if progress:
    progress('looking inside', len(insides), len(insides))
  # The settings, and what was fitted to the best of them.
  tried = settings.keys() | {trial.name for trial in trials}
  return outcome.Outcome(
    tried=len(tried),
    trials=tuple(trials),
    dose=tuple(dose),
    chosen=chosen,
    budget=budget,
    calibration={kind: len(t.tokens_X) for kind, t in whole.items()},
    stock=stock,
    changes=changes,
    less=less,
    internals=internals,
  )


def with_baked(
  model: decoder.Decoder,
  params: decoder.Params,
  masked: decoder.Params,
  baked: decoder.Params,
  texts: Sequence[Texts],
  found: outcome.Outcome,
  *,
  seed: int = 0,
  progress: Progress | None = None,
) -> outcome.Outcome:
  """Returns the outcome with what baked weights do on the held-out texts."""
  changes, apart = {}, {}
  measured = _measured(texts)
  for done, corpus in enumerate(measured):
    if progress:
      progress('measuring the baked weights', done, len(measured))
    laid = scoring.lay_out(
      corpus.held_out,
      bos_token_id=model.config.bos_token_id,
      length=_row_length(texts),
    )
    stock = measure.reference(model, params, laid, chat=corpus.chat)
    changes[corpus.name], _ = measure.change(
      model, params, baked, stock, seed=seed
    )
    exact = measure.reference(model, masked, laid, chat=corpus.chat)
    against, _ = measure.change(model, masked, baked, exact, seed=seed)
    apart[corpus.name] = against.kl.value
  if progress:
    progress('measuring the baked weights', len(measured), len(measured))
  return dataclasses.replace(found, baked=changes, baked_kl=apart)


def _row_length(texts: Sequence[Texts]) -> int:
  """Returns the tokens of a row, one for all texts: they share a compile."""
  some = (ids for t in texts for ids, _ in (*t.calibration, *t.held_out))
  return max(_ROW, *map(len, some))


def _calibration(
  model: decoder.Decoder, texts: Sequence[Texts], length: int, count: int
) -> tuple[tune.Calibration, tune.Calibration]:
  """Lays out all calibration texts by kind, and a quarter of them."""
  kinds: dict[str, list[corpora.Encoded]] = {}
  for chat, kind in ((True, tune.CHATS), (False, tune.PLAIN)):
    lists = [t.calibration for t in texts if t.chat == chat and t.calibration]
    most = max(map(len, lists), default=0)
    # Corpora take turns, so that any part of the texts holds all of them.
    kinds[kind] = [x[i] for i in range(most) for x in lists if i < len(x)]
  kinds = {kind: some[:count] for kind, some in kinds.items() if some}
  if not kinds:
    raise errors.MeJaxError(
      'there is no text to choose a mask on: all are too short, or chats that'
      ' are too long'
    )

  def lay_out(some: list[corpora.Encoded]) -> scoring.Texts:
    return scoring.lay_out(
      some, bos_token_id=model.config.bos_token_id, length=length
    )

  return (
    {kind: lay_out(some) for kind, some in kinds.items()},
    {
      kind: lay_out(some[: max(1, len(some) // _FIRST)])
      for kind, some in kinds.items()
    },
  )


def _choose(
  model: decoder.Decoder,
  params: decoder.Params,
  report: me_report.MEReport,
  settings: Mapping[str, wemask.Recipe],
  calibration: tuple[tune.Calibration, tune.Calibration],
  batch: batch_lib.Batch,
  by_layer: bool,
  seed: int,
  step: Callable[[str], Any],
) -> tuple[list[tune.Trial], list[tune.Trial]]:
  """Returns the trials on all calibration texts, and the dose-response."""
  whole, few = calibration
  model_of = model, params
  dose = {}
  if report.layer is not None:
    dose = tune.grid(
      model, report, selections=_dose_selections(model), layers=('after',),
      strengths=(1.0,), seed=seed,
    )  # fmt: skip
  dosed = tune.sweep(*model_of, dose, few, progress=step('dose-response'))
  first = tune.sweep(
    *model_of, settings, few, batch=batch, progress=step('trying settings')
  )
  kept = {t.name: t.recipe for t in tune.ranked(first)[:_FINAL]}
  if by_layer and len(settings) > 1:
    # The best one's channels, each layer with a strength of its own.
    base = next(iter(kept.values()))
    base = max(
      (r for r in kept.values() if r.count < model.config.hidden_size),
      key=lambda recipe: len(recipe.layers),
      default=base,
    )
    fitted = tune.strengths(
      *model_of, base, whole, batch=batch, progress=step('strengths by layer')
    )
    kept |= tune.scalings(fitted)
  trials = tune.sweep(
    *model_of, kept, whole, batch=batch, progress=step('choosing')
  )
  return tune.ranked(trials), dosed


def _dose_selections(model: decoder.Decoder) -> tuple[str, ...]:
  """Returns the selections that this architecture has."""
  no_norm = model.config.norm_placement == 'post'
  return ('random',) if no_norm else _DOSE


def _masks(
  model: decoder.Decoder,
  report: me_report.MEReport,
  chosen: tune.Trial | None,
  seed: int,
) -> dict[str, wemask.Recipe]:
  """Returns what is measured: the choice, the paper's, and controls."""
  masks = {}
  if chosen is not None:
    masks[outcome.CHOSEN] = chosen.recipe
  if report.layer is not None and model.config.norm_placement != 'post':
    masks[outcome.PAPER] = wemask.resolve(model, report, seed=seed)
  base = next(iter(masks.values()), None)
  if base is not None:
    masks |= measure.controls(model, base, report)
  return masks


def _measured(texts: Sequence[Texts]) -> list[Texts]:
  return [corpus for corpus in texts if corpus.held_out]


def _measure(
  model: decoder.Decoder,
  params: decoder.Params,
  texts: Sequence[Texts],
  masks: Mapping[str, wemask.Recipe],
  batch: batch_lib.Batch,
  length: int,
  seed: int,
  step: Callable[[str], Any],
) -> tuple[
  dict[str, measure.Stock],
  dict[str, dict[str, measure.Change]],
  dict[str, dict[str, bootstrap.Estimate]],
]:
  """Measures every mask on every corpus's held-out texts."""
  measured = _measured(texts)
  stock: dict[str, measure.Stock] = {}
  changes: dict[str, dict[str, measure.Change]] = {name: {} for name in masks}
  first, *others = masks or ('',)
  less: dict[str, dict[str, bootstrap.Estimate]] = {name: {} for name in others}
  told = step('measuring on held-out texts')
  total, done = len(measured) * len(masks), 0
  for corpus in measured:
    laid = scoring.lay_out(
      corpus.held_out, bos_token_id=model.config.bos_token_id, length=length
    )
    against = measure.reference(model, params, laid, chat=corpus.chat)
    sums: dict[str, measure.Sums] = {}
    for name, recipe in masks.items():
      tree = wemask.apply(model, params, recipe, batch=batch)
      sums[name] = measure.compare(model, params, tree, against)
      changes[name][corpus.name], stock[corpus.name] = measure.summary(
        sums[name], against, seed=seed
      )
      done += 1
      if told:
        told(done, total)
    for name in others:
      less[name][corpus.name] = measure.less(
        sums[first], sums[name], against, seed=seed
      )
  return stock, changes, less
