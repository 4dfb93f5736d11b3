"""Executes the notebooks of this folder and saves them with what they show.

  python colab/build.py                    rewrites the .ipynb beside the .py
  python colab/build.py --out=DIR 01 04    executes two of them into DIR

The .py files are what is written and reviewed. A notebook is its .py, executed
from the top in a fresh kernel. It is refused if a cell fails, writes to stderr,
or shows where it was run, and if all of it takes too long or is too large.
"""

from __future__ import annotations

import argparse
import base64
import getpass
import io
import pathlib
import re
import socket
import subprocess
import sys
import time

import jupytext
import nbclient
from nbclient import exceptions
import nbformat
from PIL import Image

FOLDER = pathlib.Path(__file__).resolve().parent
MOST_SECONDS = 180
MOST_BYTES = 700_000
# Seconds after which a cell is given up.
_HANGS = 600
_COLORS = 128
# What a reader's kernel may say anew; nothing of it is ours to keep.
_KERNEL = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
_PATHS = re.compile(r'/(?:home|root|tmp|work|Users|usr|opt|content|var)/[\w.]')
_ADDRESS = re.compile(r'at 0x[0-9a-f]{6,}')
_WARNING = re.compile(r'\w*Warning\b')


class NotebookError(Exception):
  """What is wrong with a notebook, in a line."""


def sources() -> list[pathlib.Path]:
  """Returns the notebooks' .py files, in order."""
  return sorted(FOLDER.glob('[0-9][0-9]_*.py'))


def read(source: pathlib.Path) -> nbformat.NotebookNode:
  """Returns the notebook of a .py, without outputs.

  Nothing in it changes from one reading to the next.
  """
  notebook = jupytext.read(source, fmt='py:percent')
  notebook.metadata = nbformat.NotebookNode(kernelspec=dict(_KERNEL))
  notebook.nbformat, notebook.nbformat_minor = 4, 5
  for number, cell in enumerate(notebook.cells):
    cell.id = f'cell-{number:02}'
    cell.metadata = nbformat.NotebookNode()
  return notebook


def execute(source: pathlib.Path) -> tuple[nbformat.NotebookNode, float]:
  """Runs a notebook from the top.

  Args:
    source: its .py.

  Returns:
    The notebook with its outputs, and how many seconds it took.

  Raises:
    NotebookError: a cell fails or takes too long.
  """
  notebook = read(source)
  client = nbclient.NotebookClient(
    notebook,
    timeout=_HANGS,
    kernel_name=_KERNEL['name'],
    record_timing=False,
    resources={'metadata': {'path': str(source.parent)}},
  )
  began = time.monotonic()
  try:
    # What cells write comes by another way; this is how the kernel says, each
    # time, that others on this machine could listen.
    with client.setup_kernel(stderr=subprocess.DEVNULL):
      for number, cell in enumerate(notebook.cells):
        _execute(client, notebook, cell, number, source)
  except exceptions.DeadKernelError as error:
    raise NotebookError(f'{source.name}: the kernel died') from error
  _normalize(notebook)
  return notebook, time.monotonic() - began


def problems(notebook: nbformat.NotebookNode) -> list[str]:
  """Returns what a reader should not see, a line each.

  Args:
    notebook: executed.
  """
  here = {str(pathlib.Path.home()), str(FOLDER.parent), socket.gethostname()}
  if getpass.getuser() != 'root':
    here.add(getpass.getuser())
  found = []
  for number, cell in enumerate(notebook.cells):
    if cell.cell_type != 'code':
      continue
    where = name_of(notebook, number)
    if cell.source.strip() and cell.execution_count is None:
      found.append(f'{where}: was not executed')
    for output in cell.outputs:
      if output.output_type == 'error':
        found.append(f'{where}: {output.ename}: {output.evalue}')
        continue
      text = text_of(output)
      if output.get('name') == 'stderr':
        found.append(f'{where}: writes to stderr: {text[:200]!r}')
      for pattern in (_PATHS, _ADDRESS, _WARNING):
        if match := pattern.search(text):
          found.append(f'{where}: shows {match.group()!r}')
      found += [
        f'{where}: shows {x!r}'
        for x in here
        if re.search(rf'(?<!\w){re.escape(x)}(?!\w)', text)
      ]
  return found


def text_of(output: nbformat.NotebookNode) -> str:
  """Returns what an output says in words, pictures left out."""
  if output.output_type == 'stream':
    return output.text
  data = output.get('data', {})
  return '\n'.join(
    data[kind] for kind in data if kind.startswith('text/') and data[kind]
  )


