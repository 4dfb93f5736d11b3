"""What did the compiler make of a program?

(Signatures; the reading follows.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from me_jax.planning import topology as topology_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """An exchange between devices.

  Attributes:
    name: of the instruction.
    kind: all-gather, all-reduce, reduce-scatter, all-to-all, collective-permute
      or collective-broadcast.
    shape: of the result, such as `bf16[1024,2048]`.
    size: bytes of the largest array that it has on one device: what is
      gathered, reduced or scattered.
    bytes: what one device sends, once.
    groups: of devices that exchange, by position in the mesh.
    axes: of the mesh that a group spans; empty if no mesh was given.
    network: whether it runs over the hosts' network.
    links: of a chip that it can use at a time.
    times: in one run of the program.
    inside_loop: whether a loop repeats it.
    op_name: where in the program's source it comes from.
  """

  name: str
  kind: str
  shape: str
  size: int
  bytes: int
  groups: tuple[tuple[int, ...], ...]
  axes: tuple[str, ...]
  network: bool
  links: int
  times: int
  inside_loop: bool
  op_name: str

  @property
  def group_size(self) -> int:
    """Devices that exchange with one another."""
    return max(map(len, self.groups), default=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buffer:
  """Arrays of one shape that a program makes.

  Attributes:
    shape: such as `bf16[1024,2048]`, of one device's part.
    bytes: of one.
    names: of the instructions that make them.
    inside_loop: whether a loop's body makes one.
    op_names: where in the program's source they come from.
  """

  shape: str
  bytes: int
  names: tuple[str, ...]
  inside_loop: bool
  op_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted:
  """What one device does in one run of a program.

  Attributes:
    flops: floating point operations.
    bytes: to and from its memory.
    unknown: loops whose length the text does not tell; counted once.
  """

  flops: float
  bytes: float
  unknown: tuple[str, ...]


def collectives(
  text: str,
  mesh: Any = None,
  topology: topology_lib.Topology | None = None,
) -> tuple[Collective, ...]:
  """Returns all exchanges of a compiled program.

  Args:
    text: `compiled.as_text()`.
    mesh: that it was compiled for.
    topology: of the mesh's devices.
  """
  raise NotImplementedError


def axes_of(groups: Sequence[Sequence[int]], mesh: Any) -> tuple[str, ...]:
  """Returns the mesh axes that groups of positions in a mesh span, in order."""
  raise NotImplementedError


def counted(text: str, cost: Mapping[str, float] | None = None) -> Counted:
  """Returns FLOPs and bytes with loops' bodies as often as they run.

  Args:
    text: `compiled.as_text()`.
    cost: `compiled.cost_analysis()`, which counts every body once.
  """
  raise NotImplementedError


def buffers(text: str, bound: int) -> tuple[Buffer, ...]:
  """Returns arrays larger than a bound, the largest first.

  Args:
    text: `compiled.as_text()`.
    bound: bytes.
  """
  raise NotImplementedError
