"""How is an array that no module owns laid out over devices?

Modules say it of their own parameters and activations, in flax's logical axes;
these functions say it elsewhere. Without rules or a mesh they do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
import math

import flax.linen as nn
import jax


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
  """Returns the array, laid out as the current rules say of its axes.

  An axis that its parts do not divide stays whole, such as the one token of a
  step of decoding where time is cut: XLA pads such an axis, and has been seen
  to compute something else then.

  Args:
    x: the array.
    axes: logical names, one a dimension; None is in no part.
  """
  even = (
    axis if axis is None or size % parts(axis) == 0 else None
    for axis, size in zip(axes, x.shape, strict=True)
  )
  return nn.with_logical_constraint(x, tuple(even))


def parts(axis: str) -> int:
  """Returns into how many parts the current rules and mesh cut an axis.

  Args:
    axis: its logical name.
  """
  (names,) = nn.logical_to_mesh_axes((axis,))
  if not names:
    return 1
  sizes = jax.sharding.get_abstract_mesh().shape
  names = (names,) if isinstance(names, str) else names
  return math.prod(sizes.get(name, 1) for name in names)
