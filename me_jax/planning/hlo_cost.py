"""How much does a compiled program compute, and move to and from memory?

XLA's own analysis counts a loop's body once, however often it is run; so the
same is counted here, by XLA's rules (`HloCostAnalysis` in openxla/xla), once
with each body as often as it is run and once as XLA does, and XLA's number is
scaled by the ratio of the two.

Bytes are those of the chip's main memory alone: an array that the compiler
keeps on the chip costs nothing. XLA's number has both, so it is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import math
import re

import numpy as np

from me_jax.planning import hlo_loops
from me_jax.planning import hlo_text

# Of one operation for each element of the result.
_ELEMENTWISE = frozenset(
  'abs add and ceil clamp compare convert divide floor is-finite maximum'
  ' minimum multiply negate not or power-of-two remainder round-nearest-afz'
  ' round-nearest-even select shift-left shift-right-arithmetic'
  ' shift-right-logical sign subtract xor popcnt stochastic-convert'.split()
)
# Those that move nothing of their own: what others call is counted there.
_FREE = frozenset(
  'parameter constant get-tuple-element tuple bitcast while call conditional'
  ' after-all partition-id replica-id optimization-barrier async-start'
  ' async-update add-dependency domain'.split()
)
# Those that read only what they return.
_PART = frozenset(('dynamic-slice', 'slice', 'gather'))
# Targets that name memory.
_NOTHING = frozenset(
  ('AllocateBuffer', 'ConcatBitcast', 'AsyncCollectiveDone', 'Sharding')
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted:
  """What one device does in one run of a program.

  Attributes:
    flops: floating point operations.
    bytes: to and from its main memory.
    flops_once: of which with each loop's body counted once.
    unknown: loops whose length the text does not tell; counted once.
  """

  flops: float
  bytes: float
  flops_once: float
  unknown: tuple[str, ...]


def of(
  module: hlo_text.Module, cost: Mapping[str, float] | None = None
) -> Counted:
  """Returns what one device computes and moves.

  Args:
    module: of `hlo_text.parse`.
    cost: XLA's own, to which FLOPs are scaled.
  """
  run = hlo_loops.run(module)
  totals = np.zeros(3)
  for name, use in run.uses.items():
    computation = module.computations[name]
    for one in computation.instructions.values():
      flops = _flops(computation, one)
      moved = 0 if use.fused else _bytes(module, computation, one)
      totals += (flops * use.times, moved * use.times, flops)
  flops, moved, flops_once = totals.tolist()
  whole = (cost or {}).get('flops', 0)
  if whole > 0 and flops_once > 0:
    flops *= whole / flops_once
    flops_once = whole
  return Counted(
    flops=flops,
    bytes=moved,
    flops_once=flops_once,
    unknown=run.unknown,
  )


def _operands(
  computation: hlo_text.Computation, one: hlo_text.Instruction
) -> list[hlo_text.Instruction]:
  """Returns the instructions that another takes."""
  found = (computation.instructions.get(name) for name in one.operands)
  return [operand for operand in found if operand is not None]


def _flops(
  computation: hlo_text.Computation, one: hlo_text.Instruction
) -> float:
  """Returns an instruction's own floating point operations."""
  code = one.opcode
  if code in _ELEMENTWISE:
    return sum(array.elements for array in hlo_text.arrays(one.shape))
  if code == 'dot':
    left = hlo_text.arrays(_operands(computation, one)[0].shape)[0]
    result = hlo_text.arrays(one.shape)[0]
    inner = one.sizes('lhs_contracting_dims')
    return 2 * result.elements * math.prod(left.dims[axis] for axis in inner)
  if code == 'convolution':
    return _convolution(computation, one)
  if code in ('reduce', 'reduce-window'):
    takes = sum(
      array.elements
      for operand in _operands(computation, one)
      for array in hlo_text.arrays(operand.shape)
    )
    gives = sum(array.elements for array in hlo_text.arrays(one.shape))
    return max(takes - gives, 0)
  return 0


def _convolution(
  computation: hlo_text.Computation, one: hlo_text.Instruction
) -> float:
  """Returns FLOPs of a convolution, as which TPUs have products of matrices.

  A batch of products is one over a dimension so dilated that each place meets
  one of the other operand's alone: only where both have a value is there a
  product.
  """
  left, right = (
    hlo_text.arrays(operand.shape)[0]
    for operand in _operands(computation, one)[:2]
  )
  result = hlo_text.arrays(one.shape)[0]
  labels = re.match(r'(\w+)_(\w+)->(\w+)', _word(one.rest, 'dim_labels='))
  if labels is None:
    return 0
  inputs, kernels, outputs = labels.groups()
  products = (
    result.dims[outputs.index('b')]
    * result.dims[outputs.index('f')]
    * right.dims[kernels.index('i')]
  )
  window = _window(one.rest)
  for place, digit in enumerate(sorted(c for c in inputs if c.isdigit())):
    products *= _meetings(
      left.dims[inputs.index(digit)],
      right.dims[kernels.index(digit)],
      result.dims[outputs.index(digit)],
      *(
        window.get(key, {}).get(place, default)
        for key, default in (
          ('stride', 1), ('pad', 0), ('lhs_dilate', 1), ('rhs_dilate', 1)
        )
      ),
    )  # fmt: skip
  return 2 * products


