"""`make bench`: the bars of the project, measured side by side.

Whole processes and workers of the two sides take turns, and medians are
quoted. Run it on a quiet machine; it takes most of an hour. Names of sections,
`python -m benchmarks generating`, measure those alone.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from rich import console as console_lib
from rich import table as table_lib

_ROUNDS = 5
# Of what a process that fails wrote to stderr.
_SHOWN_LINES = 8


def run(arguments: list[str], cache: pathlib.Path) -> tuple[float, float, str]:
  """Runs a process; returns its wall seconds, peak MB and output."""
  # A file and not a pipe, which would fill up unread.
  with tempfile.TemporaryFile('w+', errors='replace') as complaints:
    start = time.perf_counter()
    process = subprocess.Popen(
      [sys.executable, '-m', *arguments],
      stdout=subprocess.PIPE,
      stderr=complaints,
      env=os.environ | {'ME_JAX_CACHE': str(cache), 'HF_HUB_OFFLINE': '1'},
      text=True,
    )
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode:
      complaints.seek(0)
      last = ''.join(complaints.readlines()[-_SHOWN_LINES:])
      raise SystemExit(
        f'{" ".join(arguments)} exited {process.returncode}:\n{last}'
      )
  return wall, usage.ru_maxrss / 1024, output


def work(cache: pathlib.Path, *arguments: str) -> Any:
  """Runs a worker and returns what it measured."""
  output = run(['benchmarks.workers', *arguments], cache)[2]
  return json.loads(output.splitlines()[-1])


def whole_process(table: table_lib.Table, folder: str, cache: pathlib.Path):
  """Compares `me-jax find` with the PyTorch script as whole processes."""
  scratch = cache.parent
  out = str(scratch / 'report.json')
  ours = ['me_jax', 'find', f'--model={folder}', f'--json={out}']
  peer = ['benchmarks.torch_peer', folder, str(scratch / 'peer.json')]
  run(ours, cache)
  run(peer, cache)
  rounds = []
  for i in range(_ROUNDS):
    cold = run(ours, scratch / f'cold{i}')
    rounds.append((run(ours, cache), cold, run(peer, cache)))
  walls = np.array([[side[0] for side in r] for r in rounds])
  peaks = np.array([[side[1] for side in r] for r in rounds])
  with open(out) as ours, open(scratch / 'peer.json') as theirs:
    same = json.load(ours)['layer'] == json.load(theirs)['layer']
  if not same:
    raise SystemExit('the two sides disagree on the layer')
  wall, peak = np.median(walls, axis=0), np.median(peaks, axis=0)
  ratio = np.median(walls / walls[:, 2:], axis=0)
  row(table, 'find, whole process, warm', f'{wall[0]:.2f} s', f'{wall[2]:.2f} s',
      ratio[0], '<= 0.70')  # fmt: skip
  row(table, 'find, whole process, cold', f'{wall[1]:.2f} s', f'{wall[2]:.2f} s',
      ratio[1], '<= 1.00')  # fmt: skip
  row(table, 'find, peak memory', f'{peak[0]:.0f} MB', f'{peak[2]:.0f} MB',
      np.median(peaks[:, 0] / peaks[:, 2]), '<= 0.80')  # fmt: skip


def loading(table: table_lib.Table, folder: str, cache: pathlib.Path):
  """Compares loading safetensors and GGUF, in the default model's size."""
  rounds = [
    (
      work(cache, 'jax_safetensors', folder),
      work(cache, 'torch_safetensors', folder, 'copy'),
      work(cache, 'torch_safetensors', folder, 'assign'),
    )
    for _ in range(_ROUNDS)
  ]
  seconds = np.array([[side['seconds'] for side in r] for r in rounds])
  ours, copied, mapped = np.median(seconds, axis=0)
  row(table, 'loading safetensors, 0.5 GB', f'{ours:.3f} s',
      f'{copied:.3f} s', np.median(seconds[:, 0] / seconds[:, 1]),
      '<= 1.00')  # fmt: skip
  row(table, 'the same, into a model of the mapped file', f'{ours:.3f} s',
      f'{mapped:.3f} s', np.median(seconds[:, 0] / seconds[:, 2]), '')  # fmt: skip
  peak = np.median([r[0]['peak'] for r in rounds])
  row(table, 'peak memory of loading, parameters = 1', '', '', peak, '<= 1.30')
  kquants = str(cache / 'kquants.gguf')
  work(cache, 'kquant_file', kquants)
  for what, source in (
    ('loading the default GGUF', 'smollm2'),
    ('loading GGUF in K-quants', kquants),
  ):
    pairs = np.array(
      [
        (work(cache, 'jax_gguf', source), work(cache, 'torch_gguf', source))
        for _ in range(3)
      ]
    )
    ours, theirs = np.median(pairs, axis=0)
    row(table, what, f'{ours:.2f} s', f'{theirs:.2f} s',
        np.median(pairs[:, 1] / pairs[:, 0]), '>= 6')  # fmt: skip


