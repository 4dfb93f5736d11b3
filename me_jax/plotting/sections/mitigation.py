"""Does a mask help without training, and do sinks weaken?"""

from __future__ import annotations

import math
from typing import Any

from me_jax.analysis import attention_maps
from me_jax.analysis import me_report
from me_jax.mitigation import outcome as outcome_lib
from me_jax.mitigation import tune
from me_jax.mitigation import wemask
from me_jax.plotting import prose
from me_jax.plotting import spec
from me_jax.plotting.sections import maps as maps_lib
from me_jax.plotting.sections import mitigation_dose
from me_jax.plotting.sections import mitigation_figures
from me_jax.plotting.sections import mitigation_tables as words
from me_jax.plotting.sections import mitigation_verdict as verdict_lib

_CLAIM = (
  'WeMask, a mask on a part of what attention receives of the massive token, '
  'relaxes its rigidity: without training, chats are predicted better and '
  'attention sinks weaken, but do not vanish.'
)
CHOSEN, PAPER, STOCK = verdict_lib.CHOSEN, verdict_lib.PAPER, verdict_lib.STOCK
_FEW = 5  # texts, below which an interval says little
_KINDS = {tune.CHATS: 'chat', tune.PLAIN: 'plain text'}
Maps = tuple[attention_maps.AttentionMaps, attention_maps.AttentionMaps]


def section(
  outcome: outcome_lib.Outcome, *, maps: Maps | None = None
) -> spec.Section:
  """Describes what a mask does to texts that had no say in choosing it.

  Args:
    outcome: of the choice and of what was measured.
    maps: of one text and the same layers, without a mask and with the chosen
      one (with the published setting where none was chosen).

  Returns:
    The section on the paper's fourth claim, and the fifth with a mask.
  """
  judged = verdict_lib.judge(outcome)
  return spec.Section(
    name='mitigation',
    title='A mask on the massive token, without training',
    claim=_CLAIM,
    verdict=verdict_lib.verdict(outcome, judged),
    finding=' '.join(_finding(outcome, judged)),
    control=' '.join(_control(outcome, judged)),
    figures=mitigation_figures.figures(outcome, maps),
    tables=words.tables(outcome),
    numbers=_numbers(outcome, judged, maps),
  )


def _finding(
  outcome: outcome_lib.Outcome, judged: verdict_lib.Judged
) -> list[str]:
  """Says what was measured, a sentence at a time."""
  if not outcome.trials:
    return ['No mask was tried, so there is none to measure.']
  said = [_choice(outcome)]
  if outcome.chosen is not None:
    said += _held_out(outcome, CHOSEN, 'On held-out texts it changes the loss')
    if judged.hurt:
      said.append(f'It makes the model worse on {prose.listed(judged.hurt)}.')
    said += _inside(outcome, CHOSEN)
    if judged.helped and (lacking := verdict_lib.lacking(judged)):
      said.append(
        f'The claim does not hold as a whole: {prose.listed(lacking)}.'
      )
  # What is chosen may be the published setting itself.
  if outcome.chosen is None or not _same(outcome):
    said += _held_out(
      outcome,
      PAPER,
      f'The published setting ({PAPER}: half of the channels, those with the '
      'largest |γ|) changes held-out loss',
    )
  else:
    said.append(f'This is the published setting, {PAPER}.')
  if outcome.chosen is None:
    said += _inside(outcome, PAPER)
  few = [n for n, stock in outcome.stock.items() if stock.texts < _FEW]
  if few:
    said.append(
      f'Fewer than {_FEW} texts: {prose.listed(few)}. Such intervals say little, and '
      'one text says nothing about others, so it does not count.'
    )
  return said


def _choice(outcome: outcome_lib.Outcome) -> str:
  """Says which mask was chosen, from how many and on what, or that none was."""
  count = outcome.tried
  on = prose.listed(
    [
      f'{texts} {_KINDS.get(kind, kind)}{"s" * (texts != 1)}'
      for kind, texts in outcome.calibration.items()
    ]
  )
  budget = f'plain text may lose {outcome.budget:g} nats per token'
  if outcome.chosen is not None:
    recipe = outcome.chosen.recipe
    select = words.SELECTIONS.get(recipe.select, recipe.select)
    return (
      f'Of {count} mask{"s" * (count != 1)} tried on {on} ({budget}), '
      f"'{outcome.chosen.name}' was chosen: {recipe.count} channels ({select}) "
      f'in {prose.layers(recipe.layers)}, strength '
      f'{words.strength(recipe.strength)}, at {_tokens(recipe)}.'
    )
  target = 'chats' if tune.CHATS in outcome.calibration else 'plain text'
  best = words.ranked(outcome)[0]
  changes = prose.listed(
    [f'{k} {prose.number(x, "+.4f")}' for k, x in best.change.items()]
  )
  return (
    f'Nothing helps this model within the budget: none of {count} '
    f'mask{"s" * (count != 1)} tried on {on} lowers the loss of {target} while '
    f"{budget}. The best of them, '{best.name}', changes the calibration loss by "
    f'{changes}. No mask is recommended.'
  )


def _tokens(recipe: wemask.Recipe) -> str:
  if recipe.tokens == 'first':
    return 'the first token of every text'
  if recipe.tokens == 'massive':
    return f'the tokens that are massive after layer {recipe.after_layer}'
  return f'position {", ".join(map(str, recipe.tokens))} of every text'


