"""`python -m study.page`: how do extracts become a page?

A page at `docs/study.md` is written from all extracts in `docs/study`, in the
order of their names; nothing else is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import pathlib
import sys
import textwrap
from typing import Any

from me_jax import errors
from me_jax import files
from me_jax.plotting import prose
from study import claims as claims_lib
from study import collect
from study import options as options_lib
from study import paired
from study import tables
from study import words

PAGE = 'docs/study.md'
_HASH, _CODE = 12, 8  # characters of a hash that are shown
_LINE = 80  # characters of a command
_WHOLE = {'break_long_words': False, 'break_on_hyphens': False}


def folder_of(page: pathlib.Path) -> pathlib.Path:
  """Returns where a page's extracts and figures are."""
  return page.with_suffix('')


def read(page: pathlib.Path) -> list[dict[str, Any]]:
  """Reads a page's extracts.

  Raises:
    MeJaxError: there is none.
  """
  paths = sorted(folder_of(page).glob('*.json'))
  if not paths:
    raise errors.MeJaxError(
      f'{folder_of(page)} holds no extract: run python -m study first.'
    )
  return [extract(path) for path in paths]


def extract(path: pathlib.Path) -> dict[str, Any]:
  """Reads what one model's steps have left.

  To a claim that is younger than the extract there is no answer. What two runs, or a
  baked mask, say is told by the rules of today, from the rows that are kept.
  """
  found = json.loads(path.read_text(encoding='utf-8'))
  younger = {'verdict': collect.NOT_TESTED, 'why': words.YOUNGER}
  for claim in claims_lib.CLAIMS:
    answer = found['claims'].setdefault(claim.name, younger)
    answer |= paired.again(claim.name, answer)
  return found


def render(studies: Sequence[Mapping[str, Any]], folder: str) -> str:
  """Returns the page.

  Args:
    studies: the extracts.
    folder: of the figures, as a link from the page.
  """
  parts = [
    f'# {words.TITLE}',
    words.GENERATED,
    *([words.QUICK] if any(one['quick'] for one in studies) else []),
    '## Abstract',
    _abstract(studies),
    '## Summary',
    _summary(studies),
    words.SUMMARY,
    '## Words',
    *(f'- {word}' for word in words.GLOSSARY),
    '## Methods',
    words.METHODS,
    *_methods(studies),
    '## Results',
    *_results(studies, folder),
    '## Limits',
    *(f'- {limit}' for limit in words.LIMITS),
    '## What was not tested',
    *_untested(studies),
    '## References',
    *(f'- {work}' for work in words.REFERENCES),
    '## Again',
    words.AGAIN,
  ]
  lines: list[str] = []
  for before, part in zip(['', *parts], parts):
    # The items of one list belong together.
    if lines and not (before.startswith('- ') and part.startswith('- ')):
      lines.append('')
    lines.append(part)
  return '\n'.join(lines) + '\n'


def _abstract(studies: Sequence[Mapping[str, Any]]) -> str:
  count = {
    paper: sum(claim.paper == paper for claim in claims_lib.CLAIMS)
    for paper in (True, False)
  }
  outcomes = [
    words.HEADLINE.format(model=_model(one), headline=_lower(one['headline']))
    * bool(one['headline'])
    + words.OUTCOME.format(
      model=_model(one), paper=_counted(one, True), own=_counted(one, False)
    )
    for one in studies
  ]
  return words.ABSTRACT.format(
    paper=words.PAPER,
    paper_claims=count[True],
    own_claims=count[False],
    models=prose.listed([_sized(one) for one in studies]),
    outcomes=' '.join(outcomes),
  )


def _counted(study: Mapping[str, Any], paper: bool) -> str:
  """Says how many claims have which verdict, and which they are."""
  said = []
  for verdict in words.VERDICTS:
    labels = [
      _lower(claim.label)
      for claim in claims_lib.CLAIMS
      if claim.paper == paper
      and study['claims'][claim.name]['verdict'] == verdict
    ]
    if labels:
      verb = words.COUNTED[verdict][len(labels) > 1]
      said.append(f'{len(labels)} {verb} ({"; ".join(labels)})')
  return prose.listed(said)


def _lower(label: str) -> str:
  return label[:1].lower() + label[1:]


def _model(study: Mapping[str, Any]) -> str:
  return f'`{study["name"]}`'


def _sized(study: Mapping[str, Any]) -> str:
  """Returns a model's name and how large it is, where that is known."""
  count = study['about'].get('parameters')
  if not count:
    return _model(study)
  size = (
    f'{count / 1e9:.3g} billion'
    if count >= 1e9
    else f'{count / 1e6:.0f} million'
  )
  return words.MODEL.format(model=_model(study), size=size)


def _summary(studies: Sequence[Mapping[str, Any]]) -> str:
  rows = []
  for claim in claims_lib.CLAIMS:
    verdicts = [
      words.VERDICTS[one['claims'][claim.name]['verdict']] for one in studies
    ]
    link = f'[{claim.label}](#{claim.name})'
    rows.append([link, 'the paper' if claim.paper else 'beyond it', *verdicts])
  return tables.markdown(['claim', 'of', *map(_model, studies)], rows)


