"""Names of pods and clusters, and the devices that stand for them."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys

import pytest

from me_jax import errors
from me_jax.planning import topology
from me_jax.training import sharding


@pytest.mark.parametrize(
  'name, chips, shape, slices',
  [
    ('v5e-256', 256, (16, 16), 1),
    ('v5litepod-16', 16, (4, 4), 1),
    ('V6E-256', 256, (16, 16), 1),
    # Sizes of these count TensorCores, two a chip.
    ('v5p-1024', 512, (8, 8, 8), 1),
    ('v4-32', 16, (2, 2, 4), 1),
    ('v5p:8x8x8', 512, (8, 8, 8), 1),
    ('v5e:4x16', 64, (4, 16), 1),
    ('2*v5e-256', 512, (16, 16), 2),
    ('4xv5p-8', 16, (2, 2, 1), 4),
    ('v5e-1', 1, (1, 1), 1),
    ('v7x:4x4x4', 64, (4, 4, 4), 1),
    ('h100x64', 64, (8,), 8),
    ('a100x4', 4, (4,), 1),
  ],
)
def test_a_name_says_how_many_chips_stand_how(name, chips, shape, slices):
  found = topology.find(name)
  assert (found.chips, found.shape, found.slices) == (chips, shape, slices)
  assert found.devices == chips * found.chip.cores
  assert found.name == name


@pytest.mark.parametrize(
  'name, says',
  [
    ('v5e-255', 'did you mean v5e-256'),
    ('v5p-500', 'TensorCores, two a chip; did you mean v5p-512'),
    ('v5litepd-256', "did you mean 'v5litepod-256'?"),
    ('h100', "did you mean 'h100x8'?"),
    ('h100x12', 'did you mean h100x8?'),
    ('2*h100x8', 'h100x16'),
    ('v5e:4x4x4', 'has 2 sides'),
    ('v5p:4x4', 'has 3 sides'),
    ('v5e:3x4', 'even'),
    ('v5e:32x16', 'at most 16x16'),
    ('v7x-8', 'say the grid'),
    ('0*v5e-4', 'no slices'),
    ('v5e', 'there is no topology v5e'),
    ('v5e-x', 'there is no topology v5e-x'),
    ('', 'there is no topology'),
    ('pod', 'chips are v4, v5e'),
  ],
)
def test_a_name_of_nothing_is_answered_with_what_is_near(name, says):
  with pytest.raises(errors.MeJaxError, match=r'^[^\n]*$') as caught:
    topology.find(name)
  assert says in str(caught.value)


def test_rings_close_along_the_pods_sides_and_in_whole_cubes():
  assert topology.find('v5e-256').wraps == (True, True)
  assert topology.find('v5e-128').wraps == (False, True)
  assert topology.find('v5p-64').wraps == (False, False, False)
  assert topology.find('v5p-128').wraps == (True, True, True)


def test_what_must_be_set_is_known_without_jax():
  code = (
    'import sys\n'
    'from me_jax.planning import topology\n'
    'print(topology.environment(topology.find(sys.argv[1])))\n'
    'assert "jax" not in sys.modules'
  )
  run = [sys.executable, '-c', code]
  gpus = subprocess.run([*run, 'h100x16'], capture_output=True, check=True)
  assert b'device_count=16' in gpus.stdout
  tpus = subprocess.run([*run, 'v5e-4'], capture_output=True, check=True)
  assert b'TPU_SKIP_MDS_QUERY' in tpus.stdout


def test_too_few_stand_ins_say_what_to_set():
  with pytest.raises(errors.MeJaxError, match='device_count=4096'):
    topology.devices(topology.find('h100x4096'))


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is not None, reason='libtpu is installed'
)
def test_a_missing_compiler_says_what_to_install():
  with pytest.raises(errors.MeJaxError, match=r"'me-jax\[tpu\]'"):
    topology.devices(topology.find('v5e-4'))


def test_a_missing_variable_is_named(tpu, monkeypatch):
  monkeypatch.delenv('TPU_SKIP_MDS_QUERY')
  with pytest.raises(
    errors.MeJaxError, match='TPU_SKIP_MDS_QUERY=1 set before'
  ):
    topology.devices(topology.find('v5e-4'))


@pytest.mark.parametrize(
  'name',
  ['v5e-1', 'v5e-8', 'v4-16', 'v5p-16', 'v6e-16', 'v7x:2x2x1', '2*v5e-4'],
)
def test_the_compiler_lays_out_what_the_name_says(tpu, name):
  wanted = topology.find(name)
  found = topology.devices(wanted)
  assert len(found) == wanted.devices
  assert wanted.chip.kind == found[0].device_kind
  assert len(set(map(wanted.slice_of, found))) == wanted.slices
  for dimension, side in enumerate(wanted.shape):
    assert {device.coords[dimension] for device in found} == set(range(side))


def test_outer_mesh_axes_span_slices(tpu):
  wanted = topology.find('2*v5e-4')
  mesh = sharding.mesh(
    data=2, fsdp=2, tensor=2, devices=topology.devices(wanted)
  )
  for part in range(2):
    devices = mesh.devices[part].flat
    assert {wanted.slice_of(device) for device in devices} == {part}


@pytest.mark.parametrize('tensor', [4, 8])
def test_a_mesh_may_cut_a_side_of_the_grid(tpu, tensor):
  devices = topology.devices(topology.find('v5p-1024'))
  mesh = sharding.mesh(fsdp=-1, tensor=tensor, devices=devices)
  assert mesh.shape['fsdp'] == 512 // tensor
  # One line of chips, or a part of it, for each exchange of a tensor axis.
  for line in mesh.devices.reshape(-1, tensor):
    places = [set(along) for along in zip(*(d.coords for d in line))]
    assert math.prod(map(len, places)) == tensor
