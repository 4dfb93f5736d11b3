"""Where do optimiser states and batches lie, and how do rows get there?

Letters: B rows, T time.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from me_jax import errors
from me_jax.models import config as config_lib
from me_jax.training import sharding as sharding_lib
from me_jax.training import trained as trained_lib


def state_shardings(state: Any, params: Any, shardings: Any) -> Any:
  """Returns where each leaf of an optimiser's state lies.

  A leaf that belongs to a parameter, because its path ends as that one's does,
  and has its shape lies as it does; any other (a count, a factored moment) is
  on every device. A state is best born there, rather than moved:

    shapes = jax.eval_shape(optimiser.init, params)
    places = state_shardings(shapes, params, shardings)
    state = jax.jit(optimiser.init, out_shardings=places)(params)

  Args:
    state: of any optax optimiser, as arrays or shapes.
    params: what it was made from, as arrays or shapes.
    shardings: of the parameters, a tree like them.

  Returns:
    A tree like `state` of `NamedSharding`.
  """
  places = jax.tree.leaves(shardings)
  known = {
    sharding_lib.names(path): (leaf.shape, place)
    for (path, leaf), place in zip(jax.tree.leaves_with_path(params), places)
  }
  everywhere = jax.NamedSharding(places[0].mesh, jax.P())

  def place(path: Any, leaf: Any) -> jax.NamedSharding:
    keys = sharding_lib.names(path)
    # The longest end first: `norm/weight` is the end of other paths too.
    for start in range(len(keys)):
      shape, found = known.get(keys[start:], (None, None))
      if shape == leaf.shape:
        return found
    return everywhere

  return jax.tree.map_with_path(place, state)


def trained_shardings(
  config: config_lib.ModelConfig,
  frozen: trained_lib.Frozen,
  settings: trained_lib.Trained,
  mesh: jax.sharding.Mesh,
  rules: sharding_lib.Rules = sharding_lib.DEFAULT,
) -> tuple[Any, Any]:
  """Returns where what is trained lies, and what is frozen.

  Args:
    config: of the model.
    frozen: of `trained.split`.
    settings: that it was made with.
    mesh: from `sharding.mesh`.
    rules: fitted to the model.

  Returns:
    Two trees of `NamedSharding`, like what `trained.split` returns.
  """
  axes = trained_lib.axes(frozen, settings, sharding_lib.logical_axes(config))
  return jax.tree.map(
    lambda spec: jax.NamedSharding(mesh, rules.spec(spec)),
    axes,
    is_leaf=lambda x: isinstance(x, jax.P),
  )


def batch_shardings(
  batch: Any,
  mesh: jax.sharding.Mesh,
  rules: sharding_lib.Rules = sharding_lib.DEFAULT,
) -> Any:
  """Returns where each array of a batch lies.

  Args:
    batch: a tree of arrays or shapes. The first axis is rows; the second is
      time where it is the longest of the tree (texts of a row are fewer).
    mesh: from `sharding.mesh`.
    rules: the table.

  Returns:
    A tree of `NamedSharding`.
  """
  leaves = jax.tree.leaves(batch)
  length = max((x.shape[1] for x in leaves if x.ndim > 1), default=0)

  def place(leaf: Any) -> jax.NamedSharding:
    axes: list[str | None] = [None] * leaf.ndim
    if leaf.ndim:
      axes[0] = 'batch'
    if leaf.ndim > 1 and leaf.shape[1] == length:
      axes[1] = 'time'
    return jax.NamedSharding(mesh, rules.spec(axes))

  return jax.tree.map(place, batch)


def row_share(
  mesh: jax.sharding.Mesh,
  rules: sharding_lib.Rules = sharding_lib.DEFAULT,
  *,
  process: int | None = None,
) -> tuple[int, int]:
  """Says which rows of a batch a process must read.

  Processes whose devices hold the same rows, because `tensor` or `sequence`
  spans them, read the same ones.

  Args:
    mesh: from `sharding.mesh`.
    rules: the table.
    process: index of the process; None for this one.

  Returns:
    Into how many shares a batch is divided, and the index of this process's:
    `hosts` and `host` of `batches.Batches`.

  Raises:
    MeJaxError: the process has no device in the mesh, or rows are not divided
      evenly among processes.
  """
  process = jax.process_index() if process is None else process
  held: dict[int, set[int]] = {}
  places = jax.NamedSharding(mesh, rules.spec(('batch',)))
  parts = rules.parts('batch', mesh)
  for device, (rows,) in places.devices_indices_map((parts,)).items():
    held.setdefault(device.process_index, set()).add(rows.start or 0)
  if process not in held:
    raise errors.MeJaxError(f'process {process} has no device in the mesh.')
  shares = sorted({tuple(sorted(rows)) for rows in held.values()})
  if len({len(share) for share in shares}) > 1 or parts != sum(
    len(share) for share in shares
  ):
    raise errors.MeJaxError(
      f'the {len(held)} processes hold unequal or overlapping rows of a batch on'
      ' this mesh: let data × fsdp divide their number, or be divided by it.'
    )
  return len(shares), shares.index(tuple(sorted(held[process])))


def to_global(
  batch: Any,
  mesh: jax.sharding.Mesh,
  rules: sharding_lib.Rules = sharding_lib.DEFAULT,
) -> Any:
  """Returns a global batch of which each process gives its share of rows.

  Args:
    batch: a tree of host arrays, `[B / hosts, T]` and the like, with the rows
      that `row_share` names.
    mesh: from `sharding.mesh`.
    rules: the table.

  Returns:
    A tree of arrays `[B, T]`, each device with its part.

  Raises:
    MeJaxError: the mesh does not divide rows or time.
  """
  hosts, _ = row_share(mesh, rules)
  batch = jax.tree.map(np.asarray, batch)
  places = batch_shardings(batch, mesh, rules)

  def put(local: np.ndarray, place: jax.NamedSharding) -> jax.Array:
    shape = local.shape
    if shape:
      shape = (shape[0] * hosts, *shape[1:])
    try:
      place.shard_shape(shape)
    except ValueError as error:
      sizes = ' × '.join(f'{k} {v}' for k, v in mesh.shape.items())
      raise errors.MeJaxError(
        f'a batch of shape {list(shape)} cannot be cut as {place.spec} by a'
        f' mesh of {sizes}: rows must be a multiple of'
        f' {rules.parts("batch", mesh)} and tokens of'
        f' {rules.parts("time", mesh)}.'
      ) from error
    return jax.make_array_from_process_local_data(place, local, shape)

  return jax.tree.map(put, batch, places)