def _methods(studies: Sequence[Mapping[str, Any]]) -> list[str]:
  parts = []
  for one in studies:
    parts.append(f'### {one["name"]}')
    if one['headline']:
      parts.append(one['headline'])
    cards = one['steps'].values()
    commands = [
      # A shell reads it as one line.
      ' \\\n    '.join(textwrap.wrap(card['command'], _LINE, **_WHOLE))
      for card in cards
      if 'command' in card
    ]
    parts.append('```text\n' + '\n'.join(commands) + '\n```')
    rows = [
      [
        card['name'],
        card['status'],
        f'{card["seconds"]:.0f}' if 'seconds' in card else '',
        f'{card["load"]}' if 'load' in card else '',
        card.get('started', ''),
        card.get('source', '')[:_CODE],
      ]
      for card in cards
    ]
    header = ['step', 'status', 'seconds', 'load', 'begun (UTC)', 'code']
    parts.append(tables.markdown(header, rows))
    parts += _machines(one)
    parts += _texts(one)
    versions = {v: None for card in cards for v in _versions(card)}
    parts.append(words.VERSIONS.format(versions='; or '.join(versions)))
  return [*parts, words.INTERVALS]


def _machines(study: Mapping[str, Any]) -> list[str]:
  """Says where steps ran, a sentence a machine."""
  found = []
  for card in study['steps'].values():
    one = card.get('machine')
    if one and one not in found:
      found.append(one)
  if not found:
    return []
  places = '; or '.join(words.MACHINE.format(**one) for one in found)
  return [words.MACHINES.format(name=_model(study), machines=places)]


def _texts(study: Mapping[str, Any]) -> list[str]:
  about = study['about']
  if not about:
    return []
  template = words.TEXTS_DATA if study['data'] else words.TEXTS_BUILTIN
  return [
    template.format(
      prompts=about['prompts'],
      count=about['prompt_count'],
      prompt_hash=about['prompts_sha256'][:_HASH],
      data=study['data'],
      data_hash=(study['data_sha256'] or '')[:_HASH],
    ),
    words.NUMERICS.format(
      precision=about['matmul_precision'],
      **{n: about[n] for n in ('dtype', 'attention', 'device', 'seed')},
    ),
    *(
      [words.WEIGHTS.format(weights=about['weights'])]
      if 'weights' in about
      else []
    ),
  ]


def _versions(card: Mapping[str, Any]) -> list[str]:
  found = card.get('versions')
  return [', '.join(f'{n} {v}' for n, v in found.items())] if found else []


def _results(studies: Sequence[Mapping[str, Any]], folder: str) -> list[str]:
  parts = []
  for claim in claims_lib.CLAIMS:
    parts.append(f'<a id="{claim.name}"></a>\n\n### {claim.label}')
    said = [one['claims'][claim.name] for one in studies]
    text = next((answer['claim'] for answer in said if 'claim' in answer), '')
    if text:
      parts.append(f'*Claim.* {text}')
    parts.append(f'*Verdict.* {claim.rule}')
    for one, answer in zip(studies, said):
      if len(studies) > 1:
        parts.append(f'#### {one["name"]}')
      parts += _answer(claim, one, answer, folder)
  return parts


def _answer(
  claim: claims_lib.Claim,
  study: Mapping[str, Any],
  answer: Mapping[str, Any],
  folder: str,
) -> list[str]:
  """Says what a model answered to a claim."""
  if 'finding' not in answer:
    return [words.NOT_TESTED.format(why=answer['why'])]
  parts = [
    f'**{_upper(words.VERDICTS[answer["verdict"]])}.** {answer["finding"]}',
    f'*Control.* {answer["control"]}',
    *(f'*{words.REMARK}* {remark}' for remark in _remarks(claim, study)),
  ]
  for name, file in answer['figures'].items():
    caption = claim.figures[name]
    parts += [f'![{caption}]({folder}/{file})', f'*{study["name"]}. {caption}*']
  return parts + tables.of(answer)


def _remarks(claim: claims_lib.Claim, study: Mapping[str, Any]) -> list[str]:
  """Says what to keep in mind while reading an answer."""
  left_out = study['tasks_left_out'] if claim.section == 'evaluation' else ()
  return [
    *([claim.remark] if claim.remark else []),
    *(
      [words.LEFT_OUT.format(tasks=prose.listed(left_out))] if left_out else []
    ),
  ]


def _upper(text: str) -> str:
  return text[0].upper() + text[1:]


def _untested(studies: Sequence[Mapping[str, Any]]) -> list[str]:
  said = [f'- {one}' for one in words.NEVER_TESTED]
  for one in studies:
    left_out = one['tasks_left_out']
    if left_out:
      said.append(f'- {_model(one)}: the tasks {prose.listed(left_out)}.')
    labels: dict[str, list[str]] = {}
    for claim in claims_lib.CLAIMS:
      answer = one['claims'][claim.name]
      if answer['verdict'] == collect.NOT_TESTED:
        # What a report says of it begins with the reason.
        why = answer.get('why') or answer['finding'].split('. ')[0]
        labels.setdefault(why.rstrip('.'), []).append(_lower(claim.label))
    said += [
      f'- {_model(one)}, {"; ".join(which)}: {why}.'
      for why, which in labels.items()
    ]
  return said


def write(page: pathlib.Path) -> None:
  """Writes a page from its extracts.

  Raises:
    MeJaxError: there are none, or it cannot be written.
  """
  files.write_text(page, render(read(page), folder_of(page).name))


def main(argv: list[str] | None = None) -> None:
  """Writes the page again."""
  parser = options_lib.Parser(
    prog='python -m study.page', description=__doc__, allow_abbrev=False
  )
  parser.add_argument('--page', default=PAGE, help='the page.')
  page = pathlib.Path(parser.parse_args(argv).page)
  write(page)
  print(f'wrote {page}')


if __name__ == '__main__':
  try:
    main()
  except errors.MeJaxError as error:
    print(f'study.page: {error}', file=sys.stderr)
    sys.exit(2)
