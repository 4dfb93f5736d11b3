"""What `me-jax train` prints: what it is about to do, how far it is, what came."""

from __future__ import annotations

import datetime
import sys
import time

from rich import console as console_lib
from rich import table as table_lib

from me_jax.cli import session
from me_jax.training import compared as compared_lib
from me_jax.training import held_out as held_out_lib
from me_jax.training import journal
from me_jax.training import loop
from me_jax.training import prepare

_EVERY = 10.0  # seconds between lines
_WIDTH = 160


class Watched:
  """Shows lines of the log while a run goes on."""

  def __init__(self, progress: session.Progress):
    self._progress = progress
    self._last = 0.0

  def line(self, line: journal.Line) -> None:
    """Shows a step, now and then."""
    now, last = time.monotonic(), line.step == line.steps
    if self._progress.has_bars:
      self._progress.step('training', line.step, line.steps)
    if now - self._last < _EVERY and not last:
      return
    self._last = now
    left = datetime.timedelta(seconds=round(line.left))
    mfu = '' if line.mfu is None else f', MFU {line.mfu:.1%}'
    self._say(
      f'step {line.step} of {line.steps}: loss {line.loss:.4f},'
      f' {line.rate:,.0f} tokens/s{mfu}, {left} left'
    )

  def warn(self, message: str) -> None:
    """Shows what is odd."""
    self._say(f'warning: {message}')

  def _say(self, text: str) -> None:
    print(f'me-jax: {text}', file=sys.stderr, flush=True)


def show_start(plan: prepare.Plan, placed: prepare.Placed) -> None:
  """Prints what is trained, and on what."""
  run = plan.run
  trained, total = placed.trained
  print(
    f'{run.model}: training {trained:,} numbers'
    f' ({" and ".join(run.train.parts)}) of {total:,}'
    f'{", WeMask in the loop" if run.mask.rate else ""},'
    f' {type(run.method).__name__.upper()}, {run.steps} steps of'
    f' {run.data.batch} {"prompts" if run.method.kind == "prompts" else "rows"}'
  )
  for source, count in zip(run.data.mix.sources, plan.batches.counts):
    left_out = ''
    if count.left_out:
      left_out = (
        f'; {count.left_out} left out, longer than {run.data.length} tokens'
        f' (the longest has {count.longest})'
      )
    print(
      f'  {source.data}: {count.used} in {count.rows} rows,'
      f' {count.filled:.0%} filled{left_out}'
    )
  for one in plan.held_out:
    if one.left_out:
      print(
        f'  held out, {one.name}: {one.left_out} left out, longer than'
        f' {run.evaluation.length} tokens'
      )
  sys.stdout.flush()


def compared(
  plan: prepare.Plan, result: loop.Result
) -> list[compared_lib.HeldOut]:
  """Returns what became of each held-out set."""
  found = []
  for one in plan.held_out:
    before, after = result.before[one.name], result.after[one.name]
    limit = one.settings.limit
    found.append(
      compared_lib.HeldOut(
        name=one.name,
        on_task=one.settings.on_task,
        before=held_out_lib.estimate(before),
        after=held_out_lib.estimate(after),
        change=held_out_lib.change(before, after),
        texts=len(before.tokens_N),
        tokens=int(before.tokens_N.sum()),
        guard=None if limit == float('inf') else limit,
      )
    )
  return found


def headline(plan: prepare.Plan, result: loop.Result) -> str:
  """Says in a sentence what came of it."""
  said = f'{result.step} of {plan.run.steps} steps'
  if result.why == loop.PATIENCE:
    said += ', ended early because nothing got better'
  if plan.run.evaluation.choose:
    said += f'; step {result.chosen} is the best that keeps the limits'
  # What chose the step has said so already, and flatters it.
  final = any(one.settings.report for one in plan.held_out)
  changes = [
    f'{one.name} {one.change.value:+.3f}'
    for one, held_out in zip(compared(plan, result), plan.held_out)
    if held_out.settings.report or not final
  ]
  if changes:
    said += f'. Loss on held-out texts: {", ".join(changes)} nats per token'
  return f'{said}.'


def show(plan: prepare.Plan, result: loop.Result) -> None:
  """Prints what came out."""
  console = console_lib.Console(highlight=False)
  if not console.is_terminal:
    console = console_lib.Console(highlight=False, width=_WIDTH)
  sets = compared(plan, result)
  if sets:
    console.print(_table(plan, result, sets))
  console.print(headline(plan, result), style='bold', soft_wrap=True)


def _table(
  plan: prepare.Plan,
  result: loop.Result,
  sets: list[compared_lib.HeldOut],
) -> table_lib.Table:
  table = table_lib.Table(title='Held-out loss, nats per token (95 %)')
  for name in ('set', 'texts', 'before', 'after', 'change', ''):
    table.add_column(name, justify='left' if name in ('set', '') else 'right')
  for one, settings in zip(sets, plan.held_out):
    notes = [] if one.on_task else ['off task']
    if one.guard is not None:
      kept = 'kept' if one.kept else 'NOT kept'
      notes.append(f'may rise by {one.guard:g}: {kept}')
    after = result.after[one.name]
    if after.rejected_N is not None:
      right = held_out_lib.correct(result.before[one.name], after)
      notes.append(f'{right:.0%} of pairs told')
    change = one.change
    table.add_row(
      settings.name,
      str(one.texts),
      f'{one.before.value:.3f}',
      f'{one.after.value:.3f}',
      f'{change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})',
      '; '.join(notes),
    )
  return table
