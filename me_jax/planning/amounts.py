"""How are bytes, times and counts written for people?"""

from __future__ import annotations

# What would be rounded to 1000 of a unit is 1 of the next, or nearly.
_LESS = 999.5


def size(value: float) -> str:
  """Returns bytes in their unit."""
  for unit in ('B', 'KiB', 'MiB'):
    if abs(value) < _LESS:
      return f'{value:.3g} {unit}'
    value /= 1024
  return f'{value:.2f} GiB'


def seconds(value: float) -> str:
  """Returns a time in its unit."""
  if value * 1e6 < _LESS:
    return f'{value * 1e6:.3g} µs'
  if value * 1e3 < _LESS:
    return f'{value * 1e3:.3g} ms'
  return f'{value:.2f} s'


def count(value: float) -> str:
  """Returns a number with its thousands, or in millions."""
  return f'{value:,.0f}' if value < 1e6 else f'{value / 1e6:,.2f} million'
