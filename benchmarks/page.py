"""Writes docs/benchmarks.md, its figure and README's table from the results.

`make bench-page`. `--readme` prints the table of README.md, `--readme --write`
puts it between the two marks there; without flags all three are written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
import sys
from typing import Any

from benchmarks import figure
from benchmarks import plan
from benchmarks import results
from benchmarks import rows as rows_lib
from benchmarks import sections
from me_jax import errors
from me_jax import files

PAGE = results.DOCS.with_suffix('.md')
FIGURE = results.DOCS.with_suffix('.png')
README = results.ROOT / 'README.md'
BEGIN, END = '<!-- benchmarks -->', '<!-- /benchmarks -->'
COLUMNS = (
  'measurement', 'me_jax', 'other', 'ratio', 'rounds', 'least to most', 'bar',
  'result',
)  # fmt: skip

_FOREWORD = """\
# Benchmarks

me_jax beside PyTorch, and beside itself where a bar says so. This page is
rendered from [benchmarks.json](benchmarks.json) by `make bench-page`; no number
in it was typed.

`make bench` measures the sections again, `python -m benchmarks NAME` one of them;
`make plan-bench` compiles the plans.

- The two sides never share a process. Their processes take turns, round by round,
  so that a machine that slows down slows both; a round's ratio is ours over the
  other's of the same round. Quoted are the median over rounds, and the least and
  the most.
- Where PyTorch is the other side it is Hugging Face's implementation, with all
  threads unless the row says otherwise; with forward hooks where statistics are
  taken. Both sides load the same weights, the default model's, in float32.
- For seconds and memory a ratio below one is good for me_jax, for rates one above.
- A bar is what the project asks of the ratio, or of the number where there is no
  other side. Rows without a bar are there to be read.
- How fast the machine multiplied matrices before each section, and how much it had
  to do before the command began, stand below each table. The numbers are for a
  quiet machine: a load near its cores means that others were computing, too.
"""


def render(found: results.Results) -> str:
  """Returns the page."""
  parts = [_FOREWORD, _summary(found)]
  if figure.points(peers(found)):
    parts.append(
      f'![how many times as good as PyTorch, by measurement]({FIGURE.name})\n'
    )
  for name, section in sections.SECTIONS.items():
    if name in found['sections']:
      record = found['sections'][name]
      table = _table(COLUMNS, map(cells, _rows(record)))
      title = name.replace('_', ' ').capitalize()
      about = '\n'.join(line.strip() for line in section.__doc__.splitlines())
      parts.append(
        f'## {title}\n\n{about.strip()}\n\n{table}\n{_origin(record)}\n'
      )
  if found['plans']:
    parts.append(_plans(found['plans']))
  return '\n'.join(parts)


def readme(found: results.Results) -> str:
  """Returns README's table: the rows that have PyTorch beside them."""
  shown = [
    [row.what, _amount(row.ours, row.unit), _amount(row.other, row.unit),
     f'{row.ratio:.3g}', _spread(row)]
    for row in peers(found)
  ]  # fmt: skip
  records = [
    record
    for record in found['sections'].values()
    if any(row.peer for row in _rows(record))
  ]
  header = ('measurement', 'me_jax', 'PyTorch', 'ratio', 'least to most')
  table = _table(header, shown)
  days = sorted({record['when'].split()[0] for record in records})
  measured = ' to '.join(dict.fromkeys([days[0], days[-1]])) if days else ''
  places = ' and '.join(sorted({_machine(record) for record in records}))
  return f'{table}\nMeasured {measured} on {places}.\n' if days else table


def peers(found: results.Results) -> list[rows_lib.Row]:
  """Returns the rows that have PyTorch beside them, in the sections' order."""
  return [
    row
    for name in sections.SECTIONS
    for row in _rows(found['sections'].get(name, {'rows': ()}))
    if row.peer
  ]


def cells(row: rows_lib.Row) -> list[str]:
  """Returns a row's cells under `COLUMNS`."""
  sign = '≤' if row.better == 'less' else '≥'
  result = {None: '', True: 'met', False: '**missed**'}[row.met]
  return [
    row.what,
    _amount(row.ours, row.unit),
    _amount(row.other, row.unit),
    _number(row.ratio),
    str(row.rounds or ''),
    _spread(row),
    '' if row.bar is None else f'{sign} {row.bar:.3g}',
    result,
  ]


