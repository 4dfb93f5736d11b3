"""How is a compiled program's text put together?

XLA prints a module as computations, one instruction a line. Some instructions
run other computations: loops, branches, calls, and fusions, whose inner values
never go through memory.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

_ARRAY = re.compile(r'([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_PARTITIONS = re.compile(r'num_partitions=(\d+)')
_SPACE = re.compile(r'S\((\d+)\)')


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
  """One array of a shape.

  Attributes:
    dtype: as XLA names it.
    dims: its sizes.
    space: of memory: 0 is a chip's main memory, others lie on the chip.
  """

  dtype: str
  dims: tuple[int, ...]
  space: int

  @property
  def elements(self) -> int:
    """Numbers in it."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    """Bytes of it, without what a layout pads."""
    if self.dtype in ('token', 'opaque'):
      return 0
    bits = re.search(r'\d+', self.dtype)
    return math.ceil(self.elements * (int(bits[0]) if bits else 8) / 8)

  def __str__(self):
    return f'{self.dtype}[{",".join(map(str, self.dims))}]'


@functools.lru_cache(maxsize=1 << 16)
def arrays(shape: str) -> tuple[Array, ...]:
  """Returns the arrays of a shape, those of a tuple in order."""
  found = []
  for dtype, dims, layout in _ARRAY.findall(shape):
    space = _SPACE.search(layout)
    sizes = tuple(int(d.lstrip('<=')) for d in dims.split(',') if d)
    found.append(
      Array(dtype=dtype, dims=sizes, space=int(space[1]) if space else 0)
    )
  return tuple(found)


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
  """One line.

  Attributes:
    name: within its computation.
    opcode: what it does.
    shape: of its result, with layout.
    operands: names of instructions of the same computation; a literal of a
      constant.
    rest: its attributes.
  """

  name: str
  opcode: str
  shape: str
  operands: tuple[str, ...]
  rest: str

  def attribute(self, key: str) -> str:
    """Returns a one-word attribute without `%`; empty if there is none."""
    start = self.rest.find(f'{key}=')
    if start < 0:
      return ''
    match = re.compile(r'%?([\w.\-"]*)').match(self.rest, start + len(key) + 1)
    return match[1].strip('"') if match else ''

  def sizes(self, key: str) -> tuple[int, ...]:
    """Returns an attribute that is a list of numbers in braces."""
    match = re.search(rf'{key}=\{{([\d,]*)\}}', self.rest)
    return tuple(int(n) for n in match[1].split(',') if n) if match else ()

  @property
  def op_name(self) -> str:
    """Where in the program's source it comes from."""
    match = re.search(r'op_name="([^"]*)"', self.rest)
    return match[1] if match else ''


@dataclasses.dataclass(frozen=True, slots=True)
class Computation:
  """Instructions by name, in order, and the one whose result is returned."""

  name: str
  instructions: dict[str, Instruction]
  root: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Module:
  """A program.

  Attributes:
    computations: by name.
    entry: name of the first.
    partitions: devices that run it together: of several TPU slices, those of
      one.
    callers: computation and instruction that call one.
  """

  computations: dict[str, Computation]
  entry: str
  partitions: int
  callers: dict[str, tuple[str, Instruction]]


# An analysis is read beside a plain pass.
@functools.lru_cache(maxsize=2)
def parse(text: str) -> Module:
  """Returns a program that was printed.

  Args:
    text: `compiled.as_text()`.
  """
  computations: dict[str, Computation] = {}
  entry, name, root = '', '', ''
  instructions: dict[str, Instruction] = {}
  for line in text.splitlines():
    if line.startswith('  '):
      found = _instruction(line)
      if found and name:
        instructions[found.name] = found
        if line.startswith('  ROOT '):
          root = found.name
    elif line.startswith('}'):
      if name:
        computations[name] = Computation(name, instructions, root)
      name, root, instructions = '', '', {}
    elif line.endswith('{') and line.startswith(('%', 'ENTRY ')):
      match = _NAME.search(line)
      name = match[1] if match else ''
      if line.startswith('ENTRY '):
        entry = name
  partitions = _PARTITIONS.search(text, 0, text.find('\n'))
  callers = {
    callee: (caller.name, one)
    for caller in computations.values()
    for one in caller.instructions.values()
    for callee in callees(one)
  }
  return Module(
    computations=computations,
    entry=entry,
    partitions=int(partitions[1]) if partitions else 1,
    callers=callers,
  )


def _instruction(line: str) -> Instruction | None:
  """Returns what a line says; None if it is no instruction."""
  left, separator, right = line.partition(' = ')
  if not separator:
    return None
  # A tuple's shape ends at the first `) `: layouts have no spaces.
  end = right.find(') ') + 1 if right.startswith('(') else right.find(' ')
  start = right.find('(', end)
  if end < 1 or start < 0:
    return None
  close = right.find('), ', start)
  if close < 0:
    close = right.rfind(')')
  inner = right[start + 1 : close]
  names = tuple(_NAME.findall(inner)) or ((inner,) if inner else ())
  return Instruction(
    left.split()[-1].lstrip('%'),
    right[end + 1 : start],
    right[:end],
    names,
    right[close + 1 :],
  )


def callees(one: Instruction) -> tuple[str, ...]:
  """Returns the computations that an instruction runs, but for scalar ones."""
  if one.opcode == 'while':
    return (one.attribute('body'), one.attribute('condition'))
  if one.opcode == 'conditional':
    match = re.search(r'branch_computations=\{([^}]*)\}', one.rest)
    if match:
      return tuple(_NAME.findall(match[1]))
    return (
      one.attribute('true_computation'),
      one.attribute('false_computation'),
    )
  if one.opcode == 'call':
    return (one.attribute('to_apply'),)
  if one.opcode in ('fusion', 'async-start'):
    return (one.attribute('calls'),)
  return ()
