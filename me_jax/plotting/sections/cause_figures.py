"""How do the norm, the FFN and the factorial experiment look?

Letters: L layers, A and B the two factors, X prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from me_jax.analysis import attribution as attribution_lib
from me_jax.analysis import factorial as factorial_lib
from me_jax.plotting import spec

_MEAN, _LOW, _HIGH = (
  attribution_lib.MEAN,
  attribution_lib.LOW,
  attribution_lib.HIGH,
)
_CELLS = ('untouched', 'neurons neutralised', 'norm flattened', 'both')
_BAND = 'Bands: 10 to 90 % of the tokens.'


def norm_panels(
  found: attribution_lib.Attribution, marks: dict[str, Any]
) -> tuple[spec.Panel, ...]:
  """Draws the norm's side: scale, gain, top channels, massive channels."""
  top = spec.Chart(
    title='share of the squared norm in the largest channels',
    series=_groups(found, found.energy_GSLE[..., 0], 'largest')
    + _groups(found, found.energy_GSLE[..., 2], 'largest 10', style='dashed'),
    x_label='layer',
    y_label='share',
    y_range=(0.0, 1.0),
    **marks,
  )
  panels = [
    spec.Chart(
      title='scale of the norm, 1 / rms',
      series=_groups(found, found.scale_GSL),
      x_label='layer',
      y_label='1 / rms of the state',
      log_y=True,
      **marks,
    ),
    spec.Chart(
      title='gain of the norm',
      series=_groups(found, found.gain_GSL),
      x_label='layer',
      y_label='norm after / norm before',
      log_y=True,
      **marks,
    ),
    top,
  ]
  if len(found.channels_K):
    panels.append(_gamma(found, marks))
  return tuple(panels)


def ffn_panels(
  found: attribution_lib.Attribution, marks: dict[str, Any]
) -> tuple[spec.Panel, ...]:
  """Draws the FFN's side: gain, alignment, the neurons that write."""
  panels: list[spec.Panel] = [
    spec.Chart(
      title='gain of the FFN',
      series=_groups(found, found.ffn_gain_GSL),
      x_label='layer',
      y_label='norm out / norm in',
      log_y=True,
      **marks,
    ),
    spec.Chart(
      title='alignment with the best neuron of the layer',
      series=_groups(found, found.alignment_GSL),
      x_label='layer',
      y_label='largest |cos gate| · |cos up|',
      **marks,
    ),
  ]
  if len(found.dominating.index_I):
    panels.append(
      _neurons(
        found,
        'cosine with the rows of the neurons that write',
        'cosine',
        ('gate_cos_GSI', 'up_cos_GSI'),
      )
    )
    panels.append(
      _neurons(
        found,
        'pre-activations of the neurons that write',
        'pre-activation',
        ('gate_GSI', 'up_GSI'),
      )
    )
  return tuple(panels)


def factorial_panels(
  found: factorial_lib.Factorial,
) -> tuple[spec.Panel, ...]:
  """Draws the cells beside control neurons, then every layer's cells."""
  cells = [
    _bars('the writing neurons', 'massive', found.of_kind('me')),
    _bars('next largest neurons', 'other', found.of_kind('matched')),
    _bars('random neurons', 'control', found.of_kind('random')),
  ]
  panels: list[spec.Panel] = [
    spec.Chart(
      title='what is left of the spike, in the ME Layer',
      series=tuple(cells),
      x_label='',
      y_label='spike left (1 = untouched)',
      categories=_CELLS,
    )
  ]
  for title, a, b in (
    ('neurons neutralised, layer by layer', 0, 1),
    ('norm flattened, layer by layer', 1, 0),
    ('both, layer by layer', 1, 1),
  ):
    panels.append(
      spec.Chart(
        title=title,
        series=(
          _points('another layer', 'control', found.of_kind('layer'), a, b),
          _points('emergence span', 'me', found.of_kind('me'), a, b),
        ),
        x_label='layer',
        y_label="spike left at the plateau's end",
      )
    )
  return tuple(panels)


