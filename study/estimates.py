"""How are numbers with intervals read from reports, and spelt?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple


class Estimate(NamedTuple):
  """A number with its 95 % interval."""

  value: float
  low: float
  high: float


def read(found: Any) -> Estimate:
  """Reads what a report says of one number; a report has no NaN but null."""
  if isinstance(found, Mapping):
    values: Sequence[Any] = [found[name] for name in Estimate._fields]
  else:
    values = found
  return Estimate(*(math.nan if x is None else float(x) for x in values))


def number(value: float, form: str = '+.3f') -> str:
  """Spells a number; what rounds to zero has no sign of its own."""
  if not math.isfinite(value):
    return 'no number'
  text = format(value, form)
  zero = format(0.0, form)
  return zero if text.lstrip('+-') == zero.lstrip('+') else text


def interval(found: Estimate, form: str = '+.3f') -> str:
  """Spells an estimate with its interval."""
  if not math.isfinite(found.value) or found.low == found.high:
    return number(found.value, form)
  ends = f'{number(found.low, form)} to {number(found.high, form)}'
  return f'{number(found.value, form)} ({ends})'


def listed(parts: Sequence[str]) -> str:
  """Joins parts as a sentence does."""
  if len(parts) < 2:
    return ''.join(parts)
  return f'{", ".join(parts[:-1])} and {parts[-1]}'
