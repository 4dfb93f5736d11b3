"""How often is each part of a compiled program run?

A loop's length is in `known_trip_count` or, as in TPU programs, only in what
its condition compares: a counter, which the body adds to, and a limit. A loop
that may end before, as that over steps of decoding does once no row goes on,
counts as often as it may run.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

from me_jax.planning import hlo_text

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# What passes a number on as it is.
_SAME = ('copy', 'bitcast', 'convert', 'reshape', 'broadcast')
# A constant, or a computation of a loop and which part of the state it is given.
_Origin = int | tuple[str, int] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Use:
  """How a computation is run.

  Attributes:
    times: in one run of the program, with loops.
    loops: that repeat it, by what they are called in the program's source, the
      outermost first.
    fused: whether it is within a fusion, so that only the fusion's operands and
      results go through memory.
  """

  times: int
  loops: tuple[str, ...]
  fused: bool

  @property
  def loop(self) -> bool:
    """Whether a loop repeats it."""
    return bool(self.loops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """How a program is run.

  Attributes:
    uses: of each computation that is run, by name.
    unknown: loops whose length is not known; they count as run once.
  """

  uses: dict[str, Use]
  unknown: tuple[str, ...]


@functools.lru_cache(maxsize=1)
def run(module: hlo_text.Module) -> Run:
  """Returns how often each computation is run.

  Of branches, each counts as taken.

  Args:
    module: of `hlo_text.parse`.
  """
  uses: dict[str, Use] = {}
  unknown: list[str] = []

  def visit(name: str, use: Use) -> None:
    if name not in module.computations:
      return
    before = uses.get(name)
    uses[name] = (
      Use(
        times=use.times + before.times,
        loops=use.loops or before.loops,
        fused=use.fused,
      )
      if before
      else use
    )
    for one in module.computations[name].instructions.values():
      below = use
      if one.opcode == 'while':
        trips = _trips(module, name, one)
        if trips is None and one.name not in unknown:
          unknown.append(one.name)
        times = use.times * (1 if trips is None else trips)
        loops = (*use.loops, one.op_name)
        below = dataclasses.replace(use, times=times, loops=loops)
      elif one.opcode == 'fusion':
        below = dataclasses.replace(use, fused=True)
      for callee in hlo_text.callees(one):
        visit(callee, below)

  visit(module.entry, Use(times=1, loops=(), fused=False))
  return Run(uses=uses, unknown=tuple(unknown))


def _trips(
  module: hlo_text.Module, name: str, loop: hlo_text.Instruction
) -> int | None:
  """Returns how often a loop's body is run; None if the text does not tell.

  Where several things must hold for it to go on, it is run so often at most.
  """
  match = _TRIPS.search(loop.rest)
  if match:
    return int(match[1])
  condition = module.computations.get(loop.attribute('condition'))
  body = module.computations.get(loop.attribute('body'))
  if condition is None or body is None:
    return None
  found = [
    _holds(module, name, loop, body, place, test)
    for place, test in _tests(module, condition.name, condition.root)
  ]
  return min((times for times in found if times is not None), default=None)


def _tests(
  module: hlo_text.Module, name: str, value: str
) -> Iterator[tuple[str, hlo_text.Instruction]]:
  """Yields comparisons that must all hold, and the computation of each."""
  one = module.computations[name].instructions[value]
  if one.opcode == 'compare':
    yield name, one
  elif one.opcode == 'and':
    for operand in one.operands:
      yield from _tests(module, name, operand)
  elif one.opcode in ('fusion', 'call'):
    name = hlo_text.callees(one)[0]
    yield from _tests(module, name, module.computations[name].root)


def _holds(
  module: hlo_text.Module,
  name: str,
  loop: hlo_text.Instruction,
  body: hlo_text.Computation,
  place: str,
  test: hlo_text.Instruction,
) -> int | None:
  """Returns how often a test of a loop holds, one time after another.

  Args:
    module: where it is.
    name: of the loop's computation.
    loop: whose condition has the test.
    body: of the loop.
    place: the test's computation.
    test: a comparison.
  """
  counter, limit = (
    _origin(module, place, operand) for operand in test.operands
  )
  direction = test.attribute('direction')
  if not _counts(module, body, counter):
    counter, limit = limit, counter
    direction = direction.translate(str.maketrans('LG', 'GL'))
  if not isinstance(counter, tuple) or direction == 'EQ':
    return None
  step = _step(module, body, counter[1])
  first = _number(module, _origin(module, name, loop.operands[0], counter[1]))
  last = _number(module, limit)
  if first is None or last is None or not step:
    return None
  steps = (last - first) / step
  if direction in ('LE', 'GE'):
    steps = math.floor(steps) + 1
  return max(math.ceil(steps), 0)


def _counts(
  module: hlo_text.Module, body: hlo_text.Computation, value: _Origin
) -> bool:
  """Returns whether a value is a part of the state that the body adds to."""
  return isinstance(value, tuple) and bool(_step(module, body, value[1]))


def _step(
  module: hlo_text.Module, body: hlo_text.Computation, index: int
) -> int | None:
  """Returns what a loop's body adds to a part of its state."""
  state = body.instructions[body.root]
  if state.opcode != 'tuple':
    return None
  name, value = body.name, state.operands[index]
  for _ in range(100):
    one = module.computations[name].instructions.get(value)
    if one is None:
      return None
    if one.opcode in _SAME:
      value = one.operands[0]
    elif one.opcode in ('fusion', 'call'):
      name = hlo_text.callees(one)[0]
      value = module.computations[name].root
    elif one.opcode in ('add', 'subtract'):
      before, by = (_origin(module, name, operand) for operand in one.operands)
      if one.opcode == 'add' and isinstance(before, int):
        before, by = by, before
      if before != (body.name, index) or not isinstance(by, int):
        return None
      return by if one.opcode == 'add' else -by
    else:
      return None
  return None


