"""Are massive activations what eight bits fail on, and does a mask help?"""

from __future__ import annotations

from typing import NamedTuple

from me_jax.analysis import me_report
from me_jax.evaluation import quantisation
from me_jax.evaluation import rounding
from me_jax.plotting import prose
from me_jax.plotting import spec
from me_jax.plotting.sections import quantisation_figures as figures

_CAUSE = (
  'Massive activations are why activations cannot be rounded to eight bits with '
  'one scale for a tensor: they take the scale, and ordinary tokens are rounded '
  'away.'
)
_RELIEVED = (
  'A mask that relaxes the massive token makes rounding to eight bits with one '
  'scale for a tensor cheaper.'
)
_FAMILIES = ('activations', 'stream')
_COSTS = 0.05  # nats per token: rounding costs something
# Of the cost: what exempting massive tokens must save, and how much more than
# exempting ordinary ones does.
_THEIRS = 0.5
_RELIEF = 0.1  # of the cost that a mask must take away
_FEW = 5  # texts, below which an interval says little
_SAID = {
  'activations': 'what matrices receive, a scale a tensor',
  'stream': 'the residual stream, a scale a tensor',
  'attn_in': "attention's input alone, a scale a tensor",
  'ffn_in': "the FFN's input alone, a scale a tensor",
  'ffn_act': "the FFN's activations alone, a scale a tensor",
  'weights': 'weights, a scale a matrix',
  'weights, by channel': 'weights, a scale an output channel',
  'both': 'weights and activations, a scale a matrix and a tensor',
  'both, fine': 'weights and activations, a scale a channel and a token',
}


class Judged(NamedTuple):
  """What the verdict rests on; pairs of (corpus, condition).

  Attributes:
    costly: where rounding costs the stock model something.
    theirs: those of them where massive tokens are the cause, and ordinary ones
      are not.
    broken: those of them where a rounded model, stock or variant, predicts
      worse than who gives all words the same probability: what it loses more or
      less than another one like it says nothing.
    relieved: by variant, those of the others where it takes a part of the cost
      away.
  """

  costly: list[tuple[str, str]]
  theirs: list[tuple[str, str]]
  broken: list[tuple[str, str]]
  relieved: dict[str, list[tuple[str, str]]]


def sections(
  found: quantisation.Quantisation,
) -> tuple[spec.Section, spec.Section]:
  """Describes what rounding costs a model and its variants.

  Args:
    found: of `quantisation.measure`.

  Returns:
    Whether massive tokens are the cause, and whether variants cost less.
  """
  judged = judge(found)
  numbers = me_report.plain(vars(found) | {'judged': judged})
  return (
    spec.Section(
      name='quantisation',
      title=f'What {found.bits} bits cost',
      claim=_CAUSE,
      verdict=_cause(found, judged),
      finding=' '.join(_finding(found, judged)),
      control=' '.join(_control(found)),
      figures=(figures.costs(found), figures.errors(found)),
      tables=_tables(found),
      numbers=numbers,
    ),
    spec.Section(
      name='quantisation-relief',
      title=f'Whether a mask makes {found.bits} bits cheaper',
      claim=_RELIEVED,
      verdict=_relief(found, judged),
      finding=' '.join(_relief_finding(found, judged)),
      control=_relief_control(found),
      numbers={'judged': numbers['judged']},
    ),
  )


