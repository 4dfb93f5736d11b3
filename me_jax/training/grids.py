"""Which meshes can chips in a grid be arranged as?

JAX takes whole sides of a TPU slice's grid for each axis of a mesh, so that
devices along an axis are neighbours, unless it is told to split them.
"""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import math
from typing import Any

from jax.experimental import mesh_utils
import numpy as np


def shape_of(devices: Sequence[Any]) -> tuple[int, ...]:
  """Returns the sides of a slice's grid; empty where devices are in none.

  Args:
    devices: of JAX; devices of a chip make one more side.
  """
  if not all(hasattr(device, 'coords') for device in devices):
    return ()
  places = [(*d.coords, getattr(d, 'core_on_chip', 0)) for d in devices]
  sides = (len(set(along)) for along in zip(*places))
  return tuple(side for side in sides if side > 1)


def arrange(
  shape: Sequence[int], across: Sequence[int], devices: Sequence[Any]
) -> np.ndarray:
  """Returns devices in the shape of a mesh.

  Axes take whole sides of a slice's grid, so that they exchange along wires of
  their own; only where that cannot be, sides are split.

  Args:
    shape: sizes of the mesh's axes.
    across: how many slices each axis spans.
    devices: all of them.

  Raises:
    NotImplementedError, ValueError, AssertionError: JAX finds no way.
  """
  within = tuple(size // span for size, span in zip(shape, across))

  def make(split: bool) -> np.ndarray:
    kwargs = {'devices': devices, 'allow_split_physical_axes': split}
    if math.prod(across) == 1:
      return mesh_utils.create_device_mesh(within, **kwargs)
    return mesh_utils.create_hybrid_device_mesh(within, across, **kwargs)

  try:
    return make(False)
  except NotImplementedError:
    return make(True)


def sizes(grid: Sequence[int]) -> tuple[int, ...]:
  """Returns the sizes that an axis of a mesh can have, from whole sides."""
  return tuple(
    sorted(
      {
        math.prod(sides)
        for count in range(len(grid) + 1)
        for sides in itertools.combinations(grid, count)
      }
    )
  )


def reason(devices: Sequence[Any], error: Exception) -> str:
  """Returns why devices cannot be arranged, for one line.

  Args:
    devices: of the mesh.
    error: that JAX raised.
  """
  grid = shape_of(devices)
  if not grid or not isinstance(error, NotImplementedError):
    return str(error)
  fits = ', '.join(map(str, sizes(grid)))
  several = len({getattr(d, 'slice_index', 0) for d in devices}) > 1
  return (
    f'chips of a slice stand in a grid of {" × ".join(map(str, grid))}, and'
    ' each axis takes whole sides of it that no other takes, so its size'
    f'{" within a slice" if several else ""} is one of {fits}.'
  )