def forward(table: table_lib.Table, folder: str, cache: pathlib.Path):
  """Compares forward passes with statistics."""
  pairs = [
    (work(cache, 'jax_forward', folder), work(cache, 'torch_forward', folder))
    for _ in range(3)
  ]
  for shape in pairs[0][0]:
    rates = np.array([[side[shape] for side in pair] for pair in pairs])
    ours, theirs = np.median(rates, axis=0)
    row(table, f'forward with statistics, {shape}', f'{ours:.0f} tok/s',
        f'{theirs:.0f} tok/s', np.median(rates[:, 0] / rates[:, 1]),
        '>= 1.0')  # fmt: skip


def statistics(table: table_lib.Table, folder: str, cache: pathlib.Path):
  """Says what the statistics cost on top of a forward pass."""
  for shape, found in work(cache, 'overhead', folder).items():
    row(table, f'statistics, time, {shape}', '', '', found['time'], '<= 1.05')
    row(table, f'statistics, FLOPs, {shape}', '', '', found['flops'], '<= 1.02')
    row(table, f'statistics, bytes, {shape}', '', '', found['bytes'], '<= 1.02')
  sizes = work(cache, 'depth', folder)
  shallow, deep = sizes.values()
  row(table, 'temporary memory, 64 against 8 layers', f'{deep / 1e6:.1f} MB',
      f'{shallow / 1e6:.1f} MB', deep / shallow, '<= 1.05')  # fmt: skip


def diagnosing(table: table_lib.Table, folder: str, cache: pathlib.Path):
  """Compares `diagnose`, and says what `diagnose` and `screen` take."""
  rounds = []
  for _ in range(3):
    sides = [
      run(['benchmarks.workers', f'{side}_diagnose', folder], cache)
      for side in ('jax', 'torch')
    ]
    rates = [json.loads(side[2].splitlines()[-1])['rate'] for side in sides]
    rounds.append((rates, [side[1] for side in sides]))
  found = np.array(rounds)
  (ours, theirs), (peak, other) = np.median(found, axis=0)
  ratios = np.median(found[..., 0] / found[..., 1], axis=0)
  row(table, 'diagnose, 8 x 512', f'{ours:.0f} tok/s', f'{theirs:.0f} tok/s',
      ratios[0], '>= 4')  # fmt: skip
  row(table, 'diagnose, peak memory', f'{peak:.0f} MB', f'{other:.0f} MB',
      ratios[1], '<= 0.35')  # fmt: skip
  row(table, 'diagnose, time of a forward pass, 1 x 1024', '', '',
      work(cache, 'diagnose_overhead', folder), '<= 1.5')  # fmt: skip
  few, many = (
    run(['benchmarks.workers', 'diagnose_texts', folder, count], cache)[1]
    # The sample of inputs, 48 at most, is full from then on.
    for count in ('64', '256')
  )
  row(table, 'diagnose, peak memory, 256 against 64 texts', f'{many:.0f} MB',
      f'{few:.0f} MB', many / few, '<= 1.05')  # fmt: skip
  shallow, deep = work(cache, 'diagnose_depth', folder).values()
  row(table, 'diagnose, temporary memory, 64 against 8 layers',
      f'{deep / 1e6:.1f} MB', f'{shallow / 1e6:.1f} MB', deep / shallow,
      '<= 1.05')  # fmt: skip
  seconds = work(cache, 'screen', folder)
  row(table, 'screen, seconds', f'{seconds:.2f} s', '', seconds, '<= 5')


def mitigating(table: table_lib.Table, folder: str, cache: pathlib.Path):
  """Says what a mask costs."""
  found = work(cache, 'mask_overhead', folder)
  row(table, 'a mask, time of a forward pass', '', '', found['time'], '<= 1.01')
  row(table, 'a mask, FLOPs', '', '', found['flops'], '<= 1.01')
  compiles = work(cache, 'sweep_compiles', folder)
  row(table, 'a sweep of 40 masks x 64 texts, compiles', str(compiles), '',
      compiles, '<= 3')  # fmt: skip