def name_of(notebook: nbformat.NotebookNode, number: int) -> str:
  """Names a cell by its number and the heading that it stands under."""
  heading = ''
  for cell in notebook.cells[:number]:
    lines = cell.source.splitlines() if cell.cell_type == 'markdown' else []
    headings = [line for line in lines if line.startswith('#')]
    heading = headings[-1].strip('# ') if headings else heading
  return f'cell {number + 1} ("{heading}")' if heading else f'cell {number + 1}'


def write(notebook: nbformat.NotebookNode, target: pathlib.Path) -> int:
  """Writes a notebook whole or not at all; returns its size in bytes.

  Raises:
    NotebookError: it is too large.
  """
  text = nbformat.writes(notebook) + '\n'
  size = len(text.encode())
  if size > MOST_BYTES:
    raise NotebookError(f'{target.name}: {size:,} bytes, over {MOST_BYTES:,}')
  partial = target.with_suffix('.partial')
  partial.write_text(text, encoding='utf-8')
  partial.replace(target)
  return size


def build(source: pathlib.Path, out: pathlib.Path) -> str:
  """Executes a notebook and writes it; returns a line on what came of it.

  Raises:
    NotebookError: a cell fails, shows what it should not, or all of it takes
      too long or is too large.
  """
  notebook, seconds = execute(source)
  if found := problems(notebook):
    raise NotebookError('\n'.join(f'{source.name}, {x}' for x in found))
  if seconds > MOST_SECONDS:
    raise NotebookError(
      f'{source.name}: took {seconds:.0f} s, over {MOST_SECONDS} s'
    )
  size = write(notebook, out / f'{source.stem}.ipynb')
  return f'{source.stem:<28} {seconds:4.0f} s  {size / 1000:4.0f} kB'


def _execute(
  client: nbclient.NotebookClient,
  notebook: nbformat.NotebookNode,
  cell: nbformat.NotebookNode,
  number: int,
  source: pathlib.Path,
) -> None:
  """Runs one cell, and says which one if it fails."""
  where = f'{source.name}, {name_of(notebook, number)}'
  try:
    client.execute_cell(cell, number)
  except exceptions.CellTimeoutError as error:
    raise NotebookError(f'{where}: over {_HANGS} s') from error
  except exceptions.CellExecutionError as error:
    print(error.traceback, file=sys.stderr)
    raise NotebookError(f'{where}: {error.ename}: {error.evalue}') from error


def _normalize(notebook: nbformat.NotebookNode) -> None:
  """Takes out what differs between two runs that show the same."""
  notebook.metadata = nbformat.NotebookNode(kernelspec=dict(_KERNEL))
  for cell in notebook.cells:
    cell.metadata = nbformat.NotebookNode()
    for output in cell.get('outputs', ()):
      if 'metadata' in output:
        output.metadata = nbformat.NotebookNode()
      # The same picture in words: "<Figure size 1100x425 with 2 Axes>".
      if 'image/png' in output.get('data', {}):
        output.data.pop('text/plain', None)
        output.data['image/png'] = _smaller(output.data['image/png'])


def _smaller(picture: str) -> str:
  """Returns a PNG, in base64, with as many colours as a figure needs."""
  with Image.open(io.BytesIO(base64.b64decode(picture))) as whole:
    # Dithering would make noise of what is one colour.
    few = whole.convert('RGB').quantize(_COLORS, dither=Image.Dither.NONE)
  smaller = io.BytesIO()
  few.save(smaller, 'png', optimize=True)
  return base64.b64encode(smaller.getvalue()).decode()


def main() -> None:
  """Executes what the command line names, or all."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=pathlib.Path, default=FOLDER)
  parser.add_argument('names', nargs='*', help='how the names begin, as 01')
  args = parser.parse_args()
  for name in args.names:
    if not any(source.name.startswith(name) for source in sources()):
      here = ', '.join(source.stem for source in sources())
      print(f'no notebook begins with {name}, only {here}', file=sys.stderr)
      sys.exit(2)
  chosen = [
    source
    for source in sources()
    if not args.names or source.name.startswith(tuple(args.names))
  ]
  args.out.mkdir(parents=True, exist_ok=True)
  failed = False
  for source in chosen:
    try:
      print(build(source, args.out), flush=True)
    except NotebookError as error:
      failed = True
      print(error, file=sys.stderr, flush=True)
  sys.exit(1 if failed else 0)


if __name__ == '__main__':
  main()
