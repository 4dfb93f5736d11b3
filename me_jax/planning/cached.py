"""Has this very program been compiled for these devices before?

An entry's name is a hash of all that its content depends on: the program's
text as it is handed to the compiler, the devices in their order, versions of
the compilers, their flags, and this package's own reading of what they make. So
an entry is never out of date, only unused.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib

from me_jax import errors
from me_jax import files
from me_jax.planning import planned as planned_lib
from me_jax.planning import workload

_COMPILERS = ('jax', 'jaxlib', 'libtpu')
_FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')


def key(target: workload.Target, *texts: str) -> str:
  """Returns the name of an entry.

  Args:
    target: what is compiled, and where.
    *texts: of the lowered program, and of that which it is compared with.
  """
  program, topology = target.program, target.topology
  parts = [
    *texts,
    # Two names of one grid are the same.
    repr(dataclasses.replace(topology, name='')),
    repr(topology.chip.flops),
    repr(dict(program.mesh.shape)),
    repr([device.id for device in program.mesh.devices.flat]),
    repr((program.name, program.tokens, program.model_flops)),
    # What checks ask of a program.
    repr((program.config, program.rules)),
    *map(_version, _COMPILERS),
    *(os.environ.get(name, '') for name in _FLAGS),
    _reader(),
  ]
  found = hashlib.sha256()
  for part in parts:
    # With its length, so that no two lists of parts look alike.
    found.update(f'{len(part)}:'.encode() + part.encode())
  return found.hexdigest()


def get(folder: pathlib.Path | None, name: str) -> planned_lib.Planned | None:
  """Returns an entry; None if there is none that can be read.

  Args:
    folder: of all entries; None for none.
    name: from `key`.
  """
  if folder is None:
    return None
  try:
    content = json.loads(_path(folder, name).read_text(encoding='utf-8'))
    found = planned_lib.from_json(content)
  # Whatever is in the way of reading it, compiling again is the way out.
  except (OSError, ValueError):
    return None
  return dataclasses.replace(found, cached=True)


def put(
  folder: pathlib.Path | None, name: str, value: planned_lib.Planned
) -> None:
  """Keeps an entry, whole or not at all; where it cannot, does nothing.

  Args:
    folder: of all entries; None for none.
    name: from `key`.
    value: the entry. What lies beside the program is another matter.
  """
  if folder is None:
    return
  content = planned_lib.to_json(value.with_beside(0))
  try:
    files.write_json(_path(folder, name), content)
  except errors.MeJaxError:
    return


def _path(folder: pathlib.Path, name: str) -> pathlib.Path:
  return folder / f'{name}.json'


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return ''


@functools.cache
def _reader() -> str:
  """Returns a hash of this package's source."""
  found = hashlib.sha256()
  for path in sorted(pathlib.Path(__file__).parent.glob('*.py')):
    found.update(path.read_bytes())
  return found.hexdigest()
