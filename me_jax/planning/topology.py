"""Which devices does a pod or a cluster have that is not here?

Names are those that one orders by, and grids of chips:

  v5e-256, v5litepod-256, v6e-256   chips
  v4-64, v5p-1024                   TensorCores, two a chip
  v5p:8x8x8                         512 chips, however they are sold
  2*v5e-256                         two slices, joined by the hosts' network
  h100x64                           GPUs, eight a host

TPUs are compiled for by their own compiler, which needs `libtpu` but no TPU. For
GPUs there is no such compiler here: XLA's for CPUs stands in, with as many
devices as there are GPUs, so what it says of memory and time is an estimate.

Imports no JAX before `devices` is called: `environment` says what must be set
before it is.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from me_jax import errors
from me_jax.planning import chips as chips_lib

# GPUs of a host that NVLink joins.
_HOST = 8
# Chips of a host: the least part that the compiler lays out.
_BLOCK = (2, 2, 1)

# How chips are laid out, by their number: docs.cloud.google.com/tpu/docs/v5e
# (v6e, v5p, v4). One more name for each is its number of TensorCores.
_FLAT = {
  1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8),
  128: (8, 16), 256: (16, 16),
}  # fmt: skip
_CUBES = {
  4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4),
  128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16),
  2048: (8, 16, 16), 4096: (16, 16, 16), 6144: (16, 16, 24),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Family:
  """How the slices of one kind of TPU are named.

  Attributes:
    layouts: grid of each number of chips that is sold.
    pod: most chips of a slice.
    cores: what names count, for each chip.
    compiler: name that the compiler has for it.
    names: others that it goes by.
  """

  layouts: Mapping[int, tuple[int, ...]]
  pod: int
  cores: int
  compiler: str
  names: tuple[str, ...] = ()


_FAMILIES = {
  'v4': _Family(
    layouts={n: grid for n, grid in _CUBES.items() if n <= 2048},
    pod=4096,
    cores=2,
    compiler='v4',
  ),
  'v5e': _Family(
    layouts=_FLAT, pod=256, cores=1, compiler='v5e', names=('v5litepod',)
  ),
  'v5p': _Family(layouts=_CUBES, pod=8960, cores=2, compiler='v5p'),
  'v6e': _Family(layouts=_FLAT, pod=256, cores=1, compiler='v6e'),
  # Ordered by its grid alone.
  'v7x': _Family(
    layouts={}, pod=9216, cores=2, compiler='tpu7x', names=('tpu7x',)
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """A pod or a cluster.

  Attributes:
    name: as it was asked for.
    chip: figures of each.
    chips: in all.
    devices: of JAX, in all.
    shape: chips of one slice along each dimension; GPUs of one host.
    slices: parts that only the hosts' network joins: hosts of a GPU cluster.
    compiler_name: of a slice, for the TPU compiler; empty for GPUs.
  """

  name: str
  chip: chips_lib.Chip
  chips: int
  devices: int
  shape: tuple[int, ...]
  slices: int
  compiler_name: str

  @property
  def exact(self) -> bool:
    """Whether the devices' own compiler is asked."""
    return self.chip.tpu

  @property
  def wraps(self) -> tuple[bool, ...]:
    """Along which dimensions the last chip is joined to the first.

    A 2-D slice is a ring along a side of 16, the pod's; a 3-D one is a torus if
    it is made of whole cubes of 4 (docs.cloud.google.com/tpu/docs/v5p). All
    GPUs of a host are joined.
    """
    if not self.chip.tpu:
      return (True,)
    if len(self.shape) == 2:
      return tuple(side == 16 for side in self.shape)
    return (all(side % 4 == 0 for side in self.shape),) * 3

  def slice_of(self, device: Any) -> int:
    """Returns the slice, or host of GPUs, that a device of JAX lies in."""
    if self.chip.tpu:
      return getattr(device, 'slice_index', None) or 0
    return device.id // math.prod(self.shape)


