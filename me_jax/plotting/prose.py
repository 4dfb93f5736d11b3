"""How are numbers, intervals and lists spelt in sentences and tables?"""

from __future__ import annotations

from collections.abc import Iterable
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


def listed(parts: Iterable[str]) -> str:
  """Joins parts as a sentence does."""
  *before, last = list(parts) or ['']
  return f'{", ".join(before)} and {last}' if before else last