def _groups(
  found: attribution_lib.Attribution,
  values_GSL: np.ndarray,
  what: str = '',
  *,
  style: spec.Style = 'line',
) -> tuple[spec.Series, ...]:
  """Returns a line for the massive token, and one for ordinary tokens."""
  token = 'massive token' if found.massive else 'first token'
  names: tuple[tuple[str, spec.Role], ...] = (
    (token, 'massive'),
    ('ordinary tokens', 'control'),
  )
  return tuple(
    spec.Series(
      label=f'{name}, {what}' if what else name,
      y=values_SL[_MEAN],
      # Dashed lines repeat a line's colour; two bands would hide each other.
      low=values_SL[_LOW] if style == 'line' else None,
      high=values_SL[_HIGH] if style == 'line' else None,
      role=role,
      style=style,
    )
    for (name, role), values_SL in zip(names, values_GSL)
    if np.isfinite(values_SL[_MEAN]).any()
  )


def _gamma(
  found: attribution_lib.Attribution, marks: dict[str, Any]
) -> spec.Chart:
  """Draws the norms' weights at the largest massive channel."""
  return spec.Chart(
    title=f'weight of the norms at channel {found.channels_K[0]}',
    series=(
      spec.Series(
        label="attention's norm", y=found.gamma_attn_LK[:, 0], role='attn'
      ),
      spec.Series(label="FFN's norm", y=found.gamma_ffn_LK[:, 0], role='ffn'),
      spec.Series(
        label='median of all channels',
        y=np.ones(len(found.gamma_ffn_LK)),
        role='control',
        style='dashed',
      ),
    ),
    x_label='layer',
    y_label='|weight| over the median',
    **marks,
  )


def _neurons(
  found: attribution_lib.Attribution,
  title: str,
  y_label: str,
  keys: Sequence[str],
) -> spec.Chart:
  """Draws gate and up of the writing neurons, massive against ordinary."""
  table, random = found.dominating, found.random
  several = len(set(table.layer_I.tolist())) > 1
  names, columns, drawn = [], [], []
  for i, (layer, index) in enumerate(zip(table.layer_I, table.index_I)):
    for key in keys:
      where = f'{layer}.{index}' if several else f'{index}'
      names.append(f'{where} {key.split("_")[0]}')
      columns.append(getattr(table, key)[:, :, i])
      here = getattr(random, key)[0, _MEAN, random.layer_I == layer]
      drawn.append(
        np.quantile(here, [0.5, 0.1, 0.9]) if len(here) else [np.nan] * 3
      )
  values_GSI = np.stack(columns, axis=-1)
  drawn_SI = np.stack(drawn, axis=-1)
  return spec.Chart(
    title=title,
    series=(
      *(
        spec.Series(
          label=label,
          y=values_SI[_MEAN],
          low=values_SI[_LOW],
          high=values_SI[_HIGH],
          role=role,
          style='bars',
        )
        for label, role, values_SI in (
          ('massive token', 'massive', values_GSI[0]),
          ('ordinary tokens', 'control', values_GSI[1]),
        )
        if np.isfinite(values_SI[_MEAN]).any()
      ),
      spec.Series(
        label='massive token, random neurons',
        y=drawn_SI[0],
        low=drawn_SI[1],
        high=drawn_SI[2],
        role='other',
        style='bars',
      ),
    ),
    x_label='neuron',
    y_label=y_label,
    categories=tuple(names),
  )


def _bars(
  label: str, role: spec.Role, units: Sequence[factorial_lib.Unit]
) -> spec.Series:
  """Returns the four cells, averaged over units of one kind."""
  cells_UN = np.stack([unit.peak_ABX.mean(axis=-1).ravel() for unit in units])
  ranged_NX = np.concatenate(
    [unit.peak_ABX.reshape(4, -1) for unit in units], axis=1
  )
  return spec.Series(
    label=label,
    y=cells_UN.mean(axis=0),
    low=ranged_NX.min(axis=1),
    high=ranged_NX.max(axis=1),
    role=role,
    style='bars',
  )


def _points(
  label: str,
  role: spec.Role,
  units: Sequence[factorial_lib.Unit],
  a: int,
  b: int,
) -> spec.Series:
  """Returns one cell of every layer's unit."""
  rows = [
    (layer, unit.end_ABX[a, b]) for unit in units for layer in unit.layers
  ]
  return spec.Series(
    label=label,
    x=np.array([layer for layer, _ in rows], float),
    y=np.array([left_X.mean() for _, left_X in rows]),
    low=np.array([left_X.min() for _, left_X in rows]),
    high=np.array([left_X.max() for _, left_X in rows]),
    role=role,
    style='points',
  )
