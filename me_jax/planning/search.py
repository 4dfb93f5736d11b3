"""Which mesh and which settings of computing suit a run best?

Arithmetic leaves out what cannot be and ranks the rest (`guess`); the compiler
has the last word on the few that look best. What comes out is the same run: a
mesh, parts of a batch, chunks and what is computed again change no result but
by rounding.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
import pathlib
from typing import Any

import jax

from me_jax import errors
from me_jax.models import config as config_lib
from me_jax.planning import guess as guess_lib
from me_jax.planning import plan as plan_lib
from me_jax.planning import planned as planned_lib
from me_jax.planning import programs
from me_jax.planning import topology as topology_lib
from me_jax.planning import workload
from me_jax.training import settings as settings_lib
from me_jax.training import sharding as sharding_lib

_REMAT = ('none', 'dots', 'dots_no_batch', 'full')
_PARTS = (1, 2, 4, 8, 16, 32, 64)
_ATTENTION = (64, 128, 256, 512, 1024, 4096)
_VOCABULARY = (4096, 16384)
_CHUNKS = 16  # at most, of a row
# Heads and tokens cut into more parts than these exchange more than they save.
_TENSOR, _SEQUENCE = 16, 8
# A guess may be so many times too high before a setting is left out for it.
_TRUST = 2.0
_RANKED = 1000
# Of two that are alike in memory, a guess cannot say which is better.
_APART = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tried:
  """Settings that were tried.

  Attributes:
    run: with them.
    guess: what arithmetic says.
    planned: what the compiler says of the step.
    error: why there is no step, empty if there is.
  """

  run: settings_lib.Run
  guess: guess_lib.Guess
  planned: planned_lib.Planned | None = None
  error: str = ''

  @property
  def seconds(self) -> float:
    """The middle of the predicted times of a step."""
    assert self.planned is not None
    return (self.planned.best + self.planned.worst) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
  """What came of it.

  Attributes:
    tried: settings that were compiled, the run's own first if its mesh is one
      of these devices.
    own: whether it is.
    front: indices of those that fit, of which no other needs less memory and
      less time, the least time first.
    left_out: how many were not compiled, by reason.
  """

  tried: tuple[Tried, ...]
  own: bool
  front: tuple[int, ...]
  left_out: Mapping[str, int]


def search(
  run: settings_lib.Run,
  config: config_lib.ModelConfig,
  topology: topology_lib.Topology,
  *,
  most: int = 12,
  folder: pathlib.Path | None = None,
  progress: plan_lib.Progress | None = None,
) -> Search:
  """Tries settings around those of a run.

  Args:
    run: whose step it is about.
    config: of the model.
    topology: of the devices.
    most: how many settings are compiled, the run's own among them.
    folder: of entries of `cached`.
    progress: called with what is done, and how far it is.

  Raises:
    MeJaxError: no setting fits the devices.
  """
  devices = topology_lib.devices(topology)
  candidates, left_out = ranked(run, config, topology)
  if not candidates:
    raise errors.MeJaxError(
      f'no mesh of {topology.name} divides {run.model} and its batch and leaves'
      ' room for its state: name more chips, other rows (data.batch), or train'
      ' less of it.'
    )
  tell = progress or (lambda *_: None)
  tried: list[Tried] = []
  for one in candidates:
    if len(tried) == most:
      break
    tell('trying settings', len(tried), most)
    try:
      mesh = sharding_lib.mesh(
        **dataclasses.asdict(one.run.mesh), devices=devices
      )
    except errors.MeJaxError:
      # Of a grid not all meshes can be made.
      left_out['not a mesh of this grid'] += 1
      continue
    tried.append(_compiled(one, config, topology, mesh, folder))
  tell('trying settings', most, most)
  left_out['ranked lower'] += max(
    len(candidates) - len(tried) - left_out['not a mesh of this grid'], 0
  )
  return Search(
    tried=tuple(tried),
    own=bool(tried) and _varied(tried[0].run) == _varied(_own(run, topology)),
    front=front(tried),
    left_out={reason: n for reason, n in left_out.items() if n},
  )


def ranked(
  run: settings_lib.Run,
  config: config_lib.ModelConfig,
  topology: topology_lib.Topology,
) -> tuple[list[Tried], collections.Counter]:
  """Returns settings in the order in which they are worth a try.

  First the run's own, then those of which, by the guess, no other needs less
  memory and less time, then those that are next.

  Returns:
    What may fit, and how many were left out, by reason.
  """
  totals = guess_lib.totals(run, config)
  hbm = topology.chip.hbm // topology.chip.cores
  left_out: collections.Counter = collections.Counter()
  found: list[Tried] = []
  own = _own(run, topology)
  fits: dict[Any, bool] = {}
  for mesh, compute in itertools.product(
    _meshes(topology.devices), _computes(run)
  ):
    changed = dataclasses.replace(run, mesh=mesh, compute=compute)
    which = mesh, compute.parts
    if which not in fits:
      fits[which] = _fits(changed, config)
    if not fits[which]:
      left_out['does not divide the model or the batch'] += 1
      continue
    guess = guess_lib.of(
      totals, config, compute, dataclasses.asdict(mesh), topology
    )
    is_own = _varied(changed) == _varied(own)
    if not is_own and guess.state > hbm:
      left_out['its state alone is too large'] += 1
    elif not is_own and guess.state + guess.activations / _TRUST > hbm:
      left_out['its activations are too large, by arithmetic'] += 1
    else:
      found.append(Tried(run=changed, guess=guess))
  found.sort(key=lambda one: (one.guess.seconds, one.guess.peak))
  mine = _varied(own)
  first = [one for one in found if _varied(one.run) == mine]
  rest = [one for one in found if _varied(one.run) != mine]
  return first + _layers(rest, hbm), left_out


def front(tried: Sequence[Tried]) -> tuple[int, ...]:
  """Returns which fit and are not beaten in both memory and time.

  Args:
    tried: compiled or not.
  """
  sound = [
    (one.seconds, one.planned.peak, i)
    for i, one in enumerate(tried)
    if one.planned is not None and one.planned.fits
  ]
  found, least = [], None
  for _, peak, i in sorted(sound):
    if least is None or peak < least:
      found.append(i)
      least = peak
  return tuple(found)


def changes(run: settings_lib.Run) -> dict[str, Any]:
  """Returns what a search varies, as flags of `me-jax train` say it."""
  mesh = {k: v for k, v in dataclasses.asdict(run.mesh).items() if v > 1}
  names = ('remat', 'parts', 'attention_chunk', 'vocabulary_chunk')
  return {'mesh': mesh or {'fsdp': 1}} | {
    name: getattr(run.compute, name) for name in names
  }


def to_json(found: Search) -> dict[str, Any]:
  """Returns a search as JSON types."""
  return {
    'tried': [
      changes(one.run)
      | {
        'guessed_peak': one.guess.peak,
        'guessed_seconds': one.guess.seconds,
        'error': one.error,
        'step': one.planned and planned_lib.to_json(one.planned),
      }
      for one in found.tried
    ],
    'own': found.own,
    'front': list(found.front),
    'left_out': dict(found.left_out),
  }


def _compiled(
  one: Tried,
  config: config_lib.ModelConfig,
  topology: topology_lib.Topology,
  mesh: jax.sharding.Mesh,
  folder: pathlib.Path | None,
) -> Tried:
  """Returns settings with what the compiler says of their step."""
  try:
    targets = workload.targets(one.run, config, topology, mesh, ('step',))
    found = plan_lib.make(
      targets, model=one.run.model, topology=topology, folder=folder
    )
  except errors.MeJaxError as error:
    return dataclasses.replace(one, error=str(error))
  return dataclasses.replace(one, planned=found.programs[0])


def _varied(run: settings_lib.Run) -> tuple[Any, Any]:
  return run.mesh, run.compute


def _own(
  run: settings_lib.Run, topology: topology_lib.Topology
) -> settings_lib.Run:
  """Returns the run with its mesh written out."""
  sizes = dataclasses.asdict(run.mesh)
  asked = 1
  for size in sizes.values():
    asked *= size if size > 0 else 1
  rest = topology.devices // asked
  sizes = {name: size if size > 0 else rest for name, size in sizes.items()}
  return dataclasses.replace(run, mesh=settings_lib.Mesh(**sizes))


def _meshes(devices: int) -> Iterator[settings_lib.Mesh]:
  """Yields all meshes of so many devices, most of them along fsdp first."""
  divisors = [n for n in range(1, devices + 1) if devices % n == 0]
  for tensor, sequence, data in itertools.product(divisors, repeat=3):
    if tensor > _TENSOR or sequence > _SEQUENCE:
      continue
    cut = tensor * sequence * data
    if devices % cut == 0:
      yield settings_lib.Mesh(
        data=data, fsdp=devices // cut, tensor=tensor, sequence=sequence
      )


def _computes(run: settings_lib.Run) -> Iterator[settings_lib.Compute]:
  """Yields ways to compute, the run's own among them."""
  own = run.compute

  def with_own(value: Any, values: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys((value, *values)))

  # Each chunk of a row is compiled apart.
  length = programs.length_of(run)
  chunks = [one for one in _ATTENTION if length <= _CHUNKS * one]
  for remat, parts, attention, vocabulary in itertools.product(
    with_own(own.remat, _REMAT),
    with_own(own.parts, _PARTS),
    with_own(own.attention_chunk, chunks),
    with_own(own.vocabulary_chunk, _VOCABULARY),
  ):
    yield dataclasses.replace(
      own,
      remat=remat,
      parts=parts,
      attention_chunk=attention,
      vocabulary_chunk=vocabulary,
    )