def _spread(row: rows_lib.Row) -> str:
  """Spells the least and the largest ratio of several rounds."""
  if not row.rounds or row.rounds == 1:
    return 'one round' if row.rounds else ''
  return ' to '.join(map(_number, row.spread))


def replaced(text: str, table: str) -> str:
  """Returns a text with the table between the two marks.

  Raises:
    MeJaxError: the text does not have both, once, in that order.
  """
  before, begin, rest = text.partition(BEGIN)
  _, end, after = rest.partition(END)
  if not begin or not end or BEGIN in rest or END in after:
    raise errors.MeJaxError(
      f'{README.name} needs one {BEGIN} and one {END} after it.'
    )
  return f'{before}{BEGIN}\n{table}{END}{after}'


def write() -> None:
  """Writes the page, the figure and README's table.

  Raises:
    MeJaxError: README.md lacks the table's marks, or one cannot be written.
  """
  found = results.load(results.DOCS)
  _write_readme(found)
  files.write_text(PAGE, render(found))
  figure.write(peers(found), FIGURE)


def _write_readme(found: results.Results) -> None:
  text = README.read_text('utf-8')
  files.write_text(README, replaced(text, readme(found)))


def _rows(record: dict[str, Any]) -> list[rows_lib.Row]:
  return [rows_lib.Row.from_json(values) for values in record['rows']]


def _summary(found: results.Results) -> str:
  """Says how many bars are met, and which are not."""
  judged = [
    row
    for kind in results.KINDS
    for record in found[kind].values()
    for row in record['rows']
    if row['met'] is not None
  ]
  if not judged:
    return 'No bar was measured.\n'
  missed = [row['what'] for row in judged if not row['met']]
  text = f'**{len(judged) - len(missed)} of {len(judged)} bars are met.**'
  if missed:
    text += ' Missed:\n\n' + '\n'.join(f'- {what}' for what in missed)
  return f'{text}\n'


def _plans(plans: dict[str, dict[str, Any]]) -> str:
  """Returns the section of plans; bars of one origin share its line."""
  lines, origins = [], {}
  for name in plan.BARS:
    if name in plans:
      for row in plans[name]['rows']:
        result = {None: '', True: 'met', False: '**missed**'}[row['met']]
        lines.append([row['what'], row['measured'], row['bar'], result])
      origins.setdefault(_origin(plans[name]), []).append(name)
  table = _table(('what', 'measured', 'bar', 'result'), lines)
  about = '\n'.join(
    f'{", ".join(names)}: {origin}\n' for origin, names in origins.items()
  )
  return (
    '## Plans for pods\n\nCompiled for TPU pods by their own compiler, on the'
    f' machine below; no pod was there.\n\n{table}\n{about}'
  )


def _origin(record: dict[str, Any]) -> str:
  """Returns when, where and with what a record was measured, in a line."""
  versions = ', '.join(f'{n} {v}' for n, v in record['versions'].items())
  speed = record['speed']
  return (
    f'{record["when"]}, `{record["command"]}`, on {_machine(record)}, which'
    f' multiplied matrices at {speed["gflops"]:.0f} GFLOP/s and read memory at'
    f' {speed["gbytes"]:.0f} GB/s; load average before'
    f' {record["load_average"]:.2f}; {versions}.'
  )


def _machine(record: dict[str, Any]) -> str:
  one = record['machine']
  return (
    f'{one["cores"]} cores of {one["cpu"]} with {one["memory"]:.0f} GiB'
    f' ({one["system"]})'
  )


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
  rule = ['---'] * len(columns)
  return ''.join(
    f'| {" | ".join(line)} |\n' for line in (columns, rule, *lines)
  )


def _amount(value: float | None, unit: str) -> str:
  return '' if value is None else f'{_number(value)} {unit}'.strip()


def _number(value: float | None) -> str:
  if value is None:
    return ''
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def main(arguments: Sequence[str]) -> int:
  """Writes or prints; returns 2 for a mistake of the user's."""
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.page', description=__doc__
  )
  parser.add_argument('--readme', action='store_true', help="README's table")
  parser.add_argument('--write', action='store_true', help='into README.md')
  flags = parser.parse_args(arguments)
  try:
    if not flags.readme:
      write()
    elif flags.write:
      _write_readme(results.load(results.DOCS))
    else:
      print(readme(results.load(results.DOCS)), end='')
  except errors.MeJaxError as error:
    print(f'benchmarks.page: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
