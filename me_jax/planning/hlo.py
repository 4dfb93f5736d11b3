"""What did the compiler make of a program?

`collectives` are what devices send to one another, `buffers` the arrays that are
made, `counted` the arithmetic and the traffic with memory; all from the text
that a compiled program prints, read by `hlo_text`, with what loops repeat
counted as often as `hlo_loops` says.

A device that exchanges with the n of its group, each of which ends or begins
with V bytes, sends at least, on a ring (Thakur, Rabenseifner, Gropp 2005):

  all-gather, reduce-scatter   V (n - 1) / n
  all-reduce                 2 V (n - 1) / n, as a reduce-scatter and a gather
  all-to-all                   V (n - 1) / n
  collective-permute           V
  collective-broadcast         V
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from me_jax.planning import hlo_cost
from me_jax.planning import hlo_groups
from me_jax.planning import hlo_loops
from me_jax.planning import hlo_text
from me_jax.planning import topology as topology_lib

KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)

# Name that TPU programs have for exchanges between slices, which go through the
# hosts and so are printed as `send` and `recv`.
_BETWEEN = re.compile(r'_xla_megascale_transfer_type="([A-Z_]+)"')
# What makes no array of its own.
_NO_ARRAY = (
  'parameter',
  'get-tuple-element',
  'tuple',
  'bitcast',
  'while',
  'conditional',
  'call',
  'optimization-barrier',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """An exchange between devices.

  Attributes:
    name: of the instruction.
    kind: one of `KINDS`.
    shape: of the largest array that it gives or, if smaller, takes, such as
      `bf16[1024,2048]`.
    size: V of the module's docstring.
    bytes: what one device sends, once.
    network_bytes: the part of it that goes over the hosts' network, if
      exchanges within a slice or host are used as far as they go.
    groups: of devices that exchange, by position in the mesh.
    axes: of the mesh that a group spans; empty if no mesh was given.
    links: of a chip that carry it at a time; fewer than 1 where values pass
      through other chips.
    times: in one run of the program.
    inside_loop: whether a loop repeats it.
    op_name: where in the program's source it comes from.
    loops: that repeat it, by where they come from, the outermost first.
    gathers: whether each device ends with what the others had: also by a sum,
      to which each gives its part in its place among zeros.
  """

  name: str
  kind: str
  shape: str
  size: int
  bytes: float
  network_bytes: float
  groups: tuple[tuple[int, ...], ...]
  axes: tuple[str, ...]
  links: float
  times: int
  inside_loop: bool
  op_name: str
  loops: tuple[str, ...] = ()
  gathers: bool = False

  @property
  def network(self) -> bool:
    """Whether it runs over the hosts' network."""
    return self.network_bytes > 0


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


def collectives(
  text: str,
  mesh: Any = None,
  topology: topology_lib.Topology | None = None,
) -> tuple[Collective, ...]:
  """Returns all exchanges of a compiled program that have a partner.

  Those that start and end in two instructions, or are spread over several
  fusions, are counted once. A TPU's `all-reduce-scatter` fusion is a
  reduce-scatter, as it is run.

  Args:
    text: `compiled.as_text()`.
    mesh: that it was compiled for; without, axes are not known, groups of
      several slices count the devices of one, and each group has one link.
    topology: of the mesh's devices.
  """
  module = hlo_text.parse(text)
  layout = hlo_groups.Layout.of(mesh, topology, module.partitions)
  found = []
  for name, use in hlo_loops.run(module).uses.items():
    computation = module.computations[name]
    for one in computation.instructions.values():
      kind = _kind(module, computation, one)
      if not kind:
        continue
      groups = layout.groups(one)
      if max(map(len, groups), default=1) < 2:
        continue
      gathers = kind == 'all-gather' or (
        kind == 'all-reduce'
        and any(_put(module, name, operand) for operand in one.operands)
      )
      exchange = _collective(computation, one, kind, groups, layout, use)
      found.append(dataclasses.replace(exchange, gathers=gathers))
  return tuple(found)


def _kind(
  module: hlo_text.Module,
  computation: hlo_text.Computation,
  one: hlo_text.Instruction,
) -> str:
  """Returns which kind of exchange begins here; empty if none does."""
  if one.opcode == 'send':
    match = _BETWEEN.search(one.rest)
    if not match:
      return ''
    kind = match[1].lower().replace('_', '-')
    return kind if kind in KINDS else 'collective-permute'
  kind = one.opcode.removesuffix('-start')
  if kind not in KINDS:
    return ''
  if '"async_collective_fusion_config"' in one.rest:
    # Each fusion that it is spread over has a copy.
    starts = any(
      other.opcode == 'custom-call'
      and one.name in other.operands
      and other.attribute('custom_call_target') == 'AsyncCollectiveStart'
      for other in computation.instructions.values()
    )
    if not starts:
      return ''
  if kind == 'all-reduce' and computation.name in module.callers:
    caller = module.callers[computation.name][1]
    if caller.opcode == 'fusion' and 'all-reduce-scatter' in computation.name:
      return 'reduce-scatter'
  return kind


