"""What rounding costs, and what it takes away of ordinary tokens, as figures.

Letters: L layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from me_jax.analysis import bootstrap
from me_jax.evaluation import quantisation
from me_jax.evaluation import rounding
from me_jax.plotting import prose
from me_jax.plotting import spec

_Values = Mapping[str, Mapping[str, Mapping[str, bootstrap.Estimate]]]
_PANELS = {
  'the residual stream': (
    'stream',
    'stream, massive exempt',
    'stream, ordinary exempt',
    'stream, by token',
  ),
  'activations and weights': (
    'activations',
    'activations, massive exempt',
    'activations, ordinary exempt',
    'activations, by token',
    'weights',
    'weights, by channel',
    'both, fine',
  ),
}


def each(
  found: quantisation.Quantisation,
  values: _Values,
  variant: str,
  name: str,
) -> str:
  """Says an estimate for every corpus."""
  return ' and '.join(
    f'{prose.interval(values[corpus][variant][name])} on {corpus}'
    for corpus in found.corpora
  )


def _role(at: int) -> spec.Role:
  return ('massive', 'control', 'other')[min(at, 2)]


def costs(found: quantisation.Quantisation) -> spec.Figure:
  """Draws what rounding costs every model, corpus by corpus."""
  panels = []
  for corpus in found.corpora:
    for title, names in _PANELS.items():
      series = []
      for at, variant in enumerate(found.variants):
        rows = np.array([found.cost[corpus][variant][name] for name in names])
        series.append(
          spec.Series(
            label=variant,
            y=rows[:, 0],
            low=rows[:, 1],
            high=rows[:, 2],
            role=_role(at),
            style='bars',
          )
        )
      panels.append(
        spec.Chart(
          title=f'{title}, {corpus}',
          series=tuple(series),
          x_label='',
          y_label='nats per token',
          categories=names,
        )
      )
  return spec.Figure(
    name='quantisation-cost',
    title=f'Loss added by rounding to {found.bits} bits',
    caption=(
      'Each model beside itself without rounding; whiskers are 95 % bootstrap '
      'intervals over texts. Exempt tokens stay exact and do not count for a '
      'scale; ordinary ones are the control. Panels have scales of their own.'
    ),
    alt='; '.join(
      f'{name} {each(found, found.cost, quantisation.STOCK, name)}'
      for names in _PANELS.values()
      for name in names
    )
    + ' nats per token for the stock model.',
    panels=tuple(panels),
  )


def errors(found: quantisation.Quantisation) -> spec.Figure:
  """Draws what is left of ordinary tokens, site by site."""
  stock = found.error[quantisation.STOCK]
  panels = []
  lines: list[tuple[str, np.ndarray, spec.Role, spec.Style]]
  for site in rounding.SITES:
    family = 'stream' if site in rounding.STREAM else 'activations'
    lines = [
      ('a scale a tensor', stock[family][site], 'massive', 'line'),
      (
        'massive tokens exempt',
        stock[f'{family}, massive exempt'][site],
        'other',
        'line',
      ),
      (
        'ordinary tokens exempt',
        stock[f'{family}, ordinary exempt'][site],
        'control',
        'dotted',
      ),
      ('a scale a token', stock[f'{family}, by token'][site], 'plain', 'line'),
    ]
    lines += [
      (f'a scale a tensor, {name}', found.error[name][family][site],
       'massive', 'dashed')
      for name in found.variants[1:2]
    ]  # fmt: skip
    panels.append(
      spec.Chart(
        title=site,
        series=tuple(
          spec.Series(label=label, y=y, role=role, style=style)
          for label, y, role, style in lines
        ),
        x_label='layer',
        y_label='relative error',
        log_y=True,
        marks=() if found.me_layer is None else (found.me_layer,),
      )
    )
  return spec.Figure(
    name='quantisation-error',
    title='What rounding takes away of ordinary tokens',
    caption=(
      'Size of the error over that of the value, of ordinary tokens, by layer '
      'and site, in the stock model (dashed: with a mask). 1 is all of it. '
      'Inputs of matrices are rounded together, the residual stream alone. It is '
      'the error of one rounding: what earlier ones took is gone from the value, '
      'so a stream that has lost all may show little after that.'
    ),
    alt='; '.join(
      f'{panel.title}: at most {np.nanmax(panel.series[0].y):.3g}, with massive '
      f'tokens exempt {np.nanmax(panel.series[1].y):.3g}'
      for panel in panels
    )
    + '.',
    panels=tuple(panels),
  )
