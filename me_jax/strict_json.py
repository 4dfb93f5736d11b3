"""How is JSON from a stranger read?

Checkpoints come with JSON whose mistakes must not be guessed away: a key given
twice, a list where an object belongs, broken UTF-8, numbers without end.
"""

from __future__ import annotations

import collections
import json
import os
from typing import Any

from me_jax import errors

# Index files of the largest public models take about 10 MB.
_MAX_BYTES = 100_000_000
# 2^64 has 20.
MAX_DIGITS = 20


def parse(data: bytes, what: str) -> dict[str, Any]:
  """Returns the JSON object in `data`.

  Args:
    data: UTF-8 text.
    what: what is being read, for the message.

  Raises:
    MeJaxError: `data` is not one JSON object with unique keys.
  """
  try:
    value = json.loads(
      data.decode('utf-8'), object_pairs_hook=_unique, parse_int=_integer
    )
  # Deep nesting ends in RecursionError.
  except (ValueError, RecursionError) as error:
    raise errors.MeJaxError(
      f'{what} is not valid JSON ({error}): mend it, or download it again'
    ) from error
  if not isinstance(value, dict):
    raise errors.MeJaxError(f'{what} does not hold a JSON object')
  return value


def read(path: str) -> dict[str, Any]:
  """Returns the JSON object in a file; raises MeJaxError as `parse` does."""
  try:
    # Opening a pipe would wait for ever.
    if os.path.exists(path) and not os.path.isfile(path):
      raise errors.MeJaxError(f'{path} is not a file')
    if os.path.getsize(path) > _MAX_BYTES:
      raise errors.MeJaxError(f'{path} is too large to be a JSON file of ours')
    with open(path, 'rb') as file:
      data = file.read()
  except OSError as error:
    raise errors.MeJaxError(f'cannot read {path}: {error.strerror}') from error
  return parse(data, path)


def _integer(digits: str) -> int:
  # Python would go on to compute with numbers that it then cannot print.
  if len(digits) > MAX_DIGITS:
    raise ValueError(f'a number of {len(digits)} digits')
  return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  result = dict(pairs)
  if len(result) != len(pairs):
    count = collections.Counter(k for k, _ in pairs)
    twice = next(k for k in count if count[k] > 1)
    raise ValueError(f'key {twice[:80]!r} appears twice')
  return result
