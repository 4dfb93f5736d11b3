"""Is the massive token's state the same for every input and layer?

Letters: L layers, Q quantiles.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from me_jax.analysis import diagnosis
from me_jax.analysis import me_report
from me_jax.analysis import rigidity
from me_jax.plotting import prose
from me_jax.plotting import spec
from me_jax.plotting.sections import where as where_lib

_CLAIM = (
  "Once formed, the massive token's state is nearly the same for every input and "
  'from layer to layer; so what attention sees of it hardly varies.'
)
# Mean cosine on the plateau from which we call the state rigid, and nearly so.
_RIGID, _NEARLY = 0.99, 0.9
_LOW, _HIGH = rigidity.QUANTILES.index(0.05), rigidity.QUANTILES.index(0.95)


def section(
  found: diagnosis.Diagnosis, report: me_report.MEReport
) -> spec.Section:
  """Describes how rigid the state is.

  Args:
    found: of `diagnose`.
    report: of `find_me_layer` on the same texts.
  """
  where = where_lib.where(report)
  inputs = found.rigidity.state.inputs
  mark = where_lib.marks(None) if where is None else where.mark
  common: dict[str, Any] = dict(
    name='rigidity',
    title="The massive token's state is rigid",
    claim=_CLAIM,
    figures=_figures(found.rigidity, mark),
    numbers=_numbers(found.rigidity),
  )
  if where is None or inputs < 2:
    why = 'There are no massive activations that stay.'
    if where is not None:
      why = (
        'All texts begin alike up to the massive token, so there is one input '
        'and nothing to compare: give prompts that begin differently.'
      )
    return spec.Section(
      verdict='not tested', finding=why, control=_control(found), **common
    )
  state_L, seen_L = found.rigidity.state.mean_L, found.rigidity.attn_in.mean_L
  least = state_L[where.outputs].min()
  seen = seen_L[where.after].min() if len(where.after) else np.nan
  layers = found.rigidity.layers[np.ix_(where.outputs, where.outputs)]
  smallest = min(least, layers.min(), np.nan_to_num(seen, nan=1.0))
  verdict = 'does not hold'
  if smallest >= _NEARLY:
    verdict = 'holds' if smallest >= _RIGID else 'in part'
  finding = (
    f'{inputs} different inputs (texts up to and including the token; equal '
    'ones count once, because a decoder gives them the same state). After '
    f'{prose.layers(where.outputs)} the mean cosine between their states is '
    f'at least {_floor(least)}'
  )
  if len(where.after):
    finding += (
      ', and between the vectors that attention receives of the token in '
      f'{prose.layers(where.after)} at least {_floor(seen)}'
    )
  finding += (
    '; between its states after any two of these layers it is at least '
    f'{_floor(layers.min())}.'
    if len(where.outputs) > 1
    else '.'
  )
  if len(where.before):
    finding += (
      f' Before, in {prose.layers(where.before)}, the mean cosines of the '
      f'states lie between {state_L[where.before].min():.3f} and '
      f'{state_L[where.before].max():.3f}.'
    )
  return spec.Section(
    verdict=verdict, finding=finding, control=_control(found, where), **common
  )


def _floor(cosine: float) -> str:
  """Spells a lower bound: 0.99998 is no 1."""
  return f'{math.floor(cosine * 1e4) / 1e4:.4f}'


def _control(
  found: diagnosis.Diagnosis, where: where_lib.Where | None = None
) -> str:
  control = found.rigidity.control_state
  if control.inputs < 2:
    return 'There are too few ordinary tokens for a control.'
  layers = np.arange(len(control.mean_L)) if where is None else where.outputs
  inside = control.mean_L[layers]
  turned = found.rigidity.control_layers[np.ix_(layers, layers)]
  return (
    f'One ordinary token of each of {control.inputs} texts, in the same layers: '
    f'mean cosines of {inside.min():.3f} to {inside.max():.3f} across texts, and '
    f'down to {turned.min():.3f} between two layers.'
  )


def _figures(
  found: diagnosis.Rigidity, mark: dict[str, Any]
) -> tuple[spec.Figure, ...]:
  panels = (
    ('the state after each layer', found.state, found.control_state),
    ('what attention receives', found.attn_in, found.control_attn_in),
  )
  across = spec.Figure(
    name='rigidity-inputs',
    title='Cosine across inputs',
    caption=(
      'Mean cosine over all pairs of different inputs, with the range from the '
      '5th to the 95th percentile of pairs and the smallest pair (dashed). '
      'Control: one ordinary token of each text.'
    ),
    alt=(
      'Mean cosine across inputs by layer. Massive token, smallest and largest: '
      f'{_range(found.state.mean_L)}; ordinary token: '
      f'{_range(found.control_state.mean_L)}.'
    ),
    panels=tuple(
      spec.Chart(
        title=title,
        x_label='layer',
        y_label='cosine',
        y_range=(min(-0.05, _least(own), _least(control)), 1.02),
        **mark,
        series=(
          *_lines('massive token', own, 'massive'),
          *_lines('ordinary token', control, 'control'),
        ),
      )
      for title, own, control in panels
    ),
  )
  between = spec.Figure(
    name='rigidity-layers',
    title='Cosine across layers',
    caption=(
      "Cosine between a token's states after two layers, mean over texts; "
      'control: ordinary tokens.'
    ),
    alt=(
      'Two matrices of cosines between layers. The massive token keeps its '
      'direction over the plateau, a block of values near one; the ordinary '
      "token's state turns steadily."
    ),
    panels=tuple(
      spec.Heatmap(
        title=title,
        values=values,
        x_label='layer',
        y_label='layer',
        value_label='cosine',
        value_range=(min(0.0, float(values.min())), 1.0),
        marks=mark['marks'],
      )
      for title, values in (
        ('massive token', found.layers),
        ('ordinary tokens', found.control_layers),
      )
    ),
  )
  return across, between


def _lines(
  label: str, found: rigidity.Cosines, role: spec.Role
) -> list[spec.Series]:
  if found.inputs < 2:
    return []
  quantiles_QL = found.quantiles_QL
  return [
    spec.Series(
      label=label,
      y=found.mean_L,
      low=quantiles_QL[_LOW],
      high=quantiles_QL[_HIGH],
      role=role,
    ),
    spec.Series(
      label=f'{label}, smallest pair',
      y=quantiles_QL[0],
      role=role,
      style='dashed',
    ),
  ]


def _least(found: rigidity.Cosines) -> float:
  return float(np.nan_to_num(found.quantiles_QL, nan=1.0).min())


def _range(values_L: np.ndarray) -> str:
  if np.isnan(values_L).all():
    return 'not measured'
  return f'{values_L.min():.3f} to {values_L.max():.3f}'


def _numbers(found: diagnosis.Rigidity) -> dict[str, object]:
  def cosines(value: rigidity.Cosines) -> dict[str, object]:
    return {
      'inputs': value.inputs,
      'mean': value.mean_L,
      'quantiles': {
        str(q): row for q, row in zip(rigidity.QUANTILES, value.quantiles_QL)
      },
    }

  return me_report.plain(
    {
      'across_inputs': {
        'state': cosines(found.state),
        'attn_in': cosines(found.attn_in),
        'control_state': cosines(found.control_state),
        'control_attn_in': cosines(found.control_attn_in),
      },
      'across_layers': {
        'mean': found.layers,
        'smallest': found.layers_least,
        'control': found.control_layers,
      },
    }
  )
