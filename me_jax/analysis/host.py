"""How do measurements get to the host where several processes hold the model?"""

from __future__ import annotations

from typing import Any

import jax


def readable(tree: Any) -> Any:
  """Returns arrays that this process can read, each of them whole.

  Args:
    tree: of arrays. Where they lie on devices of several processes, all of them
      must call.
  """
  whole = all(
    getattr(leaf, 'is_fully_addressable', True)
    for leaf in jax.tree.leaves(tree)
  )
  if whole:
    return tree
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)
