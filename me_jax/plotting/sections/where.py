"""Which layers lie before the emergence span, and which on the plateau?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from me_jax.analysis import me_report


class Where(NamedTuple):
  """Layers of a model with an emergence span.

  Attributes:
    before: layers whose input and output lie before the span.
    after: layers after the span that receive the plateau.
    outputs: layers from the span's last on that put the plateau out.
    layer: the ME Layer, or the span's last.
    mark: the same for charts; see `marks`.
  """

  before: np.ndarray
  after: np.ndarray
  outputs: np.ndarray
  layer: int
  mark: dict[str, Any]


def where(report: me_report.MEReport) -> Where | None:
  """Returns the layers; None for a model without a span or a plateau."""
  if not report.span or report.plateau is None:
    return None
  end = report.plateau[1]
  last = min(report.span[-1], end)
  return Where(
    before=np.arange(report.span[0]),
    after=np.arange(last + 1, min(end + 2, len(report.jump))),
    outputs=np.arange(last, end + 1),
    layer=last if report.layer is None else report.layer,
    mark=marks(report.layer, [last]),
  )


def marks(layer: int | None, others: Iterable[int] = ()) -> dict[str, Any]:
  """Returns what charts mark: `marks` and `mark_label` of `spec.Chart`.

  Args:
    layer: the ME Layer, None if there is none.
    others: what is marked then, layers of the span.
  """
  if layer is not None:
    return {'marks': (float(layer),), 'mark_label': 'ME Layer'}
  return {'marks': tuple(map(float, others)), 'mark_label': 'span'}
