"""How does a step that may fail in one process fail in all?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from me_jax import errors


def together(step: Callable[[], Any]) -> Any:
  """Runs a step in every process; all raise if one does.

  One process alone would leave the others waiting for it.

  Args:
    step: what to run.

  Returns:
    What it returned here.

  Raises:
    MeJaxError: it has failed in another process.
  """
  if jax.process_count() == 1:
    return step()
  from jax.experimental import multihost_utils

  result, error = None, None
  try:
    result = step()
  except Exception as raised:
    error = raised
  failed = multihost_utils.process_allgather(np.array(error is not None))
  if error is not None:
    raise error
  if failed.any():
    raise errors.MeJaxError(
      f'process {int(failed.argmax())} could not go on: see what it says'
    )
  return result
