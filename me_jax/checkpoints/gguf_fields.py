"""Is a metadata key of a GGUF file there, and of the right type?

Every error names the key with its architecture, its value and the file.
"""

from __future__ import annotations

from collections.abc import Collection
import math
from typing import Any

import numpy as np

from me_jax import errors
from me_jax.checkpoints import gguf

# Keys that change nothing at this value; None stands for any value.
_OFF = {
  'attention.causal': True,
  'attention.sliding_window': 0,
  'expert_count': 0,
  'expert_used_count': 0,
  # What is done with the states afterwards, by models of embeddings.
  'pooling_type': None,
  # The order of rows that the converters give Llama's queries and keys.
  'tensor_data_layout': 'Meta AI original pth',
}


class Fields:
  """The metadata of one architecture, with their types checked."""

  def __init__(self, file: gguf.GgufFile, architecture: str):
    """Looks at the keys that start with `architecture` and a dot."""
    self._file = file
    self._prefix = f'{architecture}.'

  def error(self, key: str, what: str) -> errors.MeJaxError:
    """Returns an error about a key."""
    return errors.MeJaxError(
      f'{self._file.path}: {self._prefix}{key[:80]} {what}'
    )

  def refuse_unknown(self, known: Collection[str]) -> None:
    """Raises MeJaxError for a key that might change the computation."""
    for name, value in self._file.metadata.items():
      if not name.startswith(self._prefix):
        continue
      key = name.removeprefix(self._prefix)
      if key not in known and not _off(key, value):
        raise self.error(
          key,
          f'= {_shown(value)} is not known and may change the computation:'
          ' load the model from its safetensors folder',
        )

  def has(self, key: str) -> bool:
    """Returns whether the file has this key."""
    return self._prefix + key in self._file.metadata

  def get(self, key: str, default: Any = None) -> Any:
    """Returns a value of any type; without a default it must be there."""
    value = self._file.metadata.get(self._prefix + key)
    if value is None and default is None:
      raise self.error(key, 'is missing')
    return default if value is None else value

  def text(self, key: str, default: str) -> str:
    """Returns a string."""
    value = self.get(key, default)
    if not isinstance(value, str):
      raise self.error(key, f'is {_shown(value)}, not a string')
    return value

  def size(self, key: str, default: int | None = None) -> int:
    """Returns a positive count; per-layer lists must agree."""
    value = self.get(key, default)
    if isinstance(value, np.ndarray):
      if len(set(value.tolist())) != 1:
        raise self.error(key, 'differs between layers: not supported')
      value = value.tolist()[0]
    if type(value) is not int or value <= 0:
      raise self.error(key, f'is {_shown(value)}, not a positive integer')
    return value

  def number(self, key: str, default: float | None = None) -> float:
    """Returns a positive finite number."""
    value = self.get(key, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
      raise self.error(key, f'is {_shown(value)}, not a positive number')
    return float(value)


def _off(key: str, value: Any) -> bool:
  """Returns whether a key, known or not, has no effect at this value."""
  if key not in _OFF:
    return False
  return _OFF[key] is None or (
    type(value) is type(_OFF[key]) and value == _OFF[key]
  )


def _shown(value: Any) -> str:
  if isinstance(value, np.ndarray):
    value = value[:8].tolist()
  return repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + '...'
