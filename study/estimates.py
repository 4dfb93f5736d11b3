"""How are numbers with intervals read from reports?"""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any

from me_jax.analysis import bootstrap


def read(found: Any) -> bootstrap.Estimate:
  """Reads what a report says of one number; a report has no NaN but null."""
  if isinstance(found, Mapping):
    found = [found[name] for name in bootstrap.Estimate._fields]
  return bootstrap.Estimate(
    *(math.nan if x is None else float(x) for x in found)
  )
