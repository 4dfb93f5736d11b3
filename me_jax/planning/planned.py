"""What does one program need on each device, and how long may it take?

Of what the compiler made: memory as it lays it out, arithmetic, traffic and
exchanges as its text says, times from the chip's published figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

from me_jax.planning import checks
from me_jax.planning import compile as compile_lib
from me_jax.planning import hlo
from me_jax.planning import roofline
from me_jax.planning import topology as topology_lib
from me_jax.planning import workload

# Of a device's memory, what is worth a finding.
_WORTH = 1024
# They have a few tokens, whose logits and cache are what they are for.
_UNCHECKED = ('prefill', 'decode', 'monitor')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exchange:
  """Collectives of one kind over the same axes and wires, added up.

  Attributes:
    kind: one of `hlo.KINDS`.
    axes: of the mesh.
    link: `ICI` or `NVLink` within a slice or host, `DCN` between slices, `NIC`
      between hosts of GPUs; where an exchange uses both, the latter.
    where: `layers` in the loop over layers, `loop` in another, or `once`.
    times: in a run of the program.
    bytes: that a device sends in all of them.
    network_bytes: of which over the hosts' network.
    largest: shape of the largest one.
  """

  kind: str
  axes: tuple[str, ...]
  link: str
  where: str
  times: int
  bytes: float
  network_bytes: float
  largest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
  """A program on one device of JAX; bytes, FLOPs and seconds.

  Attributes:
    name: of the program.
    topology: that it was compiled for.
    devices: of that.
    hbm: that a device has.
    parameters: of its arguments.
    optimizer: the same.
    inputs: its other arguments, such as a batch or a cache.
    outputs: that do not lie where arguments did.
    temporary: activations, gradients, gathered and cast weights, a cache in
      another layout, and whatever else is between.
    code: of the program.
    beside: what waits on the device meanwhile.
    peak: all of it.
    tokens: of a run of the program on all devices; 0 where it has none.
    model_flops: that the model needs for them, on all devices; 0 where it is
      not a step.
    flops: of a device.
    traffic: with its memory.
    exchanges: with other devices, the most bytes first.
    compute: seconds of arithmetic at the published peak.
    memory: of traffic with memory.
    links: of exchanges within slices or hosts, one after another.
    links_least: of those along the mesh's busiest axis.
    network: of those between.
    bound: compute, memory, links or network: which takes longest, of links
      the least; empty if the program was refused.
    best: seconds of that, as if all overlapped; nothing is faster.
    worst: if nothing does, the sum of all; latencies are not in it.
    utilization: bound of the model FLOPs utilisation; None if it is no step.
    seconds: that lowering and compiling took.
    cached: whether that was another time.
    refused: why the compiler did not make it, empty if it did.
    uncounted: loops whose length is not known, counted once.
    findings: of `checks`, none is sound.
  """

  name: str
  topology: str
  devices: int
  hbm: int
  parameters: int
  optimizer: int
  inputs: int = 0
  outputs: int = 0
  temporary: int = 0
  code: int = 0
  beside: int = 0
  peak: int
  tokens: int = 0
  model_flops: float = 0.0
  flops: float = 0.0
  traffic: float = 0.0
  exchanges: tuple[Exchange, ...] = ()
  compute: float = 0.0
  memory: float = 0.0
  links: float = 0.0
  links_least: float = 0.0
  network: float = 0.0
  bound: str = ''
  best: float = 0.0
  worst: float = 0.0
  utilization: float | None = None
  seconds: float = 0.0
  cached: bool = False
  refused: str = ''
  uncounted: int = 0
  findings: tuple[str, ...] = ()

  @property
  def room(self) -> int:
    """Bytes that are left of a device's memory; negative if it does not fit."""
    return self.hbm - self.peak

  @property
  def fits(self) -> bool:
    """Whether it does."""
    return not self.refused and self.room >= 0

  @property
  def rate(self) -> tuple[float, float] | None:
    """Tokens/s of all devices without overlap and at best; None if none."""
    if not self.tokens or not self.best:
      return None
    return self.tokens / self.worst, self.tokens / self.best

  def with_beside(self, beside: int) -> Planned:
    """Returns the same with other things waiting on the device."""
    peak = self.peak - self.beside + beside
    return dataclasses.replace(self, beside=beside, peak=peak)


