"""Which tables does the page have? Extracts in, Markdown out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from me_jax.plotting import prose
from study import estimates


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a table."""
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join(f'| {" | ".join(map(_cell, line))} |' for line in lines)


def of(answer: Mapping[str, Any]) -> list[str]:
  """Returns the tables of a claim's answer, with what they show above each."""
  made = []
  for name, make in _MAKERS.items():
    if name in answer:
      made += make(answer[name])
  return made


def _masks(found: Mapping[str, Any]) -> list[str]:
  stock, changes = found['stock'], found['changes']
  rows = [
    ['stock (loss)', *(f'{one["loss"]:.3f}' for one in stock.values())],
    ['texts', *(f'{one["texts"]}' for one in stock.values())],
  ]
  for mask, by_corpus in changes.items():
    cells = [_interval(by_corpus.get(c), 'loss') for c in stock]
    rows.append([mask, *cells])
  chats = [c for c, one in stock.items() if one['chat']]
  answers = [
    [mask, *(_interval(by_corpus.get(c), 'answer') for c in chats)]
    for mask, by_corpus in changes.items()
  ]
  tables = [
    'Change of the loss on held-out texts, nats per token; the rows after the '
    'chosen and the published mask are controls.',
    markdown(['mask', *stock], rows),
  ]
  if chats:
    tables += [
      'The same of the answers alone.',
      markdown(['mask', *chats], answers),
    ]
  return tables


def _less(found: Mapping[str, Any]) -> list[str]:
  corpora = list(_first(found))
  rows = [
    [mask, *(_interval(by_corpus, c) for c in corpora)]
    for mask, by_corpus in found.items()
  ]
  return [
    'The chosen mask less each other one, paired by text, all tokens.',
    markdown(['less', *corpora], rows),
  ]


def _runs(found: Sequence[Mapping[str, Any]]) -> list[str]:
  header = ['set', 'texts', 'before', 'run', 'control', 'run less control']
  rows = [
    [
      one['set'] + ('' if one['on_task'] else ' (off task)'),
      str(one['texts']),
      *(f'{one[name]:.3f}' for name in ('before', 'run', 'control')),
      prose.interval(estimates.read(one['difference'])),
    ]
    for one in found
  ]
  return ['Held-out loss, nats per token.', markdown(header, rows)]


def _baked(found: Sequence[Mapping[str, Any]]) -> list[str]:
  header = ['corpus', 'mask', 'baked', 'divergence from the mask']
  rows = [
    [
      one['corpus'],
      *(
        prose.interval(estimates.read(one[name]), '+.4f')
        for name in ('mask', 'baked')
      ),
      f'{one["kl"]:.4f}',
    ]
    for one in found
  ]
  return ['Change of the loss, nats per token.', markdown(header, rows)]


def _tasks(found: Sequence[Mapping[str, Any]]) -> list[str]:
  header = [
    'task',
    'metric',
    'items',
    'stock',
    'relaxed',
    'difference',
    'p',
    '',
  ]
  rows = [
    [
      one['task'],
      one['metric'],
      str(one['items']),
      *(
        prose.interval(estimates.read(one[name]), form) if one[name] else ''
        for name, form in (
          ('stock', '.3f'), ('mitigated', '.3f'), ('difference', '+.3f'),
        )
      ),
      '' if one['p'] is None else f'{one["p"]:.2g}',
      one['verdict'],
    ]
    for one in found
  ]  # fmt: skip
  caption = (
    'Each metric, a share or nats per token. Losses are of the answers where texts'
    ' are chats, and of all tokens where they are plain.'
  )
  return [caption, markdown(header, rows)]


def _rounding(found: Mapping[str, Any]) -> list[str]:
  made = []
  variants = found['variants']
  others = [name for name in variants if name in _first(found['relief'])]
  for corpus, about in found['corpora'].items():
    texts = about['texts']
    header = ['rounded', *variants, *(f'{name} less stock' for name in others)]
    exact = [f'{found["loss"][corpus][name]["exact"]:.3f}' for name in variants]
    rows = [['nothing (loss)', *exact, *('' for _ in others)]]
    for condition in found['conditions']:
      cells = [
        _interval(found[what][corpus][name], condition)
        for what, names in (('cost', variants), ('relief', others))
        for name in names
      ]
      if any(cells):
        rows.append([condition, *cells])
    made += [
      f'{corpus}, {texts} texts: loss that rounding adds, nats per token. A '
      'scale is that of a tensor unless the row says otherwise; `stream` is the '
      'residual stream, `both` are weights and activations, and `fine` is a '
      'scale a token and an output channel.',
      markdown(header, rows),
    ]
  return made


def _interval(found: Mapping[str, Any] | None, name: str) -> str:
  if not found or found.get(name) is None:
    return ''
  return prose.interval(estimates.read(found[name]))


def _first(found: Mapping[str, Any]) -> Mapping[str, Any]:
  return next(iter(found.values()), {})


def _cell(text: str) -> str:
  return text.replace('|', r'\|')


_MAKERS = {
  'masks': _masks,
  'less': _less,
  'runs': _runs,
  'baked': _baked,
  'tasks': _tasks,
  'rounding': _rounding,
}