def find(name: str) -> Topology:
  """Returns the pod or cluster of a name.

  Args:
    name: see the module's docstring.

  Raises:
    MeJaxError: there is none of that name.
  """
  text = name.strip().lower()
  slices = 1
  match = re.fullmatch(r'(\d+)\s*[*x×]\s*([a-z].*)', text)
  if match:
    slices, text = int(match[1]), match[2]
    if slices < 1:
      raise errors.MeJaxError(f'{name} has no slices: ask for 1 or more.')
  match = re.fullmatch(r'([a-z]+\d+)x(\d+)', text)
  if match and match[1] in chips_lib.CHIPS and match[1] not in _FAMILIES:
    if slices > 1:
      raise errors.MeJaxError(
        f'a GPU cluster is named by its GPUs, {_HOST} a host:'
        f' {match[1]}x{slices * int(match[2])}, not {name}.'
      )
    return _gpus(name, match[1], int(match[2]))
  family, separator, size = _split(text)
  if not family or not size:
    raise _unknown(name, text)
  if separator == ':':
    shape = _grid(name, family, size)
  else:
    shape = _layout(name, text, family, size)
  chip, chips = chips_lib.CHIPS[family], slices * math.prod(shape)
  grid = 'x'.join(map(str, shape))
  return Topology(
    name=name,
    chip=chip,
    chips=chips,
    devices=chips * chip.cores,
    shape=shape,
    slices=slices,
    compiler_name=f'{_FAMILIES[family].compiler}:{grid}',
  )


def _split(text: str) -> tuple[str, str, str]:
  """Returns a TPU's family, what follows it, and the size; or empty ones."""
  for family, facts in _FAMILIES.items():
    for known in (family, *facts.names):
      rest = text.removeprefix(known)
      if rest != text and rest[:1] in (':', '-'):
        return family, rest[0], rest[1:]
  return '', '', ''


def _layout(name: str, text: str, family: str, size: str) -> tuple[int, ...]:
  """Returns the grid of a slice that is named by its size."""
  facts = _FAMILIES[family]
  chips = int(size) / facts.cores if size.isdecimal() else None
  if chips is not None and chips in facts.layouts:
    return facts.layouts[int(chips)]
  if not facts.layouts:
    raise errors.MeJaxError(
      f'{name}: slices of {family} have no names by size, say the grid:'
      f' {family}:4x4x4 is of 64 chips.'
    )
  if chips is None:
    raise _unknown(name, text)
  near = min(facts.layouts, key=lambda n: abs(math.log(n / max(chips, 0.1))))
  counted = 'TensorCores, two a chip' if facts.cores == 2 else 'chips'
  grid = 'x'.join(map(str, facts.layouts[near]))
  raise errors.MeJaxError(
    f'there is no {name}: sizes count {counted}; did you mean'
    f' {family}-{near * facts.cores}, a grid of {grid} chips? Other grids are'
    f' named like {family}:{grid}, several slices like 2*{family}-'
    f'{near * facts.cores}.'
  )


def _grid(name: str, family: str, size: str) -> tuple[int, ...]:
  """Returns a grid that is written out."""
  facts = _FAMILIES[family]
  flat = chips_lib.CHIPS[family].links == 4
  sides = size.split('x')
  example = f'{family}:4x4' if flat else f'{family}:4x4x4'
  if len(sides) != (2 if flat else 3) or not all(s.isdecimal() for s in sides):
    raise errors.MeJaxError(
      f'{name}: a grid of {family} has {2 if flat else 3} sides, as {example}.'
    )
  shape = tuple(int(side) for side in sides)
  if not flat or shape != (1, 1):
    if not all(shape) or any(s % b for s, b in zip(shape, _BLOCK)):
      raise errors.MeJaxError(
        f'{name}: hosts have 2 × 2 chips, so the first two sides are even, as'
        f' {example}.'
      )
  if math.prod(shape) > facts.pod or (flat and max(shape) > 16):
    most = '16x16 chips' if flat else f'{facts.pod} chips'
    raise errors.MeJaxError(
      f'{name}: a slice of {family} has at most {most}; two slices are named'
      f' like 2*{family}:{"16x16" if flat else "8x8x8"}.'
    )
  return shape