def _put(module: hlo_text.Module, name: str, value: str) -> bool:
  """Returns whether a value is a part that was put among zeros."""
  for _ in range(100):
    one = module.computations[name].instructions.get(value)
    if one is None:
      return False
    if one.opcode in ('bitcast', 'convert', 'copy', 'reshape', 'transpose'):
      value = one.operands[0]
    elif one.opcode in ('fusion', 'call'):
      name = hlo_text.callees(one)[0]
      value = module.computations[name].root
    else:
      return one.opcode == 'dynamic-update-slice'
  return False


def _collective(
  computation: hlo_text.Computation,
  one: hlo_text.Instruction,
  kind: str,
  groups: tuple[tuple[int, ...], ...],
  layout: hlo_groups.Layout,
  use: hlo_loops.Use,
) -> Collective:
  """Returns an exchange with what it sends."""
  members = max(map(len, groups))
  operands = one.operands[:1] if one.opcode == 'send' else one.operands
  taken = [
    array
    for operand in operands
    if operand in computation.instructions
    for array in hlo_text.arrays(computation.instructions[operand].shape)
  ]
  size = sum(array.bytes for array in taken)
  if kind == 'all-gather':
    size *= members
  largest = max(
    (*hlo_text.arrays(one.shape), *taken), key=lambda array: array.bytes
  )
  slices = layout.slices(groups)
  if kind in ('collective-permute', 'collective-broadcast'):
    sent = size
    over = size if slices > 1 else 0
  else:
    moved = size
    if kind == 'all-reduce':
      # It may take float32 and give bfloat16.
      given = sum(array.bytes for array in hlo_text.arrays(one.shape))
      moved += size if one.opcode == 'send' else given
    sent = moved * (members - 1) / members
    if kind.endswith('all-to-all'):
      over = moved * (slices - 1) / slices
    else:
      over = moved * (slices - 1) / members
  return Collective(
    name=one.name,
    kind=kind,
    shape=str(largest),
    size=size,
    bytes=sent,
    network_bytes=over,
    groups=groups,
    axes=layout.axes(groups),
    links=layout.links(groups, kind),
    times=use.times,
    inside_loop=use.loop,
    op_name=one.op_name,
    loops=use.loops,
  )


def counted(
  text: str, cost: Mapping[str, float] | None = None
) -> hlo_cost.Counted:
  """Returns FLOPs and bytes with loops' bodies as often as they run.

  Args:
    text: `compiled.as_text()`.
    cost: `compiled.cost_analysis()`, to scale by what it has more than is
      counted here.
  """
  return hlo_cost.of(hlo_text.parse(text), cost)


def buffers(text: str, bound: int) -> tuple[Buffer, ...]:
  """Returns arrays larger than a bound, the largest first.

  They are those that an instruction outside of fusions makes; arguments and
  what only names a part of another array are not.

  Args:
    text: `compiled.as_text()`.
    bound: bytes.
  """
  module = hlo_text.parse(text)
  found: dict[str, list[tuple[hlo_text.Instruction, bool]]] = {}
  sizes: dict[str, int] = {}
  for name, use in hlo_loops.run(module).uses.items():
    if use.fused:
      continue
    for one in module.computations[name].instructions.values():
      if one.opcode in _NO_ARRAY or one.opcode.endswith('-done'):
        continue
      for array in _made(module.computations[name], one):
        if array.bytes > bound:
          sizes[str(array)] = array.bytes
          found.setdefault(str(array), []).append((one, use.loop))
  return tuple(
    Buffer(
      shape=shape,
      bytes=sizes[shape],
      names=tuple(one.name for one, _ in found[shape]),
      inside_loop=any(loop for _, loop in found[shape]),
      op_names=tuple(sorted({o.op_name for o, _ in found[shape]} - {''})),
    )
    for shape in sorted(found, key=lambda shape: -sizes[shape])
  )


def _made(
  computation: hlo_text.Computation, one: hlo_text.Instruction
) -> list[hlo_text.Array]:
  """Returns arrays that an instruction makes, without those it hands on."""
  made = list(hlo_text.arrays(one.shape))
  if one.opcode.endswith('-start') or one.opcode == 'send':
    for operand in one.operands:
      if operand in computation.instructions:
        shape = computation.instructions[operand].shape
        for taken in map(str, hlo_text.arrays(shape)):
          same = [array for array in made if str(array) == taken]
          if same:
            made.remove(same[-1])
  return made
