"""What does a report of `find` look like? Its panels, and the figure of them.

Letters: L layers, Z = L + 1 states, D model width.
"""

from __future__ import annotations

import numpy as np

from me_jax.analysis import me_report
from me_jax.plotting import spec


def emergence(report: me_report.MEReport) -> spec.Figure:
  """Describes where the massive activations appear, beside an ordinary token.

  Args:
    report: of `find_me_layer`.

  Returns:
    Four panels: |x| by layer and channel of the massive token and of an
    ordinary one on the same scale, the norm by layer, the shares by layer.
  """
  return spec.Figure(
    name='emergence',
    title=report.headline(),
    caption='Where the massive activations appear, and who wrote them.',
    alt=report.headline(),
    panels=(*ridges(report), norms(report), shares(report)),
  )


def token_name(report: me_report.MEReport) -> str:
  """Says which token the numbers are about."""
  return 'the massive token' if report.tokens else 'the first token'


def ridges(report: me_report.MEReport) -> tuple[spec.Ridges, spec.Ridges]:
  """Returns |x| by layer and channel: the massive token and its control."""
  top = float(max(report.profile.max(), report.control.profile.max()))
  titles = (
    f'|x| of {token_name(report)}',
    'control: ordinary tokens, same scale',
  )
  if report.layer is not None:
    titles = f'{titles[0]} (orange: layer {report.layer})', titles[1]
  profiles = report.profile, report.control.profile
  first, second = (
    spec.Ridges(
      title=title,
      values=profile_ZD[1:],
      value_label='mean |x|',
      top=top,
      mark=report.layer,
    )
    for title, profile_ZD in zip(titles, profiles)
  )
  return first, second


def norms(report: me_report.MEReport) -> spec.Chart:
  """Returns the norm of the state by layer."""
  layers = np.arange(-1, len(report.jump))
  name = 'massive token' if report.tokens else 'first token'
  lines = (
    (name, report.norm, 'massive', 'line'),
    ('control: ordinary tokens', report.control.norm, 'control', 'line'),
    ('median of other tokens', report.others, 'other', 'dashed'),
  )
  return spec.Chart(
    title='norm of the state',
    series=tuple(
      spec.Series(label=label, y=norm_Z, x=layers, role=role, style=style)
      for label, norm_Z, role, style in lines
    ),
    x_label='layer (-1: the embedding)',
    y_label='norm',
    log_y=True,
    marks=_marks(report),
  )


def shares(report: me_report.MEReport) -> spec.Chart:
  """Returns who wrote the plateau, by layer."""
  control = report.control.shares
  return spec.Chart(
    title='who wrote the plateau' if report.tokens else 'who wrote the state',
    series=(
      spec.Series(label='FFN', y=report.shares.ffn, role='ffn', style='bars'),
      spec.Series(
        label='attention', y=report.shares.attn, role='attn', style='bars'
      ),
      spec.Series(
        label='control: ordinary tokens, both',
        y=control.attn + control.ffn,
        role='control',
        style='steps',
      ),
    ),
    x_label='layer',
    y_label='share',
    bars='stacked',
  )


def _marks(report: me_report.MEReport) -> tuple[float, ...]:
  return () if report.layer is None else (float(report.layer),)
