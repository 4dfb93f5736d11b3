"""A program's times against sums by hand."""

from __future__ import annotations

import pytest

from me_jax import errors
from me_jax.planning import hlo
from me_jax.planning import roofline
from me_jax.planning import topology

V5E = topology.find('v5e-256')


def exchange(sent, *, over=0.0, times=1, axes=('fsdp',), links=2.0,
             kind='all-gather', groups=((0, 1),)):  # fmt: skip
  """Returns a collective that sends so many bytes."""
  return hlo.Collective(
    name='c', kind=kind, shape='f32[1]', size=0, bytes=sent,
    network_bytes=over, groups=groups, axes=axes, links=links, times=times,
    inside_loop=times > 1, op_name='',
  )  # fmt: skip


def test_a_worked_example():
  # A v5e chip: 197 TFLOP/s, 819 GB/s, links of 50 GB/s each way, and 6.4 Tbit/s
  # of network for 256 chips: 3.125 GB/s each.
  #
  #   arithmetic   394e12 / 197e12                    = 2 s
  #   memory       819e9 / 819e9                      = 1 s
  #   fsdp         32 × 1.5e9 bytes / (2 × 50e9)      = 0.48 s
  #   tensor       32 × 0.5e9 bytes / (1 × 50e9)      = 0.32 s
  #   network      0.3125e9 / 3.125e9                 = 0.1 s
  found = roofline.of(
    394e12,
    819e9,
    (
      exchange(1.5e9, times=32),
      exchange(0.5e9, times=32, axes=('tensor',), links=1.0),
      exchange(0.3125e9, over=0.3125e9, axes=('data',)),
    ),
    V5E,
  )
  assert found.compute == pytest.approx(2)
  assert found.memory == pytest.approx(1)
  assert found.links == pytest.approx(0.8)
  assert found.links_least == pytest.approx(0.48)
  assert found.network == pytest.approx(0.1)
  assert (found.bound, found.best) == ('compute', found.compute)
  assert found.worst == pytest.approx(3.9)
  # The model itself needs 3 / 4 of it: the rest is computed twice.
  assert found.mfu(256 * 394e12 * 3 / 4) == pytest.approx(0.75)


def test_the_longest_part_bounds():
  times = {
    'memory': roofline.of(0, 819e9, (), V5E),
    'links': roofline.of(0, 0, (exchange(100e9),), V5E),
    'network': roofline.of(0, 0, (exchange(3.125e9, over=3.125e9),), V5E),
  }
  for bound, found in times.items():
    assert found.bound == bound
    assert found.best == found.worst == pytest.approx(1)


def test_exchanges_on_different_axes_may_overlap_but_not_on_one():
  two = (exchange(100e9), exchange(100e9, axes=('tensor',)))
  found = roofline.of(0, 0, two, V5E)
  assert (found.best, found.worst) == (pytest.approx(1), pytest.approx(2))
  assert (found.links_least, found.links) == (found.best, found.worst)
  both = (exchange(100e9), exchange(100e9, axes=('fsdp', 'tensor')))
  assert roofline.of(0, 0, both, V5E).best == pytest.approx(2)


def test_permutations_in_opposite_directions_may_overlap():
  def permute(*groups):
    return exchange(50e9, links=1.0, kind='collective-permute', groups=groups)

  up, down = permute((0, 1), (1, 2), (2, 0)), permute((1, 0), (2, 1), (0, 2))
  assert roofline.of(0, 0, (up, down), V5E).best == pytest.approx(1)
  assert roofline.of(0, 0, (up, up), V5E).best == pytest.approx(2)


def test_devices_of_one_chip_share_it():
  one = topology.find('v7x:4x4x4')
  chip = one.chip
  found = roofline.of(
    chip.flops / 2, chip.bandwidth / 2, (exchange(100e9, links=1.0),), one
  )
  assert found.compute == found.memory == pytest.approx(1)
  assert found.links == pytest.approx(2)
  assert found.mfu(64 * chip.flops) == pytest.approx(0.5)


def test_a_network_without_a_published_speed_is_not_guessed():
  slices = topology.find('2*v4-8')
  with pytest.raises(errors.MeJaxError, match='plan for one slice'):
    roofline.of(1, 1, (exchange(1.0, over=1.0),), slices)
