"""Where are the numbers of a run, so that a resumed run's are whole, too?

In `metrics.jsonl`, one JSON object a line, each with `step` and `kind`, and for
those who look with TensorBoard in event files as well. Who resumes drops the
lines of steps that will be done again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import importlib.util
import json
import math
import os
import pathlib
from typing import Any

import jax

from me_jax import errors
from me_jax import files
from me_jax import strict_json

FILE = 'metrics.jsonl'
EVENTS = 'tensorboard'
_WRITER = 'tensorboardX'


class Metrics:
  """Appends lines to a run's numbers; for process 0 alone.

  A context manager that closes its files.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    *,
    step: int | None = None,
    tensorboard: bool | None = None,
    writer: bool = True,
  ):
    """Opens the file; lines of steps after `step` are dropped.

    Args:
      folder: of the run; made if need be.
      step: that the run goes on from; None begins anew.
      tensorboard: whether event files are written; None for where tensorboardX
        is installed.
      writer: whether this process writes; the others do nothing at all.

    Raises:
      MeJaxError: the file cannot be written, or tensorboardX is asked for and
        is not installed.
    """
    self._file: Any = None
    self._events: Any = None
    self._failed: errors.MeJaxError | None = None
    self._path = pathlib.Path(folder, FILE)
    if not writer:
      return
    installed = importlib.util.find_spec(_WRITER) is not None
    if tensorboard and not installed:
      raise errors.MeJaxError(
        f'event files for TensorBoard need {_WRITER}: pip install {_WRITER}'
      )
    files.make_parent(self._path)
    lines = () if step is None else _lines(self._path)
    kept = [text for text, line in lines if line['step'] <= step]
    files.write_text(self._path, ''.join(kept))
    try:
      # What a buffer kept back would be written, and fail, once more at the end.
      self._file = open(self._path, 'ab', buffering=0)
    except OSError as error:
      raise _failure(self._path, error) from error
    if installed and tensorboard is not False:
      import tensorboardX

      # Tells TensorBoard to forget what came after.
      self._events = tensorboardX.SummaryWriter(
        os.path.join(folder, EVENTS),
        purge_step=None if step is None else step + 1,
      )

  def __enter__(self) -> Metrics:
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def write(self, kind: str, step: int, **values: Any) -> None:
    """Appends a line; it is in the file when this returns.

    Args:
      kind: what was measured.
      step: how many steps were done.
      **values: numbers, texts, None, arrays, and dicts and sequences of them.
        What is not finite becomes null.

    Raises:
      MeJaxError: the disk is full, or the like. Where others would go on
        without this process, `check` says so.
    """
    if self._file is None or self._failed is not None:
      return
    line = {'kind': kind, 'step': int(step), **_plain(values)}
    rest = json.dumps(line, allow_nan=False).encode() + b'\n'
    try:
      while rest:
        rest = rest[self._file.write(rest) :]
    except OSError as error:
      self._failed = _failure(self._path, error)
      if jax.process_count() == 1:
        raise self._failed from error
      return
    if self._events is not None:
      for name, value in _scalars(_plain(values), kind):
        self._events.add_scalar(name, value, int(step))
      self._events.flush()

  def check(self) -> None:
    """Raises what a line that could not be written has raised, or would have.

    Raises:
      MeJaxError: there was one.
    """
    if self._failed is not None:
      raise self._failed

  def close(self) -> None:
    """Closes the files."""
    if self._file is not None:
      self._file.close()
    if self._events is not None:
      self._events.close()


def read(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the lines of a run in order, but for one that is half written.

  Raises:
    MeJaxError: there is no such file, or it cannot be read.
  """
  path = pathlib.Path(folder, FILE)
  if not path.is_file():
    raise errors.MeJaxError(f'{path}: no such file; is {folder} a run?')
  return [line for _, line in _lines(path)]


def _lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields each line that is whole, as text and as what it says.

  Raises:
    MeJaxError: the file cannot be read, or was written by somebody else.
  """
  try:
    texts = path.read_bytes().splitlines(keepends=True)
  except FileNotFoundError:
    return
  except OSError as error:
    raise errors.MeJaxError(f'cannot read {path}: {error.strerror}') from error
  for number, text in enumerate(texts, 1):
    # Who was killed, or had no room, may have left a half.
    if not text.endswith(b'\n'):
      return
    try:
      line = strict_json.parse(text, 'it')
    except errors.MeJaxError:
      line = {}
    if not isinstance(line.get('step'), int):
      raise errors.MeJaxError(
        f'line {number} of {path} is none of ours: mend the file, or move it away'
      )
    yield text.decode(), line


def _plain(value: Any) -> Any:
  """Returns a value as JSON can hold it."""
  if isinstance(value, Mapping):
    return {str(name): _plain(inner) for name, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(inner) for inner in value]
  # Arrays of NumPy and JAX, and their numbers.
  if hasattr(value, 'tolist'):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _scalars(value: Any, name: str) -> Iterator[tuple[str, float]]:
  """Yields the numbers in nested dicts by path; lists are no curves."""
  if isinstance(value, Mapping):
    for key, inner in value.items():
      yield from _scalars(inner, f'{name}/{key}')
  elif isinstance(value, (int, float)):
    yield name, float(value)


def _failure(path: pathlib.Path, error: OSError) -> errors.MeJaxError:
  return errors.MeJaxError(f'cannot write {path}: {error.strerror}')
