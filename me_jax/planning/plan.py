"""Does a run fit a pod, what will it move, and how fast can it be?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from me_jax.planning import cached
from me_jax.planning import compile as compile_lib
from me_jax.planning import planned as planned_lib
from me_jax.planning import topology as topology_lib
from me_jax.planning import workload

Progress = Callable[[str, int, int], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What a run needs.

  Attributes:
    model: its name.
    topology: pod or cluster.
    mesh: sizes of its axes.
    programs: that the run consists of.
    notes: what is a bound and what is an estimate, a line each.
  """

  model: str
  topology: topology_lib.Topology
  mesh: Mapping[str, int]
  programs: tuple[planned_lib.Planned, ...]
  notes: tuple[str, ...]

  @property
  def fits(self) -> bool:
    """Whether every program does."""
    return all(one.fits for one in self.programs)


def make(
  targets: Sequence[workload.Target],
  *,
  model: str,
  topology: topology_lib.Topology,
  folder: pathlib.Path | None = None,
  progress: Progress | None = None,
) -> Plan:
  """Compiles programs, or finds what came of it before, and reads them.

  Args:
    targets: from `workload.targets`.
    model: its name.
    topology: of all devices.
    folder: of entries of `cached`; None to keep none.
    progress: called with what is done, and how far it is.

  Raises:
    MeJaxError: the compiler refuses a program, and not for want of memory.
  """
  tell = progress or (lambda *_: None)
  compiler = _Compiler(targets, folder)
  found = []
  for done, target in enumerate(targets):
    tell(f'compiling {target.program.name}', done, len(targets))
    found.append(compiler.planned(target))
    tell(f'compiling {target.program.name}', done + 1, len(targets))
  mesh = targets[0].program.mesh if targets else None
  return Plan(
    model=model,
    topology=topology,
    mesh=dict(mesh.shape) if mesh is not None else {},
    programs=tuple(found),
    notes=notes(topology, found),
  )


def notes(
  topology: topology_lib.Topology, found: Sequence[planned_lib.Planned]
) -> tuple[str, ...]:
  """Returns what is a bound and what is an estimate."""
  chip = topology.chip
  lines = []
  if topology.exact:
    lines.append(
      "memory: a bound, as XLA's own compiler for this chip lays it out. It keeps"
      ' a little for itself (0.25 of 16 GiB on a v5e): plan with some left.'
    )
  else:
    lines.append(
      'memory, FLOPs, bytes and exchanges: an estimate. There is no compiler'
      " for GPUs here, XLA's for CPUs stands in: it fuses less, computes"
      ' bfloat16 in float32 and overlaps no exchange.'
    )
  lines.append(
    'step time: from'
    f' {chip.name} at {chip.flops / chip.cores / 1e12:,.0f} TFLOP/s and'
    f' {chip.bandwidth / chip.cores / 1e9:,.0f} GB/s, as published. The first'
    ' is a bound: no run is faster. The second is an estimate: as if nothing'
    ' overlapped, but without latencies and waiting for data.'
  )
  lines.append(
    f'links: {chip.link_bandwidth / 1e9:,.0f} GB/s each way on each of a'
    f" chip's {chip.links}, as published, of which an exchange has those that"
    ' lie along its axes.'
  )
  lines.append('MFU and the higher tokens/s: bounds, from the first time.')
  if chip.cores > 1:
    lines.append(f'a chip is {chip.cores} devices; all numbers are of one.')
  if any(one.beside for one in found):
    lines.append(
      'beside: what a run keeps on the device while this program runs, such as'
      ' the training state.'
    )
  if any(one.topology != topology.name for one in found):
    lines.append(
      'prefill and decode: of one host, each draws its own share of answers.'
    )
  uncounted = [one.name for one in found if one.uncounted]
  if uncounted:
    lines.append(
      f'some loops of {", ".join(uncounted)} count once, as their length is'
      ' not in the program: it does more and takes longer than is shown.'
    )
  return tuple(lines)


def to_json(plan: Plan) -> dict[str, Any]:
  """Returns a plan as JSON types, in bytes, FLOPs and seconds a device."""
  topology = plan.topology
  return {
    'model': plan.model,
    'topology': {
      'name': topology.name,
      'chip': topology.chip.name,
      'chips': topology.chips,
      'devices': topology.devices,
      'shape': list(topology.shape),
      'slices': topology.slices,
      'sources': list(topology.chip.source),
    },
    'mesh': dict(plan.mesh),
    'fits': plan.fits,
    'exact': topology.exact,
    'notes': list(plan.notes),
    'programs': [planned_lib.to_json(one) for one in plan.programs],
  }


class _Compiler:
  """Compiles each program once at most, and only if nobody has before."""

  def __init__(
    self, targets: Sequence[workload.Target], folder: pathlib.Path | None
  ):
    self._targets = {one.program.name: one for one in targets}
    self._folder = folder
    self._lowered: dict[int, compile_lib.Lowered] = {}
    self._plain: dict[str, compile_lib.Compiled] = {}

  def planned(self, target: workload.Target) -> planned_lib.Planned:
    """Returns what a program needs."""
    texts = [self._lower(target).text]
    plain = self._targets.get(target.plain)
    if plain is not None:
      texts.append(self._lower(plain).text)
    name = cached.key(target, *texts)
    found = cached.get(self._folder, name)
    if found is None:
      found = planned_lib.read(
        target,
        self._compile(target),
        self._compile(plain) if plain is not None else None,
      )
      cached.put(self._folder, name, found)
    # An entry may be of another run, and of another name of the topology.
    found = dataclasses.replace(found, topology=target.topology.name)
    return found.with_beside(target.beside)

  def _lower(self, target: workload.Target) -> compile_lib.Lowered:
    # Two programs may have one name, of training and of generation.
    which = id(target.program)
    if which not in self._lowered:
      self._lowered[which] = compile_lib.lower(target.program)
    return self._lowered[which]

  def _compile(self, target: workload.Target) -> compile_lib.Compiled:
    name = target.program.name
    if name in self._plain:
      return self._plain[name]
    found = compile_lib.compile_for(target.program, self._lower(target))
    if any(other.plain == name for other in self._targets.values()):
      self._plain[name] = found
    return found