def _gpus(name: str, chip: str, gpus: int) -> Topology:
  """Returns a cluster of hosts with eight GPUs each."""
  hosts = max(gpus // _HOST, 1)
  if gpus < 1 or (gpus > _HOST and gpus % _HOST):
    raise errors.MeJaxError(
      f'{name}: hosts have {_HOST} GPUs; did you mean {chip}x{hosts * _HOST}?'
    )
  return Topology(
    name=name,
    chip=chips_lib.CHIPS[chip],
    chips=gpus,
    devices=gpus,
    shape=(min(gpus, _HOST),),
    slices=hosts,
    compiler_name='',
  )


def _unknown(name: str, text: str) -> errors.MeJaxError:
  """Returns the error for a name of nothing."""
  known = [
    f'{other}-{chips * facts.cores}'
    for family, facts in _FAMILIES.items()
    for chips in facts.layouts
    for other in (family, *facts.names)
  ]
  gpus = set(chips_lib.CHIPS) - set(_FAMILIES)
  known += [f'{gpu}x{n}' for gpu in gpus for n in (8, 16, 32, 64, 128, 256)]
  return errors.MeJaxError(
    f'there is no topology {name}{errors.nearest(text, sorted(known))}: TPU'
    f' slices are named like v5e-256, v5p-1024 or v5p:8x8x8, several of them'
    f' like 2*v5e-256, GPU clusters like h100x64; chips are'
    f' {", ".join(chips_lib.CHIPS)}.'
  )


def environment(topology: Topology) -> dict[str, str]:
  """Returns variables that must be set before JAX is imported.

  Args:
    topology: to compile for. `XLA_FLAGS` may hold others, which are to be kept
      before these.
  """
  if not topology.chip.tpu:
    count = f'--xla_force_host_platform_device_count={topology.devices}'
    return {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': count}
  return {
    # What compiles must not take the TPU that the machine may have.
    'JAX_PLATFORMS': 'cpu',
    # libtpu would ask a cloud machine's metadata server who it is, and wait.
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    # Its lock is for a device; two plans at once have none to share.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  }


def check_compiler(topology: Topology) -> None:
  """Raises MeJaxError if there is no compiler for a topology."""
  if topology.chip.tpu and importlib.util.find_spec('libtpu') is None:
    raise errors.MeJaxError(
      f'planning for {topology.name} needs the TPU compiler, which no TPU is'
      ' needed for: in a checkout `make .tpu/.setup`, then .tpu/bin/me-jax plan;'
      " elsewhere pip install 'me-jax[tpu]' into an environment of its own."
    )


def devices(topology: Topology) -> list[Any]:
  """Returns devices to compile for, for `sharding.mesh`.

  Args:
    topology: whose `environment` this process has.

  Raises:
    MeJaxError: there is no compiler for it, or the environment is not set.
  """
  import jax
  from jax.experimental import topologies

  needed = environment(topology)
  if not topology.chip.tpu:
    found = jax.devices('cpu')
    if len(found) < topology.devices:
      raise errors.MeJaxError(
        f'{topology.name} needs {topology.devices} stand-ins, this process has'
        f' {len(found)}: set XLA_FLAGS={needed["XLA_FLAGS"]} before JAX is'
        ' imported.'
      )
    return found[: topology.devices]
  check_compiler(topology)
  unset = [f'{k}={v}' for k, v in needed.items() if k not in os.environ]
  if unset:
    raise errors.MeJaxError(
      f'planning for {topology.name} needs {" ".join(unset)} set before JAX is'
      ' imported.'
    )
  options: dict[str, Any] = {}
  if topology.slices > 1:
    options['num_slices'] = topology.slices
  if math.prod(topology.shape) == 1:
    options['chips_per_host_bounds'] = [1, 1, 1]
  if topology.chip.name == 'v4':
    # One device a chip, as on real ones; two is what the compiler takes else.
    options['chip_config_name'] = 'megacore'
  try:
    found = topologies.get_topology_desc(
      topology_name=topology.compiler_name, platform='tpu', **options
    ).devices
  except (RuntimeError, NotImplementedError) as error:
    raise errors.MeJaxError(
      f'the TPU compiler does not lay out {topology.name}: {error}'
    ) from error
  assert len(found) == topology.devices, (topology, len(found))
  return list(found)