def _fits(run: settings_lib.Run, config: config_lib.ModelConfig) -> bool:
  """Says whether a mesh divides a model and a part of a batch."""
  rows, parts = settings_lib.rows(run), run.compute.parts
  if rows % parts:
    return False
  sizes = dataclasses.asdict(run.mesh)
  mesh = jax.sharding.AbstractMesh(
    tuple(sizes[name] for name in sharding_lib.MESH_AXES),
    sharding_lib.MESH_AXES,
  )
  try:
    sharding_lib.fit(
      config,
      mesh,
      rows=rows // parts,
      length=programs.length_of(run),
    )
  except errors.MeJaxError:
    return False
  return True


def _layers(found: list[Tried], hbm: int) -> list[Tried]:
  """Returns settings by fronts of guessed memory and time, fitting ones first.

  Args:
    found: the least guessed time first.
    hbm: of a device.
  """
  likely = [one for one in found if one.guess.peak <= hbm]
  unlikely = [one for one in found if one.guess.peak > hbm]
  ordered: list[Tried] = []
  for left in (likely, unlikely):
    # What comes after so many is never compiled, in whatever order.
    while left and len(ordered) < _RANKED:
      least, rest = None, []
      for one in left:
        if least is None or one.guess.peak < _APART * least:
          least = one.guess.peak
          ordered.append(one)
        else:
          rest.append(one)
      left = rest
    ordered += left
  return ordered
