"""What does the compiler make of a program?"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import re
import time
from typing import Any

import jax

from me_jax import errors
from me_jax.planning import programs
from me_jax.training import sharding as sharding_lib

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
# Of all, and of what is between arguments and results where that is too much.
_TOO_LARGE = re.compile(
  r'Used ([\d.]+)([KMGT]?)i?B? of [\d.]+[KMGT]?i?B? hbm'
  r'|total memory required for HLO temporaries \(([\d.]+)([KMGT]?)i?B?\)'
  r' exceeds available HBM \([^)]*\)'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """What a program needs on one device, bytes.

  Attributes:
    arguments: what it is called with.
    outputs: what it returns.
    temporary: everything between.
    aliased: outputs that lie where donated arguments did.
    code: of the program.
    peak: all of it together.
  """

  arguments: int = 0
  outputs: int = 0
  temporary: int = 0
  aliased: int = 0
  code: int = 0
  peak: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
  """A compiled program.

  Attributes:
    name: of the program.
    seconds: of lowering and compiling.
    memory: per device. Of a program that the compiler refused, because it does
      not fit, only the peak is known, or a lower bound of it.
    cost: as the compiler says it, each loop's body counted once.
    text: the optimised program; empty if it was refused.
    places: shardings of the arguments that it uses, with None for others.
    refused: why, in the compiler's words; empty if it was not.
  """

  name: str
  seconds: float
  memory: Memory
  cost: Mapping[str, float]
  text: str
  places: Any = None
  refused: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowered:
  """A program as it is handed to the compiler.

  Attributes:
    stage: of JAX, that compiles.
    text: of it.
    seconds: that it took.
  """

  stage: Any
  text: str
  seconds: float


def lower(program: programs.Program) -> Lowered:
  """Traces a program, which tells it from others before it is compiled."""
  began = time.monotonic()
  with sharding_lib.use(program.mesh, program.rules):
    stage = program.function.lower(*program.args)
  text = stage.as_text()
  return Lowered(stage=stage, text=text, seconds=time.monotonic() - began)


def compile_for(
  program: programs.Program, lowered: Lowered | None = None
) -> Compiled:
  """Compiles a program for the devices of its mesh, which need not exist.

  Args:
    program: what is compiled.
    lowered: from `lower`, if that was done already.

  Raises:
    MeJaxError: the compiler refuses it, and not for want of memory.
  """
  lowered = lowered or lower(program)
  began = time.monotonic() - lowered.seconds
  with sharding_lib.use(program.mesh, program.rules):
    try:
      compiled = lowered.stage.compile()
    except jax.errors.JaxRuntimeError as error:
      return _refused(program, error, time.monotonic() - began)
  seconds = time.monotonic() - began
  found = compiled.memory_analysis()
  memory = Memory(
    arguments=found.argument_size_in_bytes,
    outputs=found.output_size_in_bytes,
    temporary=found.temp_size_in_bytes,
    aliased=found.alias_size_in_bytes,
    code=found.generated_code_size_in_bytes,
    peak=found.argument_size_in_bytes
    + found.output_size_in_bytes
    + found.temp_size_in_bytes
    + found.generated_code_size_in_bytes
    - found.alias_size_in_bytes,
  )
  cost = compiled.cost_analysis() or {}
  return Compiled(
    name=program.name,
    seconds=seconds,
    memory=memory,
    cost={k: v for k, v in cost.items() if isinstance(v, int | float)},
    text=compiled.as_text(),
    places=compiled.input_shardings[0],
  )


def _refused(
  program: programs.Program, error: Exception, seconds: float
) -> Compiled:
  """Returns what is known of a program that does not fit."""
  text = str(error)
  match = _TOO_LARGE.search(text)
  if not match:
    line = text.strip().splitlines()[0]
    raise errors.MeJaxError(
      f'the compiler refuses the program of {program.name}: {line}'
    ) from error
  size, unit = (part for part in match.groups() if part is not None)
  return Compiled(
    name=program.name,
    seconds=seconds,
    memory=Memory(peak=int(float(size) * _UNITS[unit])),
    cost={},
    text='',
    refused=match[0],
  )
