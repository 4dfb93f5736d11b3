"""How do the arrays of a checkpoint get onto any mesh, and are they ours?

They are written by name, as a flat dict, so that Orbax need not know optimiser
states; a name is the path in the tree, such as `optimiser.0.mu.lora.q_proj.a`.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
from typing import Any, NamedTuple

import jax

from me_jax import errors
from me_jax.checkpoints import orbax_card
from me_jax.training import checkpoint_card

STATE = 'state'


class Restored(NamedTuple):
  """What a checkpoint held.

  Attributes:
    step: how many steps were done.
    state: the arrays, in the tree that was asked for.
    extra: what was saved beside them.
    metric: what was measured then, or None.
  """

  step: int
  state: Any
  extra: dict[str, Any]
  metric: float | None


def named(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by name; None and empty states are none."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def kind(leaf: Any) -> str:
  """Returns type and shape of an array, such as `float32[2, 3]`."""
  return f'{leaf.dtype}{list(leaf.shape)}'


def read(folder: str, like: Any, shardings: Any = None) -> Restored:
  """Returns a checkpoint whose files are whole.

  Args:
    folder: of the checkpoint.
    like: a tree of arrays or ShapeDtypeStructs.
    shardings: a tree like it; None for where the leaves of `like` say, or the
      first device.

  Raises:
    MeJaxError: it holds other arrays than `like`, and which; or cannot be read.
  """
  card = checkpoint_card.read(folder)
  wanted = named(like)
  _check(folder, card.leaves, wanted)
  if shardings is None:
    places = [getattr(leaf, 'sharding', None) for leaf in wanted.values()]
  else:
    places = jax.tree.leaves(shardings)
  import orbax.checkpoint as ocp

  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  shapes = {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place or here)
    for (name, leaf), place in zip(wanted.items(), places)
  }
  arguments = ocp.args.PyTreeRestore(
    shapes, ocp.checkpoint_utils.construct_restore_args(shapes)
  )
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      found = reader.restore(os.path.join(folder, STATE), args=arguments)
  # Whatever TensorStore and Orbax raise.
  except Exception as error:
    raise orbax_card.failure(f'cannot read {folder}', error) from error
  state = jax.tree.unflatten(
    jax.tree.structure(like), [found[name] for name in wanted]
  )
  return Restored(card.step, state, card.extra, card.metric)


def _check(
  folder: str, stored: Mapping[str, str], wanted: Mapping[str, Any]
) -> None:
  """Raises MeJaxError where a checkpoint has other leaves than are wanted."""
  for name in sorted(stored.keys() | wanted.keys()):
    there = stored.get(name, 'nothing')
    now = kind(wanted[name]) if name in wanted else 'nothing'
    if there != now:
      raise errors.MeJaxError(
        f'{folder} is of another run: {name} is {there} there, {now} now; go on'
        ' with the settings of that run, or name another folder'
      )
