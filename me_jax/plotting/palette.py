"""Which colour, dash and marker does a series get?

Colours are Okabe and Ito's, which colour-blind readers can tell apart; a role
has one colour throughout a report. Dashes, markers and hatches differ too, so
that a figure can be read in grey. Names are plotly's; `static` translates.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from me_jax.plotting import spec

BLUE, ORANGE, GREEN = '#0072B2', '#D55E00', '#009E73'
PINK, GREY, DARK = '#CC79A7', '#666666', '#222222'
# Perceptually uniform, and the same to readers with any colour vision.
HEAT = 'cividis'
# How opaque thin lines are.
FAINT = 0.55

_ROLES = {
  'massive': BLUE,
  'control': GREEN,
  'other': GREY,
  'me': ORANGE,
  'attn': PINK,
  'ffn': BLUE,
}
_PLAIN = (DARK, '#E69F00', '#56B4E9', '#8C564B', '#117733')
_DASHES = ('solid', 'dashdot', 'dot', 'longdash', 'longdashdot')
_MARKERS = ('circle', 'square', 'triangle-up', 'diamond', 'triangle-down', 'x')
_HATCHES = ('', '/', '.', 'x', '\\', '-')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
  """How a series is drawn.

  Attributes:
    color: as `#rrggbb`.
    dash: of its line.
    marker: of its points.
    hatch: of its bars.
  """

  color: str
  dash: str
  marker: str
  hatch: str


def looks(series: Sequence[spec.Series]) -> tuple[Look, ...]:
  """Returns a look for each series of a chart; no two are the same.

  Args:
    series: of one chart, in order.
  """
  result = []
  for index, one in enumerate(series):
    # Series of one role share its colour and are told apart by the rest.
    before = [other for other in series[:index] if other.role == one.role]
    color = _ROLES.get(one.role) or _PLAIN[len(before) % len(_PLAIN)]
    lines = sum(other.style == one.style for other in before)
    dash = _DASHES[lines % len(_DASHES)]
    if one.style == 'dotted':
      dash = ('dot', 'dashdot', 'longdashdot')[lines % 3]
    elif one.style in ('dashed', 'level'):
      dash = ('dash', 'longdash', 'longdashdot')[lines % 3]
    bars = sum(other.style == 'bars' for other in series[:index])
    result.append(
      Look(
        color=color,
        dash=dash,
        marker=_MARKERS[index % len(_MARKERS)],
        hatch=_HATCHES[bars % len(_HATCHES)],
      )
    )
  return tuple(result)


def faded(color: str, alpha: float) -> str:
  """Returns `#rrggbb` as a CSS colour that lets `1 - alpha` shine through."""
  red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
  return f'rgba({red},{green},{blue},{alpha})'
