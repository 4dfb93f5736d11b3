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


def constrain_beside(
  x: jax.Array, axes: Sequence[str | None], owner: str, kept: int | None = None
) -> jax.Array:
  """Returns the array, laid out so that one axis is cut before all others.

  Args:
    x: the array.
    axes: logical names, one a dimension; None is in no part.
    owner: the logical axis of parameters that keeps its axes of the mesh,
      whether or not the array has it: the others are cut along the rest.
    kept: how many of them it keeps, the first ones; None for all.
  """
  sizes = jax.sharding.get_abstract_mesh().shape
  if not sizes:
    return x
  own = mesh_axes(owner)[:kept]
  spec: list[tuple[str, ...] | None] = []
  for axis, size in zip(axes, x.shape, strict=True):
    names = own if axis == owner else mesh_axes(axis) if axis else ()
    if axis != owner:
      names = tuple(name for name in names if name not in own)
    even = size % math.prod(sizes[name] for name in names) == 0
    spec.append(names if names and even else None)
  return jax.lax.with_sharding_constraint(x, jax.P(*spec))


def parts(axis: str) -> int:
  """Returns into how many parts the current rules and mesh cut an axis.

  Args:
    axis: its logical name.
  """
  sizes = jax.sharding.get_abstract_mesh().shape
  return math.prod(sizes[name] for name in mesh_axes(axis))


def mesh_axes(axis: str) -> tuple[str, ...]:
  """Returns the axes of the current mesh that an axis is cut along.

  Args:
    axis: its logical name.
  """
  (names,) = nn.logical_to_mesh_axes((axis,))
  names = (names,) if isinstance(names, str) else names or ()
  sizes = jax.sharding.get_abstract_mesh().shape
  return tuple(name for name in names if name in sizes)
