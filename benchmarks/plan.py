"""`make plan-bench`: what is claimed of pods, by the TPU's own compiler.

Each bar is compiled in a process of its own, one after the other; two cores
need most of half an hour, and less than 20 GB of memory. `--quick` leaves out
what takes over a minute, names of bars measure those alone and replace their
rows in docs/benchmarks.json. Nothing is taken from what was compiled before.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import dataclasses
import importlib.util
import json
import os
import pathlib
import resource
import shlex
import sys
from typing import Any

from benchmarks import processes
from benchmarks import results
from me_jax import errors
from me_jax import files

_GIB = 2**30
_8B, _70B = 'meta-llama/Llama-3.1-8B', 'meta-llama/Llama-3.1-70B'
_CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'

# Whose versions matter.
_PACKAGES = ('jax', 'jaxlib', 'libtpu', 'flax', 'numpy')

# Name, whether it takes less than a minute, and the topology that it is for.
BARS = {
  'analysis': (True, 'v5e-64'),
  'grpo': (False, 'v5e-64'),
  '8b': (False, 'v5e-256'),
  'layers': (False, 'v5e-256'),
  'rows': (False, 'v5e-256'),
  '70b v5p': (False, 'v5p:8x8x8'),
  '70b v6e': (False, 'v6e-256'),
}


def main(arguments: Sequence[str]) -> int:
  """Measures bars and prints a table.

  Args:
    arguments: of the command line.

  Returns:
    The exit status: 1 if a bar is missed or could not be measured, 2 for a
    mistake of the user's.
  """
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.plan', description=__doc__
  )
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--worker', help='internal: one bar, in this process')
  parser.add_argument(
    '--json', type=pathlib.Path, default=results.DOCS, help='where rows go'
  )
  parser.add_argument('bars', nargs='*', help=', '.join(BARS))
  flags = parser.parse_args(arguments)
  if flags.worker:
    print(json.dumps(_work(flags.worker)))
    return 0
  try:
    _check(flags.bars, flags.json)
  except errors.MeJaxError as error:
    print(f'plan-bench: {error}', file=sys.stderr)
    return 2
  before = results.load_average()
  command = shlex.join(['python', '-m', 'benchmarks.plan', *arguments])
  rows, failed = [], []
  for name, (quick, _) in BARS.items():
    if (flags.bars and name not in flags.bars) or (flags.quick and not quick):
      continue
    print(f'compiling {name} ...', file=sys.stderr, flush=True)
    try:
      # JAX would look for a TPU here.
      speed = processes.run(
        ('benchmarks.workers', 'speed'), JAX_PLATFORMS='cpu'
      ).value
      found = _measured(name)
    except processes.Failed as error:
      print(f'{name} failed: {error}', file=sys.stderr, flush=True)
      failed.append(name)
      continue
    rows += found
    record = results.record(
      found, command=command, load_average=before, speed=speed,
      packages=_PACKAGES,
    )  # fmt: skip
    results.put(flags.json, 'plans', name, record)
  _show(rows)
  for name in failed:
    print(f'failed, and keeps the rows it had: {name}')
  if flags.json.resolve() == results.DOCS.resolve():
    # It renders these bars, too.
    from benchmarks import page

    page.write()
  missed = any(row['met'] is False for row in rows)
  return int(missed or bool(failed))


def _check(bars: Sequence[str], path: pathlib.Path) -> None:
  """Raises MeJaxError for what cannot be measured or written."""
  for name in bars:
    if name not in BARS:
      raise errors.MeJaxError(
        f'there is no bar {name!r}, only {", ".join(BARS)}.'
      )
  if importlib.util.find_spec('libtpu') is None:
    raise errors.MeJaxError(
      "the TPU compiler is missing: pip install 'me-jax[tpu]'"
    )
  files.check_writable(path)
  results.load(path)


def _measured(name: str) -> list[dict[str, Any]]:
  """Returns the rows of a bar, measured in a process of its own."""
  done = processes.run(('benchmarks.plan', '--worker', name))
  found = done.value
  gib = found['memory'] / _GIB
  print(
    f'{name}: {done.wall:.0f} s, {gib:.1f} GiB', file=sys.stderr, flush=True
  )
  bar, memory = '< 20 GiB', f'{gib:.1f} GiB'
  return [
    *found['rows'],
    _row(f'{name}: memory of the compiler', memory, gib < 20, bar),
  ]


def _show(rows: list[dict[str, Any]]) -> None:
  from rich import console as console_lib
  from rich import table as table_lib

  console = console_lib.Console(highlight=False)
  if not console.is_terminal:
    console = console_lib.Console(highlight=False, width=140)
  table = table_lib.Table(title='Plans, by the compiler')
  for column in ('what', 'measured', 'bar', ''):
    table.add_column(column)
  for row in rows:
    met = {None: '', True: 'met', False: 'MISSED'}[row['met']]
    table.add_row(row['what'], row['measured'], row['bar'], met)
  console.print(table)


def _row(
  what: str, measured: str, met: bool | None, bar: str = ''
) -> dict[str, Any]:
  """Returns a row; `met` is None where there is no bar."""
  met = None if met is None else bool(met)
  return {'what': what, 'measured': measured, 'met': met, 'bar': bar}


def _work(name: str) -> dict[str, Any]:
  """Measures a bar in this process."""
  from me_jax.planning import topology as topology_lib

  place = topology_lib.find(BARS[name][1])
  # Before JAX is imported.
  os.environ.update(topology_lib.environment(place))
  rows = {
    'analysis': _analysis,
    'grpo': _grpo,
    '8b': _small,
    'layers': _layers,
    'rows': _halved,
    '70b v5p': lambda place: _large(place, rows=512),
    '70b v6e': lambda place: _large(place, rows=256),
  }[name](place)
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return {'rows': rows, 'memory': used}


def _sft(model: str, rows: int, **mesh: int) -> Any:
  from me_jax.training import data
  from me_jax.training import settings
  from me_jax.training import trained

  return settings.Run(
    model=model,
    data=settings.Data(mix=data.Mix(sources=()), length=4096, batch=rows),
    train=trained.Trained(parts=('full',)),
    steps=1000,
    compute=settings.Compute(
      dtype='bfloat16',
      remat='full',
      attention_chunk=1024,
      vocabulary_chunk=16384,
    ),
    mesh=settings.Mesh(**mesh),
  )


def _plan(run: Any, place: Any, what: str, config: Any = None, **shape: int):
  """Returns what is planned, by name."""
  from me_jax.planning import known_models
  from me_jax.planning import plan
  from me_jax.planning import workload

  config = config or known_models.config_of(run.model)
  mesh = workload.mesh_of(run, place)
  targets = workload.targets(run, config, place, mesh, (what,), **shape)
  found = plan.make(targets, model=run.model, topology=place)
  return {one.name: one for one in found.programs}


def _needs(what: str, one: Any, most: float | None = None) -> dict[str, Any]:
  """Returns the row of a program that must fit."""
  text = f'{one.peak / _GIB:.2f} of {one.hbm / _GIB:.1f} GiB a chip'
  met = one.fits and (most is None or one.peak <= most * _GIB)
  return _row(f'{what}: memory', text, met, f'≤ {most} GiB' if most else 'fits')


def _sound(what: str, *programs: Any) -> dict[str, Any]:
  found = [line for one in programs for line in one.findings]
  text = '; '.join(found) or 'none'
  return _row(f'{what}: findings', text, not found, 'none')


def _small(place: Any) -> list[dict[str, Any]]:
  step = _plan(_sft(_8B, 256), place, 'step')['step']
  what = f'{_8B} SFT, 256 × 4096 tokens, {place.name}'
  mfu = step.utilization or 0.0
  return [
    _needs(what, step, 12),
    _row(f'{what}: MFU bound', f'{mfu:.0%}', mfu >= 0.4, '≥ 40%'),
    _row(f'{what}: step', f'{step.best:.2f} to {step.worst:.2f} s', None),
    _row(
      f'{what}: compiled in', f'{step.seconds:.0f} s', step.seconds <= 120,
      '≤ 120 s',
    ),
    _sound(what, step),
  ]  # fmt: skip


def _large(place: Any, *, rows: int) -> list[dict[str, Any]]:
  step = _plan(_sft(_70B, rows), place, 'step')['step']
  what = f'{_70B} SFT, {rows} × 4096 tokens, {place.name}'
  return [_needs(what, step), _sound(what, step)]


def _grpo(place: Any) -> list[dict[str, Any]]:
  spec = importlib.util.spec_from_file_location(
    'config', _CONFIGS / 'qwen3_4b_grpo.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  run = dataclasses.replace(module.config(None), held_out=(), monitor_every=0)
  found = _plan(run, place, 'train')
  what = f'{run.model} GRPO, {place.name}'
  rows = [_needs(f'{what}: {name}', one) for name, one in found.items()]
  return [*rows, _sound(what, *found.values())]


def _analysis(place: Any) -> list[dict[str, Any]]:
  run = _sft(_70B, 8, fsdp=8, tensor=8)
  found = _plan(run, place, 'analysis', rows=8, length=4096)
  plain = found.pop('forward')
  what = f'{_70B}, 8 × 4096 tokens, {place.name}'
  rows = []
  for name, one in found.items():
    more = one.flops / plain.flops - 1
    moved = one.traffic / plain.traffic - 1
    rows += [
      _needs(f'{name}, {what}', one),
      _row(
        f'{name}: FLOPs beside a plain pass', f'{more:+.1%}', more <= 0.02,
        '≤ +2%',
      ),
      _row(
        f'{name}: bytes beside a plain pass', f'{moved:+.1%}', moved <= 0.03,
        '≤ +3%',
      ),
      _sound(name, one),
    ]  # fmt: skip
  return rows


def _layers(place: Any) -> list[dict[str, Any]]:
  from me_jax.planning import known_models

  config, run = known_models.config_of(_8B), _sft(_8B, 256)
  seconds = []
  for layers in (32, 126):
    deep = dataclasses.replace(config, num_hidden_layers=layers)
    seconds.append(_plan(run, place, 'step', deep)['step'].seconds)
  ratio = seconds[1] / seconds[0]
  text = f'{ratio:.2f} ({seconds[1]:.0f} and {seconds[0]:.0f} s)'
  return [
    _row('compiling 126 layers, to 32', text, ratio <= 1.25, '≤ 1.25')
  ]  # fmt: skip


def _halved(place: Any) -> list[dict[str, Any]]:
  # Both fit: for want of memory the compiler computes more of it again.
  needed = [
    _plan(_sft(_8B, rows), place, 'step')['step'].temporary
    for rows in (256, 512)
  ]
  ratio = needed[0] / needed[1]
  text = f'{ratio:.3f} ({needed[0] / _GIB:.2f}, {needed[1] / _GIB:.2f} GiB)'
  met = abs(ratio / 0.5 - 1) <= 0.15
  return [
    _row('activations of 1 row a chip, to 2', text, met, '0.5 within 15%')
  ]


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
