"""Figures of every kind, with invented numbers, for the tests that draw."""

from __future__ import annotations

import numpy as np

from me_jax.plotting import spec

_random = np.random.default_rng(0)


def _figure(name: str, *panels: spec.Panel, **fields) -> spec.Figure:
  return spec.Figure(
    name=name,
    title=f'the title of {name}',
    caption=f'what {name} shows',
    alt=f'the finding of {name}',
    panels=panels,
    **fields,
  )


def _chart(title: str, *series: spec.Series, **fields) -> spec.Chart:
  return spec.Chart(
    title=title, series=series, x_label='layer', y_label='size', **fields
  )


LINES = _figure(
  'lines',
  _chart(
    'three lines',
    spec.Series(
      label='massive',
      y=np.array([1.0, 2.0, 3.0]),
      low=np.array([0.5, 1.0, 2.0]),
      high=np.array([2.0, 3.0, 4.0]),
      role='massive',
      hover=('a', 'b', 'c'),
    ),
    spec.Series(label='control', y=np.ones(3), role='control'),
    spec.Series(label='median', y=np.ones(3), role='other', style='dashed'),
    spec.Series(label='steps', y=np.ones(3), style='steps'),
    marks=(1.0,),
  ),
)
LOG = _figure(
  'log',
  _chart(
    'a logarithmic axis',
    spec.Series(
      label='massive',
      y=np.array([0.0, 1.0, 100.0, -5.0, np.nan]),
      low=np.array([0.0, 0.0, 50.0, 0.0, np.nan]),
      high=np.array([0.0, 2.0, 200.0, 1.0, np.nan]),
    ),
    log_y=True,
  ),
)
INTERVALS = [[2.0, 4.0], [0.5, 2.0], [1.0, 1.0]]
BARS = _figure(
  'bars',
  _chart(
    'conditions',
    spec.Series(
      label='spike',
      y=np.array([3.0, 1.0, 1.0]),
      low=np.array([low for low, _ in INTERVALS]),
      high=np.array([high for _, high in INTERVALS]),
      style='bars',
      role='massive',
    ),
    spec.Series(label='control', y=np.ones(3), style='bars', role='control'),
    categories=(
      'stock',
      'norm made flat everywhere, and in all other layers',
      'both factors removed',
    ),
  ),
  _chart(
    'points',
    spec.Series(
      label='loss',
      y=np.array([3.0, 1.0]),
      low=np.array([2.0, 0.5]),
      high=np.array([4.0, 2.0]),
      style='points',
    ),
    categories=('stock', 'edited'),
  ),
  _chart(
    'a distribution',
    *(
      spec.Series(
        label=role,
        x=np.linspace(0, 1, 30),
        y=_random.poisson(5, 30).astype(float),
        style='bars',
        role=role,
      )
      for role in ('massive', 'control')
    ),
    bars='overlaid',
  ),
)
_attention = np.tril(_random.random((12, 12)))
_attention[np.triu_indices(12, 1)] = np.nan
MATRICES = _figure(
  'matrices',
  spec.Heatmap(
    title='attention',
    values=_attention,
    x_label='key',
    y_label='query',
    value_label='attention',
    value_range=(0.0, 1.0),
    origin='upper',
    x_names=tuple(f'token {i}' for i in range(12)),
    y_names=tuple(f'token {i}' for i in range(12)),
  ),
  spec.Heatmap(
    title='by head, logarithmic',
    values=10.0 ** _random.integers(-3, 3, (30, 9)),
    x_label='head',
    y_label='layer',
    value_label='mean',
    log=True,
    marks=(11.0,),
    column_marks=(3.0,),
  ),
)
_wide = np.abs(_random.normal(0, 1, (80, 8192)))
_wide[np.arange(80), _random.integers(0, 8192, 80)] = 500.0
WIDE = _figure(
  'wide',
  *(
    spec.Ridges(
      title='|x|', values=values, value_label='mean |x|', top=500.0, mark=3
    )
    for values in (_wide, np.minimum(_wide, 5.0))
  ),
)
# Nothing was measured: no model may lead to an exception.
EMPTY = _figure(
  'empty',
  _chart('nothing', spec.Series(label='none', y=np.zeros(0)), log_y=True),
  spec.Heatmap(
    title='blank',
    values=np.full((3, 4), np.nan),
    x_label='',
    y_label='',
    value_label='',
    log=True,
  ),
  spec.Ridges(title='flat', values=np.zeros((2, 5)), value_label='', top=0.0),
)
# What tokenizers hold; and how it is to be seen.
TOKENS = (
  '</script><b>bold</b>',
  '$x^2$ and $',
  '%{y} &lt; <a href="https://example.org">',
  '\u202eturned',
  '\x00\x1b[31m\n',
  'half \ud800 a pair',
  '日本',
)
SEEN = (
  '</script><b>bold</b>',
  '$x^2$ and $',
  '%{y} &lt; <a href="https://example.org">',
  '\\u202eturned',
  '\\x00\\x1b[31m\\n',
  'half \\ud800 a pair',
  '日本',
)
STRANGE = _figure(
  'strange',
  _chart(
    'tokens $ as $ labels',
    *(
      spec.Series(label=token, y=np.ones(2), hover=(token, token))
      for token in TOKENS
    ),
  ),
  spec.Heatmap(
    title=TOKENS[0],
    values=np.eye(len(TOKENS)),
    x_label=TOKENS[1],
    y_label=TOKENS[2],
    value_label=TOKENS[0],
    x_names=TOKENS,
    y_names=TOKENS,
  ),
)
FIGURES = (LINES, LOG, BARS, MATRICES, WIDE, EMPTY, STRANGE)


def sections() -> tuple[spec.Section, ...]:
  """Returns sections of every verdict with every figure and a table."""
  verdicts = 'holds', 'in part', 'does not hold', 'not tested'
  parts = FIGURES[:2], FIGURES[2:4], FIGURES[4:6], FIGURES[6:]
  table = spec.Table(
    caption='tokens',
    header=('token', *(f'count {i}' for i in range(12))),
    rows=tuple((token, *['1,234'] * 12) for token in TOKENS),
  )
  return tuple(
    spec.Section(
      name=verdict.replace(' ', '-'),
      title=f'A claim that is {verdict}',
      claim='What is claimed & <how>.',
      verdict=verdict,
      finding=f'Measured: {TOKENS[0]}.',
      control='The control is zero.',
      figures=figures,
      tables=(table,),
      numbers={
        'array': np.arange(3),
        'missing': float('nan'),
        'token': TOKENS[0],
      },
    )
    for verdict, figures in zip(verdicts, parts)
  )