def read(
  target: workload.Target,
  compiled: compile_lib.Compiled,
  plain: compile_lib.Compiled | None = None,
) -> Planned:
  """Returns what a compiled program needs.

  Args:
    target: what was compiled, and where.
    compiled: the result.
    plain: of the program that it is compared with, if there is one.

  Raises:
    MeJaxError: slices exchange, and the network's speed is not published.
  """
  program, topology = target.program, target.topology
  own, taken = compiled.memory, workload.parameters(program)
  optimizer = workload.optimizer(program)
  common: dict[str, Any] = {
    'name': program.name,
    'topology': topology.name,
    'devices': topology.devices,
    'hbm': topology.chip.hbm // topology.chip.cores,
    'parameters': taken,
    'optimizer': optimizer,
    'beside': target.beside,
    'peak': own.peak + target.beside,
    'tokens': program.tokens,
    'model_flops': program.model_flops,
    'seconds': compiled.seconds,
  }
  if compiled.refused:
    return Planned(**common, refused=compiled.refused)
  counted = hlo.counted(compiled.text, compiled.cost)
  found = hlo.collectives(compiled.text, program.mesh, topology)
  times = roofline.of(counted.flops, counted.bytes, found, topology)
  findings: tuple[str, ...] = ()
  if program.name not in _UNCHECKED:
    least = common['hbm'] // _WORTH
    findings += checks.all_checks(program, compiled, least)
  if plain is not None and not plain.refused:
    findings += checks.measuring(program, compiled, plain)
  model = program.model_flops
  return Planned(
    **common,
    inputs=max(own.arguments - taken - optimizer, 0),
    outputs=own.outputs - own.aliased,
    temporary=own.temporary,
    code=own.code,
    flops=counted.flops,
    traffic=counted.bytes,
    exchanges=exchanges(found, topology),
    compute=times.compute,
    memory=times.memory,
    links=times.links,
    links_least=times.links_least,
    network=times.network,
    bound=times.bound,
    best=times.best,
    worst=times.worst,
    utilization=times.mfu(model) if model and times.best else None,
    uncounted=len(counted.unknown),
    findings=findings,
  )


def exchanges(
  found: Sequence[hlo.Collective], topology: topology_lib.Topology
) -> tuple[Exchange, ...]:
  """Returns collectives in groups, the most bytes first."""
  near, far = ('ICI', 'DCN') if topology.chip.tpu else ('NVLink', 'NIC')
  groups: dict[Any, list[hlo.Collective]] = {}
  for one in found:
    where = 'once'
    if one.inside_loop:
      where = 'layers' if checks.in_layers(one) else 'loop'
    key = one.kind, one.axes, far if one.network else near, where
    groups.setdefault(key, []).append(one)
  made = [
    Exchange(
      kind=kind,
      axes=axes,
      link=link,
      where=where,
      times=sum(one.times for one in those),
      bytes=sum(one.times * one.bytes for one in those),
      network_bytes=sum(one.times * one.network_bytes for one in those),
      largest=max(those, key=lambda one: one.size).shape,
    )
    for (kind, axes, link, where), those in groups.items()
  ]
  return tuple(sorted(made, key=lambda one: -one.bytes))


def to_json(planned: Planned) -> dict[str, Any]:
  """Returns a program's numbers as JSON types."""
  content = dataclasses.asdict(planned)
  rate = planned.rate
  return content | {
    'fits': planned.fits,
    'room': planned.room,
    'tokens_per_second': None if rate is None else list(rate),
  }


def from_json(content: Mapping[str, Any]) -> Planned:
  """Returns what `to_json` was given.

  Raises:
    ValueError: it is something else.
  """
  fields = {field.name: field for field in dataclasses.fields(Planned)}
  try:
    values = {name: content[name] for name in fields}
    values['findings'] = tuple(values['findings'])
    values['exchanges'] = tuple(
      Exchange(**one | {'axes': tuple(one['axes'])})
      for one in values['exchanges']
    )
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(f'no plan of a program: {error}') from error
  for name, value in values.items():
    if 'int' in str(fields[name].type) or 'float' in str(fields[name].type):
      number = isinstance(value, int | float) and math.isfinite(value)
      if not number and not (value is None and 'None' in fields[name].type):
        raise ValueError(f'{name} is {value!r}')
  return Planned(**values)
