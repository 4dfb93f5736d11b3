"""Whose attention is drawn? One text, and the layers that are worth a map."""

from __future__ import annotations

from typing import Any, NamedTuple

_MAP_TOKENS = 48  # the longest text that a reader can still make out


class MapText(NamedTuple):
  """What is drawn.

  Attributes:
    ids: tokens of the text.
    layers: the ME Layer, the first layer after the span, and one in the middle
      of the plateau.
    position: of the massive token.
  """

  ids: list[int]
  layers: tuple[int, ...]
  position: int


def choose(batch: Any, report: Any) -> MapText | None:
  """Returns a text with a massive token; None where there is none."""
  from me_jax.analysis import prefixes
  from me_jax.plotting.sections import where as where_lib

  where = where_lib.where(report)
  if where is None or not len(where.after):
    return None
  positions = report.position_by_text
  texts = prefixes.texts_of(batch, report)
  massive = [x for x in range(len(texts)) if positions[x] >= 0]
  fitting = [x for x in massive if len(texts[x]) <= _MAP_TOKENS]
  text = max(fitting or massive, key=lambda x: len(texts[x]))
  stop = max(_MAP_TOKENS, int(positions[text]) + 1)
  first, middle = where.after[0], where.after[len(where.after) // 2]
  return MapText(
    ids=list(texts[text][:stop]),
    layers=tuple(sorted({where.layer, int(first), int(middle)})),
    position=int(positions[text]),
  )