def _word(rest: str, key: str) -> str:
  """Returns what follows a key up to a comma."""
  start = rest.find(key)
  return rest[start + len(key) :].split(',', 1)[0] if start >= 0 else ''


def _window(rest: str) -> dict[str, dict[int, int]]:
  """Returns what a convolution's window has for each dimension."""
  match = re.search(r'window=\{([^}]*)\}', rest)
  found: dict[str, dict[int, int]] = {}
  for part in match[1].split() if match else ():
    key, _, values = part.partition('=')
    found[key] = {
      place: int(value.split('_')[0])
      for place, value in enumerate(values.split('x'))
      if value.split('_')[0].lstrip('-').isdecimal()
    }
  return found


@functools.lru_cache(maxsize=4096)
def _meetings(
  left: int, right: int, result: int,
  stride: int, pad: int, left_dilate: int, right_dilate: int,
) -> int:  # fmt: skip
  """Returns how many places of a window's dimension meet a value."""
  if right == 1 and stride == left_dilate == 1 and not pad:
    return min(left, result)
  places = np.arange(result) * stride - pad
  width = (left - 1) * left_dilate + 1
  total = 0
  for tap in range(right):
    at = places + tap * right_dilate
    total += int(((at >= 0) & (at < width) & (at % left_dilate == 0)).sum())
  return total


def _main(shape: str) -> int:
  """Returns the bytes of a shape that are in main memory."""
  return sum(a.bytes for a in hlo_text.arrays(shape) if a.space == 0)


def _bytes(
  module: hlo_text.Module,
  computation: hlo_text.Computation,
  one: hlo_text.Instruction,
) -> float:
  """Returns what an instruction outside of fusions moves."""
  code = one.opcode
  if code in _FREE or one.attribute('custom_call_target') in _NOTHING:
    return 0
  if code.endswith('-done'):
    # Counted where it begins.
    return 0
  operands = _operands(computation, one)
  if code in ('copy-start', 'slice-start', 'dynamic-slice-start'):
    # The result has, before what it gives, what it was given; a copy's, after.
    gives = hlo_text.arrays(one.shape)
    target = gives[0 if code == 'copy-start' else len(one.operands)]
    source = hlo_text.arrays(operands[0].shape)[0]
    return target.bytes * ((target.space == 0) + (source.space == 0))
  if code in _PART:
    source = hlo_text.arrays(operands[0].shape)[0]
    read = sum(a.bytes for a in hlo_text.arrays(one.shape))
    return (read if source.space == 0 else 0) + _main(one.shape)
  if code == 'dynamic-update-slice':
    return 2 * _main(operands[1].shape)
  if code == 'fusion':
    return _fusion(module, one, operands)
  if code.endswith('-start'):
    return 2 * sum(_main(operand.shape) for operand in operands)
  return _main(one.shape) + sum(_main(operand.shape) for operand in operands)


def _fusion(
  module: hlo_text.Module,
  one: hlo_text.Instruction,
  operands: list[hlo_text.Instruction],
) -> float:
  """Returns what a fusion reads of its operands and writes of its result."""
  inner = module.computations.get(one.attribute('calls'))
  if inner is None:
    return _main(one.shape) + sum(_main(operand.shape) for operand in operands)
  total = _written(inner, one)
  for place, operand in enumerate(operands):
    full = _main(operand.shape)
    if full:
      total += min(full, _read(module, inner, place))
  return total


def _written(inner: hlo_text.Computation, one: hlo_text.Instruction) -> int:
  """Returns bytes that a fusion writes: of an updated array, the update."""
  root = inner.instructions[inner.root]
  arrays = hlo_text.arrays(one.shape)
  parts = _operands(inner, root) if root.opcode == 'tuple' else [root]
  if len(parts) != len(arrays):
    return _main(one.shape)
  total = 0
  for part, array in zip(parts, arrays):
    while part.opcode == 'bitcast' and part.operands[0] in inner.instructions:
      part = inner.instructions[part.operands[0]]
    if array.space or part.opcode == 'parameter':
      continue
    total += array.bytes
    if part.opcode == 'dynamic-update-slice':
      update = inner.instructions[part.operands[1]]
      total += sum(a.bytes for a in hlo_text.arrays(update.shape)) - array.bytes
  return total


def _read(
  module: hlo_text.Module, inner: hlo_text.Computation, place: int
) -> float:
  """Returns bytes that a fusion reads of one parameter; infinite if all."""
  names = [
    other.name
    for other in inner.instructions.values()
    if other.opcode == 'parameter' and other.operands == (str(place),)
  ]
  total = 0.0
  while names:
    name = names.pop()
    for other in inner.instructions.values():
      if name not in other.operands:
        continue
      if other.opcode in _PART and other.operands[0] == name:
        total += sum(a.bytes for a in hlo_text.arrays(other.shape))
      elif other.opcode == 'bitcast':
        names.append(other.name)
      elif other.opcode == 'fusion' and other.attribute('calls'):
        below = module.computations[other.attribute('calls')]
        for index, operand in enumerate(other.operands):
          if operand == name:
            total += _read(module, below, index)
      elif other.opcode == 'tuple' or (
        other.opcode == 'dynamic-update-slice' and other.operands[0] == name
      ):
        continue
      else:
        return math.inf
  return total
