"""`make bench`: the bars of the project, measured side by side.

Processes of the two sides take turns, and medians are quoted. On two quiet
cores it took 69 minutes. Names of sections measure those
alone and replace their rows in docs/benchmarks.json; docs/benchmarks.md follows.
The exit status is 1 if a bar is missed or a section fails.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import dataclasses
import pathlib
import shlex
import sys
import tempfile

from rich import console as console_lib
from rich import table as table_lib

from benchmarks import page
from benchmarks import processes
from benchmarks import results
from benchmarks import rows as rows_lib
from benchmarks import sections
from me_jax import errors
from me_jax import files

_ROUNDS = 3
_PACKAGES = ('jax', 'jaxlib', 'flax', 'torch', 'transformers', 'numpy')


def main(arguments: Sequence[str]) -> int:
  """Measures all sections, or those that are named, and prints a table.

  Args:
    arguments: of the command line.

  Returns:
    The exit status: 1 if a bar is missed or a section fails, 2 for a mistake of
    the user's.
  """
  flags = _parser().parse_args(arguments)
  path = flags.json or (None if flags.quick else results.DOCS)
  try:
    _check(flags.sections, flags.rounds, path)
  except errors.MeJaxError as error:
    print(f'benchmarks: {error}', file=sys.stderr)
    return 2
  command = shlex.join(['python', '-m', 'benchmarks', *arguments])
  before = results.load_average()
  measured, failed = [], []
  with tempfile.TemporaryDirectory() as folder:
    scratch = pathlib.Path(folder)
    bench = processes.Bench(
      folder=str(scratch / 'model'),
      scratch=scratch,
      rounds=flags.rounds or (1 if flags.quick else _ROUNDS),
      quick=flags.quick,
    )
    for name in flags.sections or sections.SECTIONS:
      try:
        speed, rows = _section(name, bench)
      except processes.Failed as error:
        print(f'{name} failed: {error}', file=sys.stderr, flush=True)
        failed.append(name)
        continue
      measured += rows
      if path:
        record = results.record(
          [row.to_json() for row in rows],
          command=command,
          load_average=before,
          speed=speed,
          packages=_PACKAGES,
        )
        results.put(path, 'sections', name, record)
  _show(measured)
  for name in failed:
    print(f'failed, and keeps the rows it had: {name}')
  if path and path.resolve() == results.DOCS.resolve():
    page.write()
  missed = any(row.met is False for row in measured)
  return int(missed or bool(failed))


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks', description=__doc__
  )
  parser.add_argument(
    '--quick',
    action='store_true',
    help='one round of the smallest sizes, to see that it runs: no bars, and'
    ' nothing written without --json',
  )
  parser.add_argument('--rounds', type=int, help=f'of taking turns: {_ROUNDS}')
  parser.add_argument(
    '--json', type=pathlib.Path, help='write rows there, not to docs'
  )
  parser.add_argument('sections', nargs='*', help=', '.join(sections.SECTIONS))
  return parser


def _check(
  names: Sequence[str], rounds: int | None, path: pathlib.Path | None
) -> None:
  """Raises MeJaxError for what cannot be measured or written."""
  for name in names:
    if name not in sections.SECTIONS:
      known = ', '.join(sections.SECTIONS)
      raise errors.MeJaxError(f'there is no section {name!r}, only {known}.')
  if rounds is not None and rounds < 1:
    raise errors.MeJaxError(f'--rounds is {rounds}, must be at least 1.')
  if path:
    files.check_writable(path)
    results.load(path)


def _section(
  name: str, bench: processes.Bench
) -> tuple[dict[str, float], list[rows_lib.Row]]:
  """Returns the machine's speed before a section, and the section's rows."""
  if not pathlib.Path(bench.folder).exists():
    # In a process of its own: a child's peak memory starts at its parent's.
    bench.work('model_folder', bench.folder)
  speed = bench.work('speed')
  rows = []
  for row in sections.SECTIONS[name](bench):
    if bench.quick:
      # Bars are for the full sizes.
      row = dataclasses.replace(row, bar=None)
    print(' | '.join(page.cells(row)), file=sys.stderr, flush=True)
    rows.append(row)
  return speed, rows


def _show(rows: Sequence[rows_lib.Row]) -> None:
  console = console_lib.Console(highlight=False)
  if not console.is_terminal:
    console = console_lib.Console(highlight=False, width=140)
  table = table_lib.Table(box=None, title='me_jax against PyTorch')
  for column in page.COLUMNS:
    table.add_column(column)
  for row in rows:
    table.add_row(*page.cells(row))
  console.print(table)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
