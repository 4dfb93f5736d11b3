"""What follows where two runs, or two forms of a model, are compared?

The reports of single runs do not say it. Each answer has the shape of a report's
section: claim, verdict, finding, control, and a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from me_jax.plotting import prose
from me_jax.training import held_out as held_out_lib
from study import estimates

HELD_OUT = 'held_out.json'
_NEAR = 0.1  # of how far the mask is from the stock model


class _Words(NamedTuple):
  """How a comparison is told.

  Attributes:
    claim: what is claimed.
    run: what should be better.
    other: what it is compared with.
    control: what the two have in common, or what else there is to know.
    when: which losses of the other run count, `before` or `after` its steps.
  """

  claim: str
  run: str
  other: str
  control: str
  when: str = 'after'


_ONE_THING = (
  'The control is {other}: as many steps on the same rows, and all else is the '
  'same.'
)
_WORDS = {
  'gates': _Words(
    'Factors on what attention receives of the massive token are a better '
    'thing to train than the same factors on another constant token.',
    'gates on the massive token',
    'gates on the control token',
    _ONE_THING,
  ),
  'gates-and-mask': _Words(
    'Gates are what a mask becomes when it is trained. Trained on chats, they '
    'lower the loss of other chats further than the mask that was chosen '
    'without training.',
    'trained gates',
    'the tuned mask',
    'Both act on the same token, in the layers after the emergence, and are '
    'measured on the same texts; the mask saw a few chats, to be chosen, and '
    'gates were trained on many. The claim before says what gates on another '
    'token do.',
    'before',
  ),
  'mask-in-training': _Words(
    'Fine-tuning with the mask fixed in every forward pass ends with a lower '
    'loss than the same fine-tuning without it.',
    'the run with the mask',
    'the run without',
    _ONE_THING,
  ),
}


def runs(
  name: str, run: pathlib.Path, control: pathlib.Path
) -> dict[str, Any] | None:
  """Compares what two runs of training have left, text by text.

  Args:
    name: of the claim.
    run: folder of the run that should be better.
    control: folder of the other one.

  Returns:
    The section; None where the runs share no texts.
  """
  ours, theirs = (_sets(folder) for folder in (run, control))
  about = {one['name']: one for one in _settings(run)['held_out']}
  words = _WORDS[name]
  theirs_then = theirs[words.when]
  names = [n for n in ours['after'] if n in theirs_then and n in about]
  # What may have chosen the step flatters the run.
  final = [n for n in names if about[n]['report']] or names
  rows, unlike = [], []
  for of in final:
    mine, other = ours['after'][of], theirs_then[of]
    if not np.array_equal(mine.tokens_N, other.tokens_N):
      unlike.append(of)
      continue
    rows.append(
      {
        'set': of,
        'texts': len(mine.tokens_N),
        'before': held_out_lib.loss(ours['before'][of]),
        'run': held_out_lib.loss(mine),
        'control': held_out_lib.loss(other),
        'difference': held_out_lib.change(other, mine),
        'on_task': about[of]['on_task'],
      }
    )
  return _runs(name, rows, unlike) if rows else None


def again(name: str, answer: Mapping[str, Any]) -> dict[str, Any]:
  """Tells once more what an extract's rows say.

  Args:
    name: of the claim.
    answer: to it, as an extract keeps it.

  Returns:
    The section; nothing where the answer has no such rows.
  """
  if 'runs' in answer:
    return _runs(name, answer['runs'], answer.get('unlike', ()))
  return _baked(answer['baked']) if 'baked' in answer else {}


def _runs(
  name: str, rows: Sequence[Mapping[str, Any]], unlike: Sequence[str]
) -> dict[str, Any]:
  """Returns the section on two runs, from a row a held-out set."""
  words = _WORDS[name]
  changes = {row['set']: estimates.read(row['difference']) for row in rows}
  sure = [row['set'] for row in rows if row['on_task']]
  better = [of for of in sure if changes[of].high < 0]
  worse = [of for of in sure if changes[of].low > 0]
  said = prose.listed(
    [
      f'{prose.interval(change)} on {_spelt(of)}'
      for of, change in changes.items()
    ]
  )
  sides = [
    f'{word} on {prose.listed(map(_spelt, sets))}'
    for word, sets in (('better', better), ('worse', worse))
    if sets
  ]
  return {
    'claim': words.claim,
    'verdict': _verdict(better, worse, sure),
    'finding': (
      f'On held-out texts, {words.run} and {words.other} differ by {said} nats '
      'per token. By the whole interval, and on the task, the first is '
      f'{" and ".join(sides) or "neither better nor worse"}.'
    ),
    'control': (
      f'{words.control.format(other=words.other)} Differences are paired by '
      'text. One seed each.'
      + f' Other texts in each, and so not compared: {prose.listed(unlike)}.'
      * bool(unlike)
    ),
    'runs': list(rows),
    'unlike': list(unlike),
  }


def baked(numbers: Mapping[str, Any]) -> dict[str, Any] | None:
  """Compares a mask baked into weights with the mask itself.

  Args:
    numbers: of the section on mitigation.

  Returns:
    The section; None where nothing was baked.
  """
  exact = numbers['changes'].get('chosen')
  if not (numbers.get('baked') and exact):
    return None
  return _baked(
    [
      {
        'corpus': corpus,
        'mask': estimates.read(exact[corpus]['loss']),
        'baked': estimates.read(found['loss']),
        'kl': numbers['baked_kl'][corpus],
        'mask_kl': estimates.read(exact[corpus]['kl']).value,
      }
      for corpus, found in numbers['baked'].items()
    ]
  )


def _baked(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the section on a baked mask, from a row a corpus."""
  same, gaps = [], []
  for row in rows:
    mask, plain = estimates.read(row['mask']), estimates.read(row['baked'])
    gaps.append(abs(mask.value - plain.value))
    # Where a mask changes nothing its interval would hold no change at all, too.
    near = row['kl'] <= _NEAR * row['mask_kl']
    same += [row['corpus']] * (near and mask.low <= plain.value <= mask.high)
  verdict = 'holds' if len(same) == len(rows) else 'in part'
  kls = prose.listed(
    [f'{r["kl"]:.4f} against {r["mask_kl"]:.4f} on {r["corpus"]}' for r in rows]
  )
  return {
    'claim': (
      'Because the massive token is rigid, a change of rank one to the weights '
      'that read it does what the mask does, in any runtime: on texts that begin '
      'as those did that the mask was chosen on.'
    ),
    'verdict': verdict if same else 'does not hold',
    'finding': (
      f'Baked and exact mask change the loss alike to within {max(gaps):.4f} nats '
      'per token. On '
      f'{len(same)} of {len(rows)} corpora the baked change lies in the interval of '
      f'the mask, and the divergence between the two is at most {_NEAR:.0%} of '
      "the mask's from the stock model."
    ),
    'control': (
      'The divergence of the baked weights from the exact mask, against that '
      f'of the exact mask from the stock model, in nats per token: {kls}.'
    ),
    'baked': list(rows),
  }


def _spelt(name: str) -> str:
  """Spells a set for a list: "GSM8K, answers" would be two of it."""
  whole, comma, part = name.partition(', ')
  return f'{whole} ({part})' if comma else name


def _verdict(
  better: Sequence[str], worse: Sequence[str], of: Sequence[str]
) -> str:
  """Says whether sets of the task are better, or worse, by whole intervals."""
  if not of:
    return 'not tested'
  if worse or not better:
    return 'does not hold'
  return 'holds' if len(better) == len(of) else 'in part'


def _sets(run: pathlib.Path) -> dict[str, dict[str, held_out_lib.Texts]]:
  content = json.loads((run / HELD_OUT).read_text(encoding='utf-8'))
  return {
    when: {
      name: held_out_lib.from_json(found[when])
      for name, found in content['sets'].items()
    }
    for when in ('before', 'after')
  }


def _settings(run: pathlib.Path) -> dict[str, Any]:
  content = json.loads((run / 'run.json').read_text(encoding='utf-8'))
  return content['config']
