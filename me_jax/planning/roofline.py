"""How fast can a program be, at best and without any overlap?

Four things take time: arithmetic, main memory, the links between chips, and the
network between slices or hosts (Williams, Waterman, Patterson 2009, with wires
added). If each is busy all the time, the longest is how long the program takes:
nothing makes it faster, at the published figures. If none overlaps another, it
takes the sum; a program that waits for nothing else is between the two.
Latencies are not counted, so programs of small pieces, as decoding is, take
longer still.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import itertools

from me_jax import errors
from me_jax.planning import hlo as hlo_lib
from me_jax.planning import topology as topology_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
  """Times in seconds, of one run of a program.

  Attributes:
    compute: of arithmetic at the peak of dense bfloat16.
    memory: of main memory's traffic.
    links: of exchanges within slices or hosts, one after another.
    links_least: of those along the mesh's busiest axis: exchanges along
      different axes may overlap, and permutations in opposite directions.
    network: of exchanges between them.
    bound: which is the longest: compute, memory, links or network.
    best: no run takes less: the longest, of links the least.
    worst: the sum of all four, of links one after another.
    peak: FLOP/s of one device.
    devices: in all.
  """

  compute: float
  memory: float
  links: float
  links_least: float
  network: float
  bound: str
  best: float
  worst: float
  peak: float
  devices: int

  def mfu(self, model_flops: float) -> float:
    """Returns the bound of model FLOPs utilisation, at most 1.

    Args:
      model_flops: that the model itself needs, of all devices together
        (`training.flops.of_step`).
    """
    return model_flops / (self.best * self.peak * self.devices)


def of(
  flops: float,
  bytes: float,
  collectives: Sequence[hlo_lib.Collective],
  topology: topology_lib.Topology,
) -> Roofline:
  """Returns how long a program takes.

  Args:
    flops: of one device (`hlo.counted`).
    bytes: between one device and its main memory.
    collectives: with axes and links of the topology (`hlo.collectives` with a
      mesh).
    topology: that it was compiled for.

  Raises:
    MeJaxError: slices exchange, and the network's speed is not published.
  """
  chip = topology.chip
  # By axis and direction, each of which has wires of its own.
  busy: dict[tuple[str, int], float] = {}
  links = network = 0.0
  for one in collectives:
    # Devices of one chip share its wires.
    within = one.times * (one.bytes - one.network_bytes) * chip.cores
    seconds = within / (one.links * chip.link_bandwidth)
    links += seconds
    for key in itertools.product(one.axes or ('',), _directions(one)):
      busy[key] = busy.get(key, 0.0) + seconds
    if one.network_bytes:
      if chip.hosts_network is None:
        raise errors.MeJaxError(
          f'{topology.name} has several slices, and no speed of the network'
          f' between those of {chip.name} is published: plan for one slice.'
        )
      over = one.times * one.network_bytes * chip.cores
      network += over / chip.hosts_network
  peak = chip.flops / chip.cores
  parts = {
    'compute': flops / peak,
    'memory': bytes / (chip.bandwidth / chip.cores),
    'links': max(busy.values(), default=0.0),
    'network': network,
  }
  bound = max(parts, key=lambda part: parts[part])
  return Roofline(
    compute=parts['compute'],
    memory=parts['memory'],
    links=links,
    links_least=parts['links'],
    network=network,
    bound=bound,
    best=parts[bound],
    worst=parts['compute'] + parts['memory'] + links + network,
    peak=peak,
    devices=topology.devices,
  )


def _directions(one: hlo_lib.Collective) -> tuple[int, ...]:
  """Returns which directions of links an exchange takes: both, or one."""
  if one.kind != 'collective-permute':
    return (1, -1)
  forward = sum(1 if pair[0] < pair[-1] else -1 for pair in one.groups)
  return (1,) if forward > 0 else (-1,)
