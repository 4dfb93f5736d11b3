"""What can a chip do, by its maker's figures?

The figures bound what a program can reach; none was measured here. Where a
maker gives the sum of both directions of all links, half of it is taken, and
an equal part for each link: of a v5e, 400 GB/s are 4 links of 50 GB/s each way,
which agrees with the pod's 1.6 TB/s across a bisection of 32 links.
"""

from __future__ import annotations

import dataclasses

from me_jax.training import peaks

_GIB = 2**30
_GOOGLE = 'https://docs.cloud.google.com/tpu/docs/'
_NVIDIA = 'https://www.nvidia.com/en-us/data-center/'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """Published figures of one chip.

  Attributes:
    name: as plans name it.
    kind: as JAX names its devices.
    hbm: bytes of memory.
    bandwidth: of memory, bytes/s.
    links: to a TPU's neighbours, two for each dimension of the torus; 1 of a
      GPU, for all its NVLinks, which a switch joins with those of its host.
    link_bandwidth: of one link in one direction, bytes/s.
    hosts_network: a chip's part of the network between slices of TPUs or hosts
      of GPUs, in one direction, bytes/s; None where it is not published.
    cores: JAX devices a chip.
    source: addresses of the pages that the figures are from.
  """

  name: str
  kind: str
  hbm: int
  bandwidth: float
  links: int
  link_bandwidth: float
  hosts_network: float | None
  cores: int = 1
  source: tuple[str, ...]

  @property
  def flops(self) -> float:
    """Dense bfloat16 FLOP/s of the whole chip."""
    flops = peaks.of(self.kind)
    assert flops is not None, self.kind
    return flops * self.cores

  @property
  def tpu(self) -> bool:
    """Whether XLA's TPU compiler knows it."""
    return self.kind.startswith('TPU')


# Google's table of 7x has v5p's and v6e's figures too. Of v4, whose links are
# in no table, 1.1 PB/s of all-reduce in a pod of 4096 chips with 6 links each
# are 45 GB/s a link and direction; the paper says 50.
CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      name='v4',
      kind='TPU v4',
      hbm=32 * _GIB,
      bandwidth=1200e9,
      links=6,
      link_bandwidth=50e9,
      hosts_network=None,
      source=(f'{_GOOGLE}v4', 'https://arxiv.org/abs/2304.01433'),
    ),
    Chip(
      name='v5e',
      kind='TPU v5 lite',
      hbm=16 * _GIB,
      bandwidth=819e9,
      links=4,
      link_bandwidth=50e9,
      hosts_network=6.4e12 / 8 / 256,  # 6.4 Tbit/s a pod
      source=(f'{_GOOGLE}v5e',),
    ),
    Chip(
      name='v5p',
      kind='TPU v5',
      hbm=95 * _GIB,
      bandwidth=2765e9,
      links=6,
      link_bandwidth=100e9,
      hosts_network=50e9 / 8,
      source=(f'{_GOOGLE}v5p',),
    ),
    Chip(
      name='v6e',
      kind='TPU v6 lite',
      hbm=32 * _GIB,
      bandwidth=1638e9,
      links=4,
      link_bandwidth=100e9,
      hosts_network=100e9 / 8,
      source=(f'{_GOOGLE}v6e', f'{_GOOGLE}tpu7x'),
    ),
    Chip(
      name='v7x',
      kind='TPU7x',
      hbm=192 * _GIB,
      bandwidth=7380e9,
      links=6,
      link_bandwidth=100e9,
      hosts_network=100e9 / 8,
      cores=2,
      source=(f'{_GOOGLE}tpu7x',),
    ),
    Chip(
      name='a100',
      kind='NVIDIA A100-SXM4-80GB',
      hbm=80 * 10**9,
      bandwidth=2039e9,
      links=1,
      link_bandwidth=300e9,
      hosts_network=200e9 / 8,
      source=(
        f'{_NVIDIA}a100',
        'https://docs.nvidia.com/dgx/dgxa100-user-guide',
      ),
    ),
    Chip(
      name='h100',
      kind='NVIDIA H100 80GB HBM3',
      hbm=80 * 10**9,
      bandwidth=3350e9,
      links=1,
      link_bandwidth=450e9,
      hosts_network=400e9 / 8,
      source=(
        f'{_NVIDIA}h100',
        'https://docs.nvidia.com/dgx/dgxh100-user-guide',
      ),
    ),
    Chip(
      name='h200',
      kind='NVIDIA H200',
      hbm=141 * 10**9,
      bandwidth=4800e9,
      links=1,
      link_bandwidth=450e9,
      hosts_network=400e9 / 8,
      source=(
        f'{_NVIDIA}h200',
        'https://docs.nvidia.com/dgx/dgxh100-user-guide',
      ),
    ),
    Chip(
      name='b200',
      kind='NVIDIA B200',
      hbm=180 * 10**9,
      bandwidth=8000e9,
      links=1,
      link_bandwidth=900e9,
      hosts_network=400e9 / 8,
      source=(
        f'{_NVIDIA}dgx-b200',
        'https://docs.nvidia.com/dgx/dgxb200-user-guide',
      ),
    ),
  )
}
