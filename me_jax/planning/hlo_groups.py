"""Which devices exchange, and over which wires?

Programs name devices by number. Within a slice it is the place among the
devices that run the program; a program for several TPU slices is printed as one
of them runs it, and says for exchanges between slices which devices of which
slice, counted from 1, take part.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

import numpy as np

from me_jax.planning import hlo_text
from me_jax.planning import topology as topology_lib

_IOTA = re.compile(
  r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
)
_LISTS = re.compile(r'replica_groups=\{((?:\{[\d,]*\},?)*)\}')
_MESH = re.compile(r'replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}')
_PAIRS = re.compile(r'source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}')
_SLICES = re.compile(r'_xla_megascale_target="?\{([\d,]+)\}x\{([\d,:]+)\}')
_BETWEEN = re.compile(r'_xla_megascale_target="?\{((?:\{[^}]*\},?)+)\}')
# How a device of a slice is numbered: slice, from 1, times this, and its own.
_SLICE = 100_000

Groups = tuple[tuple[int, ...], ...]


def _numbers(text: str) -> tuple[int, ...]:
  """Returns numbers between commas."""
  return tuple(int(n) for n in text.split(',') if n)


def _lists(text: str) -> Groups:
  """Returns lists of numbers in braces."""
  return tuple(
    _numbers(part) for part in re.findall(r'\{([\d,]*)\}', text) if part
  )


def read(rest: str, partitions: int) -> Groups:
  """Returns groups of an exchange within a slice, as numbered there.

  Args:
    rest: attributes of the instruction.
    partitions: devices that run the program.
  """
  match = _PAIRS.search(rest)
  if match:
    return tuple(pair for pair in _lists(match[1]) if pair[0] != pair[1])
  match = _IOTA.search(rest)
  if match:
    shape, source = _numbers(match[1]), _numbers(match[2])
    ids = np.arange(math.prod(source)).reshape(source)
    if match[3]:
      ids = ids.transpose(_numbers(match[3]))
    return tuple(map(tuple, ids.reshape(shape).tolist()))
  match = _MESH.search(rest)
  if match:
    axes = re.findall(r"'([^']*)'=(\d+)", match[1])
    spanned = re.findall(r"'([^']*)'", match[2])
    sizes = [int(size) for _, size in axes]
    order = [name for name, _ in axes]
    inner = [order.index(name) for name in spanned if name in order]
    outer = [axis for axis in range(len(order)) if axis not in inner]
    ids = np.arange(math.prod(sizes)).reshape(sizes).transpose(outer + inner)
    members = math.prod(sizes[axis] for axis in inner)
    return tuple(map(tuple, ids.reshape(-1, members).tolist()))
  match = _LISTS.search(rest)
  groups = _lists(match[1]) if match else ()
  return groups or (tuple(range(partitions)),)


def between(rest: str) -> Groups:
  """Returns groups of an exchange between slices, by the devices' ids.

  Args:
    rest: attributes of the instruction.
  """
  match = _SLICES.search(rest)
  if match:
    slices = _numbers(match[1])
    devices: list[int] = []
    for part in match[2].split(','):
      first, _, last = part.partition(':')
      devices.extend(range(int(first), int(last or first) + 1))
    return tuple(tuple(s * _SLICE + d for s in slices) for d in devices)
  match = _BETWEEN.search(rest)
  return _lists(match[1].replace('->', ',')) if match else ()


def axes_of(groups: Sequence[Sequence[int]], mesh: Any) -> tuple[str, ...]:
  """Returns the mesh axes that groups span, in the mesh's order.

  Args:
    groups: of positions in the mesh.
    mesh: of JAX.
  """
  places = np.stack(
    np.unravel_index(np.arange(mesh.devices.size), mesh.devices.shape)
  )
  varies = [
    any(len(set(places[axis, list(group)])) > 1 for group in groups)
    for axis in range(mesh.devices.ndim)
  ]
  return tuple(name for name, does in zip(mesh.axis_names, varies) if does)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Where devices stand.

  Attributes:
    partitions: devices that run the program.
    mesh: of JAX; None if it is not known.
    topology: of its devices; None if it is not known.
    first: positions in the mesh of the devices that run the program: of the
      first slice, if there are several.
    ids: position in the mesh of each id between slices.
    slice_of: slice or host of each position.
  """

  partitions: int
  mesh: Any
  topology: topology_lib.Topology | None
  first: tuple[int, ...]
  ids: dict[int, int]
  slice_of: tuple[int, ...]

  @classmethod
  def of(
    cls,
    mesh: Any,
    topology: topology_lib.Topology | None,
    partitions: int,
  ) -> Layout:
    """Returns the layout of a program that so many devices run."""
    devices = [] if mesh is None else list(mesh.devices.flat)
    where = [
      topology.slice_of(d) if topology else getattr(d, 'slice_index', 0) or 0
      for d in devices
    ]
    first = range(partitions)
    if partitions < len(devices):
      first = [i for i, part in enumerate(where) if part == 0]
    return cls(
      partitions=partitions,
      mesh=mesh,
      topology=topology,
      first=tuple(first),
      ids={
        (part + 1) * _SLICE + device.id % _SLICE: i
        for i, (part, device) in enumerate(zip(where, devices))
      },
      slice_of=tuple(where),
    )

  def groups(self, one: hlo_text.Instruction) -> Groups:
    """Returns the groups of an exchange, as positions in the mesh if known."""
    if one.opcode == 'send':
      groups = between(one.rest)
      if not self.ids:
        return groups
      return tuple(tuple(self.ids[i] for i in group) for group in groups)
    groups = read(one.rest, self.partitions)
    return tuple(tuple(self.first[i] for i in group) for group in groups)

  def slices(self, groups: Groups) -> int:
    """Returns how many slices or hosts a group spans at most."""
    if not self.slice_of:
      return max(len({i // _SLICE for i in group}) for group in groups)
    return max(len({self.slice_of[i] for i in group}) for group in groups)

  def axes(self, groups: Groups) -> tuple[str, ...]:
    """Returns the mesh axes that groups span."""
    return () if self.mesh is None else axes_of(groups, self.mesh)

  def links(self, groups: Groups, kind: str) -> float:
    """Returns how many links of a chip carry an exchange.

    In each dimension of a TPU slice that a group spans they are both of a ring,
    and one of a line, whose ends have no other. A permutation is taken to be
    between neighbours. In an all-to-all of k devices in a line or ring, values
    pass through k / 4 links on average, or k / 8, of those that the fullest
    has.
    """
    if kind == 'collective-permute' or self.mesh is None or not self.topology:
      return 1.0
    devices = list(self.mesh.devices.flat)
    if not self.topology.chip.tpu:
      return 1.0
    shape, wraps = self.topology.shape, self.topology.wraps
    best = []
    for dimension, (side, wrap) in enumerate(zip(shape, wraps)):
      length = max(
        len({devices[i].coords[dimension] for i in group}) for group in groups
      )
      if length > 1:
        ring = wrap and length == side and length > 2
        best.append((2.0 if ring else 1.0, length))
    if not best:  # two devices of one chip
      return 1.0
    if kind.endswith('all-to-all'):
      return min(min(4 * links / length, links) for links, length in best)
    return sum(links for links, _ in best)