def _held_out(outcome: outcome_lib.Outcome, mask: str, start: str) -> list[str]:
  """Says what a mask does to each corpus, and to answers alone."""
  found = outcome.changes.get(mask, {})
  names = [name for name in outcome.stock if name in found]
  if not names:
    return []
  said = [
    f'{start} by '
    + '; '.join(
      f'{prose.interval(found[n].loss, "+.4f")} on {n} '
      f'({prose.judged(found[n].loss, outcome.stock[n].texts)})'
      for n in names
    )
    + ' nats per token.'
  ]
  chats = [name for name in names if outcome.stock[name].chat]
  if chats and mask == mitigation_figures.shown(outcome):
    said.append(
      'Of the answers alone, which may behave differently from whole chats: '
      + '; '.join(
        f'{prose.interval(found[n].answer, "+.4f")} on {n} '
        f'({prose.judged(found[n].answer, outcome.stock[n].texts)})'
        for n in chats
      )
      + '.'
    )
  return said


def _inside(outcome: outcome_lib.Outcome, mask: str) -> list[str]:
  """Says what a mask does to attention and to the token's rigidity."""
  if not {STOCK, mask} <= outcome.internals.keys():
    return []
  before, after = outcome.internals[STOCK], outcome.internals[mask]
  said = [
    'Over the layers after the span, attention to the massive token '
    f'{_moves(before.attention, after.attention, ".3f")}, the sink rate '
    f'{_moves(before.sink_rate, after.sink_rate, ".3f")}, the mean cosine across '
    'inputs of what attention receives of the token '
    f'{_moves(before.rigidity, after.rigidity)}, and the effective rank '
    f'{_moves(before.effective_rank, after.effective_rank, ".2f")}.'
  ]
  if after.rigidity >= before.rigidity:
    said.append(
      'So what is left of the token is as rigid as before: attention receives '
      'less of it, not something more varied.'
    )
  return said


def _moves(before: float, after: float, form: str = '.4f') -> str:
  first, second = prose.number(before, form), prose.number(after, form)
  if not (math.isfinite(before) and math.isfinite(after)):
    return f'is {first} before and {second} after'
  if first == second:
    return f'stays at {first}'
  return f'{"falls" if after < before else "rises"} from {first} to {second}'


def _control(
  outcome: outcome_lib.Outcome, judged: verdict_lib.Judged
) -> list[str]:
  if not judged.controls:
    return _in_the_sweep(outcome)
  which = ' that improve' if judged.helped else ''
  said = [
    f'Mean over the held-out corpora{which} ({prose.listed(judged.over)}): the chosen '
    f'mask {prose.number(judged.change, "+.4f")} nats per token; its controls, which '
    'differ from it in one respect each: '
    + '; '.join(
      f'{m} {prose.number(x, "+.4f")}' for m, x in judged.controls.items()
    )
    + '.'
  ]
  nearest = min(judged.controls, key=judged.controls.__getitem__)
  less = outcome.less.get(nearest, {})
  if judged.helped and less:
    said.append(
      f'Paired by text, the chosen mask less the nearest of them, {nearest}: '
      + '; '.join(
        f'{prose.interval(less[n], "+.4f")} on {n}' for n in judged.helped
      )
      + '.'
    )
  if judged.rivals:
    said.append(
      f'It is not surely better than {prose.listed(judged.rivals)} on each of these '
      'corpora, so the gain is not of this mask alone.'
    )
  elif judged.helped:
    said.append(
      'On each of these corpora it is surely better than all of them.'
    )
  random = 'random channels'
  if random in outcome.internals:
    said.append(
      f'With {random} attention to the massive token is '
      f'{prose.number(outcome.internals[random].attention, ".3f")}.'
    )
  return said


def _in_the_sweep(outcome: outcome_lib.Outcome) -> list[str]:
  """Says what controls did on calibration texts, where no others were run."""
  said = []
  for select in mitigation_dose.CONTROLS:
    trials = [t for t in outcome.dose if t.recipe.select == select]
    kinds = dict.fromkeys(kind for t in trials for kind in t.change)
    parts = [
      f'{kind} {prose.number(least, "+.4f")}'
      for kind in kinds
      for least in [min(t.change.get(kind, math.inf) for t in trials)]
    ]
    if parts:
      said.append(f'{words.SELECTIONS[select]}: {", ".join(parts)}')
  if not said:
    return [
      'No control was measured, so whatever was found may belong to any mask.'
    ]
  return [
    'There are no controls on held-out texts. In the sweep the controls change '
    f'the calibration loss, at their best rate, by: {"; ".join(said)}.'
  ]


def _same(outcome: outcome_lib.Outcome) -> bool:
  """Whether chosen and published mask do the same to every corpus."""
  return outcome.changes.get(PAPER) is not None and (
    outcome.changes.get(CHOSEN) == outcome.changes[PAPER]
  )


def _numbers(
  outcome: outcome_lib.Outcome, judged: verdict_lib.Judged, maps: Maps | None
) -> dict[str, Any]:
  numbers = outcome.to_json() | {'judged': judged}
  if maps is not None:
    before, after = maps
    numbers['maps'] = {
      'layers': before.layers,
      'position': before.position,
      'stock': maps_lib.received(before),
      mitigation_figures.shown(outcome): maps_lib.received(after),
    }
  return me_report.plain(numbers)
