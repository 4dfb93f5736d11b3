"""Where results are kept: docs/benchmarks.json, section by section.

Each section, and each bar of plans, is a record of its own: what is measured
again replaces its own rows and leaves the others with their date and machine.
"""

from __future__ import annotations

from collections.abc import Sequence
import datetime
import json
import os
import pathlib
from typing import Any, Literal

from benchmarks import machine
from me_jax import errors
from me_jax import files

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / 'docs' / 'benchmarks.json'
KINDS = ('sections', 'plans')
Results = dict[str, dict[str, Any]]


def load(path: pathlib.Path) -> Results:
  """Returns all records by kind and name; none if there is no file.

  Raises:
    MeJaxError: the file is not what this module writes.
  """
  found = {}
  if path.exists():
    try:
      found = json.loads(path.read_text('utf-8'))
    except (OSError, ValueError) as error:
      raise errors.MeJaxError(f'cannot read {path}: {error}') from None
    if not isinstance(found, dict) or not set(found) <= set(KINDS):
      raise errors.MeJaxError(f'{path} holds other things than results.')
  return {kind: found.get(kind, {}) for kind in KINDS}


def put(
  path: pathlib.Path,
  kind: Literal['sections', 'plans'],
  name: str,
  record: dict[str, Any],
) -> None:
  """Writes a record in the place of the former one of that name."""
  found = load(path)
  found[kind][name] = record
  files.write_json(path, found)


def record(
  rows: Sequence[dict[str, Any]],
  *,
  command: str,
  load_average: float,
  speed: dict[str, float],
  packages: Sequence[str],
) -> dict[str, Any]:
  """Returns rows with what there is to know about their origin.

  Args:
    rows: as JSON.
    command: that measured them.
    load_average: over a minute, before the command began.
    speed: of the machine, before the rows were measured; see `speed`.
    packages: whose versions are kept.
  """
  now = datetime.datetime.now(datetime.UTC)
  return {
    'when': now.strftime('%Y-%m-%d %H:%M UTC'),
    'command': command,
    'machine': machine.describe(),
    'versions': machine.versions(*packages),
    'load_average': round(load_average, 2),
    'speed': {name: round(value, 1) for name, value in speed.items()},
    'rows': [*rows],
  }


def load_average() -> float:
  """Returns how many processes wanted to run, over the last minute."""
  return os.getloadavg()[0]
