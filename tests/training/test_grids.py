"""Chips of a grid become a mesh of any size that divides their number."""

from __future__ import annotations

import types

import numpy as np
import pytest

from me_jax.training import grids


def chips(*sides):
  """Returns devices as a TPU slice has them, one a chip."""
  return [
    types.SimpleNamespace(
      id=number,
      coords=(*place[::-1], *(0,) * (3 - len(sides))),
      core_on_chip=0,
      platform='tpu',
      device_kind='TPU v6 lite',
      process_index=number // 4,
      slice_index=0,
    )
    for number, place in enumerate(np.ndindex(*sides[::-1]))
  ]


@pytest.mark.parametrize(
  'shape', [(1, 16, 1, 16), (1, 32, 1, 8), (2, 8, 4, 4), (1, 256, 1, 1)]
)
def test_every_chip_has_one_place(shape):
  devices = chips(16, 16)
  array = grids.arrange(shape, (1, 1, 1, 1), devices)
  assert array.shape == shape
  assert sorted(d.id for d in array.flat) == list(range(256))


def test_chips_along_the_innermost_axis_are_in_a_line_where_sides_are_split():
  array = grids.arrange((1, 32, 1, 8), (1, 1, 1, 1), chips(16, 16))
  for line in array.reshape(-1, 8):
    places = {device.coords[:2] for device in line}
    rows, columns = zip(*places)
    assert len(set(rows)) * len(set(columns)) == 8
    assert max(rows) - min(rows) < 8 and max(columns) - min(columns) < 8


def test_what_is_no_mesh_of_them_is_an_error():
  with pytest.raises(ValueError):
    grids.arrange((1, 5, 1, 1), (1, 1, 1, 1), chips(4, 4))
