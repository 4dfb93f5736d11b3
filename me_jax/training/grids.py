"""How are the chips of a slice, which stand in a grid, arranged as a mesh?"""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any

from jax.experimental import mesh_utils
import numpy as np


def arrange(
  shape: Sequence[int], across: Sequence[int], devices: Sequence[Any]
) -> np.ndarray:
  """Returns devices in the shape of a mesh.

  Axes take whole sides of a slice's grid, so that each exchanges along wires of
  its own; only where that cannot be are sides split.

  Args:
    shape: sizes of the mesh's axes.
    across: how many slices each axis spans.
    devices: all of them.

  Raises:
    NotImplementedError, ValueError, AssertionError: JAX finds no way.
  """
  within = tuple(size // span for size, span in zip(shape, across))

  def make(split: bool) -> np.ndarray:
    kwargs: dict[str, Any] = {
      'devices': devices,
      'allow_split_physical_axes': split,
    }
    if math.prod(across) == 1:
      return mesh_utils.create_device_mesh(within, **kwargs)
    return mesh_utils.create_hybrid_device_mesh(within, across, **kwargs)

  try:
    return make(False)
  except NotImplementedError:
    return make(True)