def generating(table: table_lib.Table, folder: str, cache: pathlib.Path):
  """Compares generation, and answers of differing lengths."""
  least = work(cache, 'floor', folder)
  for what, arguments, bar in (
    ('generate, batch 1', ('generate', '1'), '>= 1.25'),
    ('generate, batch 16', ('generate', '16'), '>= 1.5'),
    ('generate, batch 64', ('generate', '64'), '>= 1.5'),
    ('200 answers of differing lengths', ('answers',), '>= 3'),
  ):
    name, *rest = arguments
    rates = np.array(
      [
        [
          work(cache, f'{side}_{name}', folder, *rest)['rate']
          for side in ('jax', 'torch')
        ]
        for _ in range(3 if rest else 1)
      ]
    )
    ours, theirs = np.median(rates, axis=0)
    unit = 'tok/s' if rest else 'answers/s'
    row(table, what, f'{ours:.3g} {unit}', f'{theirs:.3g} {unit}',
        np.median(rates[:, 0] / rates[:, 1]), bar)  # fmt: skip
    if rest:
      count = int(rest[0])
      seconds = max(
        least['bytes'] / least['bandwidth'],
        count * least['flops'] / least['matmul'],
      )
      bound = count / seconds
      row(table, 'the same, of what memory and products allow',
          f'{ours:.3g} {unit}', f'{bound:.3g} {unit}', ours / bound, '')  # fmt: skip


def training(table: table_lib.Table, folder: str, cache: pathlib.Path):
  """Compares a step of fine-tuning, 4 x 512 tokens, and its parts."""
  sides = (
    ('jax_train', folder, 'full'),
    ('torch_train', folder),
    ('jax_train', folder, 'gates'),
  )
  # As `me-jax train` sets it for itself, for both sides.
  os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
  rounds = [[work(cache, *side) for side in sides] for _ in range(3)]
  del os.environ['GLIBC_TUNABLES']
  rates, peaks = (
    np.array([[side[name] for side in r] for r in rounds])
    for name in ('rate', 'peak')
  )
  (ours, theirs, gates), (peak, other, _) = (
    np.median(found, axis=0) for found in (rates, peaks)
  )
  row(table, 'a step of fine-tuning, all parameters', f'{ours:.0f} tok/s',
      f'{theirs:.0f} tok/s', np.median(rates[:, 0] / rates[:, 1]),
      '>= 1.1')  # fmt: skip
  row(table, 'the same, peak memory', f'{peak:.0f} MB', f'{other:.0f} MB',
      np.median(peaks[:, 0] / peaks[:, 1]), '<= 0.80')  # fmt: skip
  row(table, 'a step of gates, time of one of all parameters',
      f'{gates:.0f} tok/s', '', np.median(rates[:, 0] / rates[:, 2]),
      '<= 0.75')  # fmt: skip
  few, many = work(cache, 'loss_memory', folder).values()
  row(table, 'loss and gradient, temporary memory, 131,072 against 8,192 words',
      f'{many / 1e6:.2f} MB', f'{few / 1e6:.2f} MB', many / few,
      '<= 1.01')  # fmt: skip


def row(table, what: str, ours: str, other: str, ratio: float, bar: str):
  """Adds one line, marked where it misses its bar; '' is no bar."""
  sign, bound = bar.split() if bar else ('>=', '0')
  met = ratio <= float(bound) if sign == '<=' else ratio >= float(bound)
  table.add_row(what, ours, other, f'{ratio:.4g}', bar, '' if met else 'missed')
  print(f'{what}: {ours} | {other} | {ratio:.4g} | {bar}', file=sys.stderr)


SECTIONS = (
  whole_process, loading, forward, statistics, diagnosing, mitigating,
  generating, training,
)  # fmt: skip


def main() -> None:
  """Measures all sections, or those that are named, and prints the table."""
  known = {section.__name__: section for section in SECTIONS}
  wanted = sys.argv[1:] or [*known]
  for name in wanted:
    if name not in known:
      sys.exit(f'there is no section {name!r}: {", ".join(known)}')
  table = table_lib.Table(box=None, title='me_jax against PyTorch')
  for column in ('', 'me_jax', 'PyTorch or other', 'ratio', 'bar', ''):
    table.add_column(column)
  with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    folder = scratch / 'model'
    # In a process of its own: a child's peak memory starts at its parent's.
    work(scratch / 'warm', 'model_folder', str(folder))
    for name in wanted:
      known[name](table, str(folder), scratch / 'warm')
  console_lib.Console(width=110).print(table)
  print(f'{os.cpu_count()} cores, {platform.machine()}, '
        f'Python {platform.python_version()}')  # fmt: skip


if __name__ == '__main__':
  main()