def judge(found: quantisation.Quantisation) -> Judged:
  """Says where rounding costs, whose fault it is and who takes it away."""
  costly, theirs, broken = [], [], []
  others = found.variants[1:]
  relieved: dict[str, list[tuple[str, str]]] = {name: [] for name in others}
  for corpus in found.corpora:
    cost = found.cost[corpus][quantisation.STOCK]
    spared = found.spared[corpus][quantisation.STOCK]
    for name in _FAMILIES:
      lost = cost[name].value
      if not (lost >= _COSTS and cost[name].low > 0):
        continue
      costly.append((corpus, name))
      saved = -spared[f'{name}, massive exempt'].value
      sure = spared[f'{name}, massive exempt'].high < 0
      control = -spared[f'{name}, ordinary exempt'].value
      if sure and min(saved, saved - control) >= _THEIRS * lost:
        theirs.append((corpus, name))
      losses = found.loss[corpus]
      if max(one[name] for one in losses.values()) >= found.guessing:
        broken.append((corpus, name))
        continue
      for variant in others:
        relief = found.relief[corpus][variant][name]
        if relief.high < 0 and -relief.value >= _RELIEF * lost:
          relieved[variant].append((corpus, name))
  return Judged(costly, theirs, broken, relieved)


def _cause(found: quantisation.Quantisation, judged: Judged) -> spec.Verdict:
  if not (_massive(found) and judged.costly):
    return 'not tested'
  if len(judged.theirs) == len(judged.costly):
    return 'holds'
  return 'in part' if judged.theirs else 'does not hold'


def _relief(found: quantisation.Quantisation, judged: Judged) -> spec.Verdict:
  usable = len(judged.costly) - len(judged.broken)
  if not (_massive(found) and usable and judged.relieved):
    return 'not tested'
  best = max(map(len, judged.relieved.values()))
  if best == usable:
    return 'holds'
  return 'in part' if best else 'does not hold'


def _massive(found: quantisation.Quantisation) -> bool:
  return any(corpus.massive_tokens for corpus in found.corpora.values())


def _finding(found: quantisation.Quantisation, judged: Judged) -> list[str]:
  """Says what was measured, a sentence at a time."""
  if not _massive(found):
    return ['The texts hold no massive activations to be blamed.']
  said = []
  for name in _FAMILIES:
    said.append(
      f'Rounding {_SAID[name]}, to {found.bits} bits costs the stock model '
      + figures.each(found, found.cost, quantisation.STOCK, name)
      + ' nats per token; with the massive tokens exempt '
      + figures.each(
        found, found.cost, quantisation.STOCK, f'{name}, massive exempt'
      )
      + ', with a scale for each token '
      + figures.each(found, found.cost, quantisation.STOCK, f'{name}, by token')
      + '.'
    )
  if found.me_layer is not None:
    here = found.error[quantisation.STOCK]['ffn_act']['ffn_act']
    everyone, ordinary = found.peak[quantisation.STOCK]['ffn_act']
    at = found.me_layer
    said.append(
      f"Of the FFN's activations in layer {at} the largest |x| is "
      f'{everyone[at]:,.4g}, of ordinary tokens {ordinary[at]:,.4g}: a scale a '
      f'tensor puts {here[at]:.0%} of the latter away. This layer alone costs '
      + figures.each(found, found.cost, quantisation.STOCK, 'ffn_act, ME Layer')
      + ', all others '
      + figures.each(
        found, found.cost, quantisation.STOCK, 'ffn_act, other layers'
      )
      + '.'
    )
  if judged.costly:
    said.append(
      f'In {len(judged.theirs)} of {len(judged.costly)} cases where rounding '
      f'costs {_COSTS} nats per token or more, exempting the massive tokens '
      f'saves at least {_THEIRS:.0%} of it, and that much more than exempting '
      'ordinary ones.'
    )
  else:
    said.append(f'Nothing costs {_COSTS} nats per token.')
  if any(corpus.texts < _FEW for corpus in found.corpora.values()):
    said.append('Some corpora have few texts: their intervals say little.')
  return said