def _origin(
  module: hlo_text.Module, name: str, value: str, index: int | None = None
) -> _Origin:
  """Returns where a value comes from; None if that is not known.

  Args:
    module: where it is.
    name: of its computation.
    value: name of the instruction.
    index: of a tuple, which part.
  """
  for _ in range(100):
    one = module.computations[name].instructions.get(value)
    if one is None:
      return None
    if one.opcode == 'constant':
      return _literal(one)
    if one.opcode == 'tuple' and index is not None:
      value, index = one.operands[index], None
    elif one.opcode == 'get-tuple-element' and index is None:
      value, index = one.operands[0], int(one.attribute('index'))
    elif one.opcode in _SAME or _keeps(module, one, index):
      value = one.operands[0]
    elif one.opcode == 'parameter' and name in module.callers:
      above, caller = module.callers[name]
      if caller.opcode == 'while' and index is not None:
        return name, index
      if caller.opcode not in ('fusion', 'call'):
        return None
      name, value = above, caller.operands[int(one.operands[0])]
    else:
      return None
  return None


def _keeps(
  module: hlo_text.Module, one: hlo_text.Instruction, index: int | None
) -> bool:
  """Returns whether this is a loop that leaves a part of its state as it is."""
  body = module.computations.get(one.attribute('body'))
  if one.opcode != 'while' or body is None or index is None:
    return False
  return _origin(module, body.name, body.root, index) == (body.name, index)


def _number(module: hlo_text.Module, origin: _Origin) -> int | None:
  """Returns the whole number that a value always is; None if it is not known.

  Args:
    module: where it is.
    origin: of `_origin`.
  """
  while isinstance(origin, tuple):
    name, index = origin
    above, loop = module.callers[name]
    if not _keeps(module, loop, index):
      return None
    origin = _origin(module, above, loop.operands[0], index)
  return origin


def _literal(one: hlo_text.Instruction) -> int | None:
  """Returns a constant's whole number."""
  text = one.operands[0] if one.operands else ''
  return int(text) if re.fullmatch(r'-?\d+', text) else None
