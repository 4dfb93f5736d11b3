"""Who exchanges with whom, along which axes and over which wires."""

from __future__ import annotations

import types

import numpy as np
import pytest

from me_jax.planning import hlo
from me_jax.planning import hlo_groups
from me_jax.planning import topology
from me_jax.training import sharding
from tests.support import hlo_programs

GROUPS = {
  # Of 2 × 4 devices: the last axis, the first, and both.
  'replica_groups=[2,4]<=[8]': ((0, 1, 2, 3), (4, 5, 6, 7)),
  'replica_groups=[4,2]<=[2,4]T(1,0)': ((0, 4), (1, 5), (2, 6), (3, 7)),
  'replica_groups={{0,4},{1,5},{2,6},{3,7}}': ((0, 4), (1, 5), (2, 6), (3, 7)),
  "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}": (
    (0, 4), (1, 5), (2, 6), (3, 7),
  ),
  "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}": (
    (0, 1, 4, 5), (2, 3, 6, 7),
  ),
  'replica_groups={}': ((0, 1, 2, 3, 4, 5, 6, 7),),
}  # fmt: skip


@pytest.mark.parametrize('written', GROUPS)
def test_groups_are_read_in_every_way_they_are_written(written):
  (one,) = hlo.collectives(
    hlo_programs.exchange('all-reduce', 'f32[16]', written)
  )
  assert one.groups == GROUPS[written]


def stand_ins(*shape: int, slices: int = 1) -> list[types.SimpleNamespace]:
  """Returns devices in grids, numbered as the TPU compiler's are."""
  return [
    types.SimpleNamespace(
      coords=place,
      slice_index=part,
      id=(part + 1) * 100_000 * (slices > 1) + number,
    )
    for part in range(slices)
    for number, place in enumerate(np.ndindex(*shape))
  ]


def mesh_of(devices: list, shape: tuple[int, ...]) -> types.SimpleNamespace:
  """Returns what of a mesh is read."""
  array = np.empty(len(devices), object)
  array[:] = devices
  return types.SimpleNamespace(
    devices=array.reshape(shape), axis_names=sharding.MESH_AXES
  )


def test_axes_are_those_along_which_a_group_differs():
  mesh = mesh_of(stand_ins(4, 4, 1), (1, 4, 2, 2))
  assert hlo_groups.axes_of([(0, 1)], mesh) == ('tensor',)
  assert hlo_groups.axes_of([(0, 4, 8, 12)], mesh) == ('fsdp',)
  assert hlo_groups.axes_of([(0, 2), (1, 3)], mesh) == ('sequence',)
  assert hlo_groups.axes_of([(0, 1, 2, 3)], mesh) == ('sequence', 'tensor')
  assert hlo_groups.axes_of([range(16)], mesh) == ('fsdp', 'sequence', 'tensor')
  assert hlo_groups.axes_of([(0,), (1,)], mesh) == ()


@pytest.mark.parametrize(
  'opcode, groups, links',
  [
    # A ring of 16 has two links a chip, a line of 4 one, both together three.
    ('all-gather', 'replica_groups=[16,4]<=[4,16]T(1,0)', 1),
    ('all-gather', 'replica_groups=[4,16]<=[64]', 2),
    ('all-gather', 'replica_groups=[1,64]<=[64]', 3),
    # Half of a ring is a line.
    ('all-gather', 'replica_groups=[8,8]<=[64]', 1),
    # In a ring of 16 values pass through 16 / 8 of each link.
    ('all-to-all', 'replica_groups=[4,16]<=[64]', 0.5),
    ('all-to-all', 'replica_groups=[16,4]<=[4,16]T(1,0)', 1),
  ],
)
def test_links_are_those_of_the_sides_that_a_group_spans(opcode, groups, links):
  mesh = mesh_of(stand_ins(4, 16, 1), (1, 4, 1, 16))
  text = hlo_programs.exchange(opcode, 'f32[16]', groups).replace('=8', '=64')
  (one,) = hlo.collectives(text, mesh, topology.find('v5e:4x16'))
  assert one.links == links


def test_exchanges_between_slices_go_over_the_network():
  # Two slices of 4 chips; the mesh's first axis is the slices'.
  def sent(kind, target):
    return (
      '(f32[16], u32[], token[]) send(%p, %t), channel_id=1,'
      f' frontend_attributes={{_xla_megascale_target={target},'
      f'_xla_megascale_transfer_type="{kind}"}}'
    )

  text = hlo_programs.program(
    '%p = f32[16] parameter(0)',
    '%t = token[] after-all()',
    f'%a = {sent("ALL_REDUCE", chr(34) + "{1,2}x{0:3}" + chr(34))}',
    f'%b = {sent("ALL_GATHER", "{{100000,200000},{100001,200001}}")}',
    '%c = f32[16] all-reduce(%p), replica_groups={{0,2},{1,3}}',
    partitions=4,
  )
  mesh = mesh_of(stand_ins(2, 2, 1, slices=2), (2, 2, 1, 2))
  one, two, three = hlo.collectives(text, mesh, topology.find('2*v5e-4'))
  assert (one.kind, one.axes, one.network) == ('all-reduce', ('data',), True)
  assert one.groups == ((0, 4), (1, 5), (2, 6), (3, 7))
  assert one.bytes == one.network_bytes == 2 * 64 / 2
  assert (two.kind, two.axes, two.bytes) == ('all-gather', ('data',), 64)
  # Numbers within a slice are places among its own devices.
  assert three.groups == ((0, 2), (1, 3))
  assert (three.axes, three.network) == (('fsdp',), False)


def test_hosts_of_gpus_exchange_the_least_over_the_network():
  # Two hosts of 8: a chip sends over NVLink what the host shares, and a part
  # of the rest over its own network card.
  devices = [types.SimpleNamespace(id=number) for number in range(16)]
  mesh = mesh_of(devices, (2, 8, 1, 1))
  text = hlo_programs.exchange(
    'all-gather', 'f32[16]', 'replica_groups=[1,16]<=[16]', 'f32[256]'
  ).replace('=8', '=16')
  (one,) = hlo.collectives(text, mesh, topology.find('h100x16'))
  assert one.bytes == 1024 * 15 / 16
  assert one.network_bytes == 1024 / 8 / 2
  assert one.bytes - one.network_bytes == 1024 * 7 / 8