def _relief_finding(
  found: quantisation.Quantisation, judged: Judged
) -> list[str]:
  if not judged.relieved:
    return ['There is no relaxed model to compare with.']
  usable = [pair for pair in judged.costly if pair not in judged.broken]
  if not (_massive(found) and usable):
    return [
      'There is nothing to relieve: no rounding both costs the stock model '
      f'{_COSTS} nats per token and leaves it better than guessing.'
    ]
  said = []
  for variant, pairs in judged.relieved.items():
    changes = '; '.join(
      f"'{name}' by {prose.interval(found.relief[corpus][variant][name])} on "
      f'{corpus}'
      for corpus, name in usable
    )
    said.append(
      f'The {variant} model less the stock one, paired by text: what rounding '
      f'costs differs for {changes} nats per token, so it takes at least '
      f'{_RELIEF:.0%} of the cost away in {len(pairs)} of {len(usable)} cases.'
    )
  if judged.broken:
    where = ', '.join(f"'{name}' on {corpus}" for corpus, name in judged.broken)
    said.append(
      f'Not counted: {where}, where a rounded model loses more than the '
      f'{found.guessing:.1f} nats per token that giving all words the same '
      'probability does; how two such models differ says nothing.'
    )
  return said


def _relief_control(found: quantisation.Quantisation) -> str:
  name = _FAMILIES[0]
  exempt = figures.each(
    found, found.spared, quantisation.STOCK, f'{name}, massive exempt'
  )
  return (
    'What there is to be taken away: exempting the massive tokens from the '
    f"rounding changes the stock model's cost of '{name}' by {exempt}."
  )


def _control(found: quantisation.Quantisation) -> list[str]:
  said = [
    f'Exempting as many ordinary tokens instead (mean over draws) changes the cost '
    f"of '{name}' by "
    + figures.each(
      found, found.spared, quantisation.STOCK, f'{name}, ordinary exempt'
    )
    + ', exempting the massive ones by '
    + figures.each(
      found, found.spared, quantisation.STOCK, f'{name}, massive exempt'
    )
    + '.'
    for name in _FAMILIES
  ]
  said.append(
    'Weights and activations with a scale for each channel and token, which '
    'should cost little, cost '
    + figures.each(found, found.cost, quantisation.STOCK, 'both, fine')
    + '.'
  )
  return said


def _tables(found: quantisation.Quantisation) -> tuple[spec.Table, ...]:
  others = found.variants[1:]
  tables = [
    spec.Table(
      caption=(
        f'{corpus}: loss added in nats per token (95 %), {about.texts} texts, '
        f'{about.tokens} tokens, massive tokens in {about.massive_texts} texts'
      ),
      header=(
        'rounded',
        *found.variants,
        *(f'{name} less stock' for name in others),
      ),
      rows=(
        (
          'nothing (loss)',
          *(f'{found.loss[corpus][v]["exact"]:.4f}' for v in found.variants),
          *('' for _ in others),
        ),
        *(
          (
            _SAID.get(c.name, c.name),
            *(
              prose.interval(found.cost[corpus][v][c.name])
              for v in found.variants
            ),
            *(prose.interval(found.relief[corpus][v][c.name]) for v in others),
          )
          for c in found.conditions[1:]
        ),
      ),
    )
    for corpus, about in found.corpora.items()
  ]
  layer = found.me_layer
  if layer is not None:
    rows = []
    for site in rounding.SITES:
      family = 'stream' if site in rounding.STREAM else 'activations'
      everyone, ordinary = found.peak[quantisation.STOCK][site][:, layer]
      errors = (
        found.error[quantisation.STOCK][f'{family}{how}'][site][layer]
        for how in ('', ', massive exempt', ', by token')
      )
      sizes = f'{everyone:,.4g}', f'{ordinary:,.4g}'
      rows.append((site, *sizes, *(f'{error:.2%}' for error in errors)))
    tables.append(
      spec.Table(
        caption=f'Layer {layer}: largest |x|, and relative error of ordinary '
        'tokens',
        header=(
          'site',
          'all tokens',
          'ordinary',
          'a scale a tensor',
          'massive exempt',
          'a scale a token',
        ),
        rows=tuple(rows),
      )
    )
  return tuple(tables)
