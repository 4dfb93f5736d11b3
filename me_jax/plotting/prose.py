"""How are numbers, intervals, layers and lists spelt, in sentences and tables?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import math

from me_jax.analysis import bootstrap


def number(value: float, form: str = '+.3f') -> str:
  """Spells a number; what rounds to zero has no sign of its own."""
  if not math.isfinite(value):
    return 'no number'
  text, zero = format(value, form), format(0.0, form)
  return zero if text.lstrip('+-') == zero.lstrip('+') else text


def interval(found: bootstrap.Estimate, form: str = '+.3f') -> str:
  """Spells an estimate with its interval; one text has none."""
  if not math.isfinite(found.value) or found.low == found.high:
    return number(found.value, form)
  ends = f'{number(found.low, form)} to {number(found.high, form)}'
  return f'{number(found.value, form)} ({ends})'


def judged(change: bootstrap.Estimate, texts: int) -> str:
  """Says of a change of the loss whether it is one, and which."""
  if not math.isfinite(change.value):
    return 'no number'
  if texts < 2:
    return 'one text, no interval'
  if change.high < 0:
    return 'better'
  return 'worse' if change.low > 0 else 'no difference'


def size(value: float) -> str:
  """Spells an activation: large ones in full, small ones in three digits."""
  return f'{value:,.0f}' if value >= 1000 else f'{value:.3g}'


def layers(which: Iterable[int]) -> str:
  """Spells layers, runs of them by their ends."""
  runs: list[list[int]] = []
  for layer in which:
    if runs and layer == runs[-1][-1] + 1:
      runs[-1].append(layer)
    else:
      runs.append([layer])
  if not runs:
    return 'no layer'
  spelt = ', '.join(map(_ends, runs))
  return f'layer {spelt}' if spelt.isdecimal() else f'layers {spelt}'


def _ends(run: Sequence[int]) -> str:
  return f'{run[0]}' if len(run) == 1 else f'{run[0]}-{run[-1]}'


def listed(parts: Iterable[str]) -> str:
  """Joins parts as a sentence does."""
  *before, last = list(parts) or ['']
  return f'{", ".join(before)} and {last}' if before else last
