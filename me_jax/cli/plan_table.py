"""What `me-jax plan` prints: what fits, what moves, how fast it can be."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich import console as console_lib
from rich import table as table_lib

from me_jax.planning import amounts
from me_jax.planning import plan as plan_lib
from me_jax.planning import planned as planned_lib
from me_jax.planning import search as search_lib
from me_jax.planning import topology as topology_lib
from me_jax.training import settings as settings_lib

_WIDTH = 160
_GIB = 2**30
# Smaller exchanges than this share of all are in plan.json alone.
_SMALL = 0.001


def show(plan: plan_lib.Plan) -> None:
  """Prints tables of memory, time and exchanges, and what they mean."""
  console = _console()
  console.print(_title(plan.model, plan.topology, plan.mesh), soft_wrap=True)
  console.print(_memory(plan))
  if any(one.best for one in plan.programs):
    console.print(_time(plan))
    if any(one.exchanges for one in plan.programs):
      console.print(_exchanges(plan))
  for one in plan.programs:
    if one.refused:
      console.print(
        f'{one.name}: refused by the compiler: {one.refused}', soft_wrap=True
      )
    for finding in one.findings:
      console.print(
        f'{one.name}: not sound: {finding}', markup=False, soft_wrap=True
      )
  for note in plan.notes:
    console.print(f'- {note}', soft_wrap=True)
  console.print(headline(plan), style='bold', soft_wrap=True)
  if not plan.fits:
    console.print(advice(plan), soft_wrap=True)


def show_search(
  found: search_lib.Search, model: str, topology: topology_lib.Topology
) -> None:
  """Prints what was tried, the best ones marked, and how to run the first."""
  console = _console()
  console.print(
    f'{model} on {topology.name}: {len(found.tried)} settings compiled'
  )
  table = table_lib.Table(title='Steps of training, by time')
  for name in ('', 'mesh', 'remat'):
    table.add_column(name)
  for name in (
    'parts', 'attention', 'vocabulary', 'peak', 'left', 'step', 'tokens/s',
    'MFU', 'guess',
  ):  # fmt: skip
    table.add_column(name, justify='right')
  for i in sorted(range(len(found.tried)), key=lambda i: _rank(found.tried[i])):
    table.add_row(*_tried(found.tried[i], i, found))
  table.caption = (
    '* no other needs less memory and less time; = the run as it is'
  )
  console.print(table)
  for one in found.tried:
    if one.error:
      console.print(f'{_mesh(one)}: {one.error}', markup=False, soft_wrap=True)
  for reason, count in found.left_out.items():
    console.print(f'- {count:,} not compiled: {reason}', soft_wrap=True)
  if not found.front:
    console.print('None of them fits.', style='bold')
    return
  best = found.tried[found.front[0]]
  console.print(
    f'The fastest that fits: me-jax train {command(best.run)}',
    style='bold',
    soft_wrap=True,
  )


def command(run: settings_lib.Run) -> str:
  """Returns flags of `me-jax train` for what a search varies."""
  found = search_lib.changes(run)
  mesh = dataclasses.asdict(run.mesh)
  flags = ['--mesh=' + ','.join(f'{name}={n}' for name, n in mesh.items())]
  flags += [
    f'--set compute.{name}={value}'
    for name, value in found.items()
    if name != 'mesh'
  ]
  return ' '.join(flags)


def headline(plan: plan_lib.Plan) -> str:
  """Returns what came of it, in a sentence or two."""
  tight = min(plan.programs, key=lambda one: one.room)
  gib = abs(tight.room) / _GIB
  hbm = tight.hbm / _GIB
  least = 'at least ' if tight.refused else ''
  if plan.fits:
    text = (
      f'It fits: {tight.name} needs most, {tight.peak / _GIB:.2f} of'
      f' {hbm:.1f} GiB a device, {gib:.2f} GiB are left.'
    )
  elif tight.room < 0:
    text = (
      f'It does NOT fit: {tight.name} needs {least}{tight.peak / _GIB:.2f} of'
      f' {hbm:.1f} GiB a device, {gib:.2f} GiB too much.'
    )
  else:
    text = 'It does NOT fit: the compiler keeps a part of memory for itself.'
  step = next((one for one in plan.programs if one.name == 'step'), None)
  if step is not None and step.best:
    text += (
      f' A step takes {amounts.seconds(step.best)} at least,'
      f' {amounts.seconds(step.worst)} if nothing overlaps; {step.bound} is'
      ' what bounds it.'
    )
  found = sum(len(one.findings) for one in plan.programs)
  if found:
    text += f' {found} findings above are not sound.'
  return text


def advice(plan: plan_lib.Plan) -> str:
  """Returns what to change in a run that does not fit."""
  large = {one.name for one in plan.programs if not one.fits}
  found = []
  if 'step' in large:
    found.append(
      'of the step, --set compute.parts=N (a batch in N parts), --set'
      ' compute.remat=full, a smaller data.batch or data.length; --search tries'
      ' the first two and other meshes'
    )
  if large & {'prefill', 'decode'}:
    found.append(
      'of prefill and decode, fewer rows at a time or shorter ones (--rows and'
      ' --length, or the settings of method.sampling), or heads cut along tensor'
    )
  if large - {'step', 'prefill', 'decode'}:
    found.append(
      f'of {", ".join(sorted(large - {"step", "prefill", "decode"}))}, fewer or'
      ' shorter rows'
    )
  return f'What needs less: {"; ".join(found)}; for all, more chips.'


def _rank(one: search_lib.Tried) -> tuple[bool, float]:
  known = one.planned is not None and one.planned.best > 0
  return not known, one.seconds if known else one.guess.seconds


def _mesh(one: search_lib.Tried) -> str:
  mesh = search_lib.changes(one.run)['mesh']
  return ' '.join(f'{name} {n}' for name, n in mesh.items())


def _tried(
  one: search_lib.Tried, i: int, found: search_lib.Search
) -> list[str]:
  """Returns a row of the table."""
  compute, planned = one.run.compute, one.planned
  mark = ('*' if i in found.front else '') + (
    '=' if found.own and i == 0 else ''
  )
  row = [
    mark,
    _mesh(one),
    compute.remat,
    str(compute.parts),
    str(compute.attention_chunk),
    str(compute.vocabulary_chunk),
  ]
  guess = (
    f'{amounts.size(one.guess.peak)}, {amounts.seconds(one.guess.seconds)}'
  )
  if planned is None:
    return [*row, '?', '?', '?', '?', '?', guess]
  row += [amounts.size(planned.peak), amounts.size(planned.room)]
  if not planned.best:
    return [*row, 'refused', '', '', guess]
  rate, mfu = planned.rate, planned.utilization
  return [
    *row,
    f'{amounts.seconds(planned.best)} to {amounts.seconds(planned.worst)}',
    '' if rate is None else f'≤ {amounts.count(rate[1])}',
    '' if mfu is None else f'≤ {mfu:.0%}',
    guess,
  ]


def _title(model: str, topology: topology_lib.Topology, mesh: Any) -> str:
  chip = topology.chip
  axes = ', '.join(f'{name} {n}' for name, n in mesh.items() if n > 1)
  slices = f' in {topology.slices} slices' if topology.slices > 1 else ''
  if topology.slices > 1 and not chip.tpu:
    slices = f' in {topology.slices} hosts'
  return (
    f'{model} on {topology.name}: {topology.chips} chips of {chip.name}{slices},'
    f' {chip.hbm / _GIB:.0f} GiB each; mesh {axes or "of one device"}'
  )


def _memory(plan: plan_lib.Plan) -> table_lib.Table:
  table = table_lib.Table(title='Memory of a device')
  table.add_column('program')
  for name in (
    'parameters', 'optimizer', 'inputs', 'temporary', 'beside', 'peak',
    'left',
  ):  # fmt: skip
    table.add_column(name, justify='right')
  table.add_column('fits')
  table.add_column('compiled in', justify='right')
  for one in plan.programs:
    known = not one.refused
    table.add_row(
      one.name,
      amounts.size(one.parameters),
      amounts.size(one.optimizer),
      amounts.size(one.inputs) if known else '?',
      amounts.size(one.temporary + one.outputs + one.code) if known else '?',
      amounts.size(one.beside),
      amounts.size(one.peak),
      amounts.size(one.room),
      'yes' if one.fits else 'NO',
      f'{one.seconds:.1f} s{" (kept)" if one.cached else ""}',
    )
  return table


def _time(plan: plan_lib.Plan) -> table_lib.Table:
  table = table_lib.Table(title='Work of a device, and its least time')
  table.add_column('program')
  for name in (
    'TFLOP', 'GB moved', 'compute', 'memory', 'links', 'network', 'step',
    'tokens/s', 'MFU',
  ):  # fmt: skip
    table.add_column(name, justify='right')
  for one in plan.programs:
    if not one.best:
      continue
    rate = one.rate
    mfu = one.utilization
    least = {
      'compute': one.compute,
      'memory': one.memory,
      'links': one.links_least,
      'network': one.network,
    }
    table.add_row(
      one.name,
      f'{one.flops / 1e12:.3g}',
      f'{one.traffic / 1e9:.3g}',
      *(
        f'{amounts.seconds(time)}{" *" if part == one.bound else ""}'
        if time
        else '-'
        for part, time in least.items()
      ),
      f'{amounts.seconds(one.best)} to {amounts.seconds(one.worst)}',
      ' to '.join(amounts.count(tokens) for tokens in rate or ()),
      '' if mfu is None else f'≤ {mfu:.0%}',
    )
  table.caption = '* what bounds it'
  return table


def _exchanges(plan: plan_lib.Plan) -> table_lib.Table:
  table = table_lib.Table(title='What a device sends')
  for name in ('program', 'exchange', 'axes', 'over', 'where'):
    table.add_column(name)
  for name in ('times', 'in all', 'largest'):
    table.add_column(name, justify='right')
  for program in plan.programs:
    for one in _large(program):
      table.add_row(
        program.name,
        one.kind,
        ', '.join(one.axes),
        one.link,
        {'layers': 'each layer', 'loop': 'a loop', 'once': 'once'}[one.where],
        f'{one.times:,}',
        amounts.size(one.bytes),
        # rich would take brackets for markup.
        one.largest.replace('[', '\\['),
      )
  return table


def _large(one: planned_lib.Planned) -> list[planned_lib.Exchange]:
  total = sum(exchange.bytes for exchange in one.exchanges)
  return [x for x in one.exchanges if x.bytes >= _SMALL * total]


def _console() -> console_lib.Console:
  console = console_lib.Console(highlight=False)
  if not console.is_terminal:
    console = console_lib.Console(highlight=False, width=_WIDTH)
  return console
