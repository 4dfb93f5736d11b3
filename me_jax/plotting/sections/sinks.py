"""Do attention sinks begin after the ME Layer?

Letters: L layers, N heads, W first tokens, C captured layers, T time.
"""

from __future__ import annotations

import numpy as np

from me_jax.analysis import attention_maps
from me_jax.analysis import diagnosis
from me_jax.analysis import me_report
from me_jax.analysis import sinks
from me_jax.plotting import prose
from me_jax.plotting import spec
from me_jax.plotting.sections import maps as maps_lib
from me_jax.plotting.sections import where as where_lib

_CLAIM = (
  'Attention sinks, tokens that draw attention without meaning, begin in the '
  'layer after the ME Layer.'
)
_SHOWN_POSITIONS = 16
# How much more attention after than before makes "in part".
_RISE = 0.1


def section(
  found: diagnosis.Diagnosis,
  report: me_report.MEReport,
  maps: attention_maps.AttentionMaps | None = None,
) -> spec.Section:
  """Describes who receives attention, before and after the ME Layer.

  Args:
    found: of `diagnose`.
    report: of `find_me_layer` on the same texts.
    maps: of one text, of the layers around the emergence span.
  """
  where = where_lib.where(report)
  verdict, finding = _finding(found.sinks, where)
  control = found.sinks.control_attention.mean()
  largest = found.sinks.control_largest.mean()
  return spec.Section(
    name='sinks',
    title='Attention sinks follow',
    claim=_CLAIM,
    verdict=verdict,
    finding=finding,
    control=(
      'Ordinary tokens of the same texts receive '
      f'{control:.3f} of the attention on average, at most '
      f'{found.sinks.control_attention.mean(axis=1).max():.3f} in any layer, and '
      f'are the most attended token of {largest:.2%} of later queries.'
    ),
    figures=_figures(found.sinks, where, maps),
    tables=_tables(found.sinks, where),
    numbers=_numbers(found.sinks),
  )


def _finding(
  found: diagnosis.Sinks, where: where_lib.Where | None
) -> tuple[spec.Verdict, str]:
  mean_L = found.attention.mean(axis=1)
  rate_L = found.rate.mean(axis=1)
  if where is None or not len(where.after):
    return 'not tested', (
      'There is no plateau to compare with. The first token receives '
      f'{mean_L.mean():.3f} of the attention on average over layers and heads.'
    )
  after = mean_L[where.after].mean()
  largest = found.largest[where.after].mean()
  said = (
    f'On the plateau, in {prose.layers(where.after)}, the massive token gets '
    f'{after:.3f} of the attention on average over heads, more than '
    f'{sinks.SINK} in {rate_L[where.after].mean():.1%} of heads and texts, and '
    f'is the most attended token of {largest:.1%} of later queries.'
  )
  if not len(where.before):
    return ('holds' if after > sinks.SINK else 'does not hold'), said
  # The span's first layer still receives the state from before it.
  early = np.append(where.before, where.before[-1] + 1)
  before, most = mean_L[early].mean(), int(early[mean_L[early].argmax()])
  said += (
    f' In {prose.layers(early)}, whose input comes from before, it gets '
    f'{before:.3f}; the most in layer {most}, {mean_L[most]:.3f}.'
  )
  verdict = 'does not hold'
  if after > sinks.SINK and mean_L[most] < sinks.SINK:
    verdict = 'holds'
  elif after > before + _RISE:
    verdict = 'in part'
    said += (
      ' So a sink exists before the massive activations do, and is '
      'stronger after.'
    )
  return verdict, said


def _figures(
  found: diagnosis.Sinks,
  where: where_lib.Where | None,
  maps: attention_maps.AttentionMaps | None,
) -> tuple[spec.Figure, ...]:
  mark = where_lib.marks(None) if where is None else where.mark
  layers = len(found.attention)
  curves = spec.Figure(
    name='sinks-layers',
    title='Attention to the massive token',
    caption=(
      'First: mean attention that later queries (and its own) give the token, '
      'over heads, with the range from the 10th to the 90th percentile of heads. '
      f'Second: share of heads and texts where it exceeds {sinks.SINK} (sink '
      'rate), and share of later queries that attend to it most. Control: '
      'ordinary tokens of the same texts.'
    ),
    alt=(
      'Mean attention by layer, massive token: '
      f'{_range(found.attention.mean(axis=1))}; ordinary tokens: '
      f'{_range(found.control_attention.mean(axis=1))}.'
    ),
    panels=(
      spec.Chart(
        title='mean attention',
        x_label='layer',
        y_label='attention',
        y_range=(0.0, 1.0),
        **mark,
        series=(
          _over_heads('massive token', found.attention, 'massive'),
          _over_heads('ordinary tokens', found.control_attention, 'control'),
        ),
      ),
      spec.Chart(
        title='sink rate',
        x_label='layer',
        y_label='share',
        y_range=(0.0, 1.02),
        **mark,
        series=(
          spec.Series(
            label=f'attention above {sinks.SINK}',
            y=found.rate.mean(axis=1),
            role='massive',
          ),
          spec.Series(
            label='most attended',
            y=found.largest.mean(axis=1),
            role='massive',
            style='dashed',
          ),
          spec.Series(
            label='most attended, ordinary tokens',
            y=found.control_largest.mean(axis=1),
            role='control',
            style='dashed',
          ),
        ),
      ),
    ),
  )
  places = min(_SHOWN_POSITIONS, found.by_position.shape[-1])
  heads = spec.Figure(
    name='sinks-heads',
    title='Which heads, which positions',
    caption=(
      'First: mean attention to the massive token by layer and head. Second: mean '
      f'attention by position among the first {sinks.WINDOW} tokens of a text, '
      'over heads: all other positions are the control.'
    ),
    alt=(
      'Two maps over layers. Attention to the massive token by head lies '
      f'between {found.attention.min():.2f} and {found.attention.max():.2f}; by '
      'position, the largest mean over layers is at position '
      f'{int(found.by_position.mean(axis=(0, 1)).argmax())}.'
    ),
    panels=(
      spec.Heatmap(
        title='by head',
        values=found.attention,
        x_label='head',
        y_label='layer',
        value_label='attention',
        value_range=(0.0, 1.0),
        marks=mark['marks'],
      ),
      spec.Heatmap(
        title='by position in the text',
        values=found.by_position.mean(axis=1)[:, :places],
        x_label='position',
        y_label='layer',
        value_label='attention',
        value_range=(0.0, 1.0),
        marks=mark['marks'],
      ),
    ),
  )
  shown = (curves, heads)
  if maps is None or not layers:
    return shown
  return (*shown, _maps(maps, where))


def _maps(
  maps: attention_maps.AttentionMaps, where: where_lib.Where | None
) -> spec.Figure:
  def name(layer: int) -> str:
    if where is None:
      return f'layer {layer}'
    side = 'after the span' if layer in where.after else 'before'
    return f'layer {layer} ({side})'

  received = maps_lib.received(maps)
  return spec.Figure(
    name='sinks-maps',
    title='Attention maps before and after',
    caption=(
      'Mean over heads of one text; rows are queries, columns keys, colours '
      'logarithmic from 0.001. A sink is a bright column.'
    ),
    alt='Attention maps of one text. The massive token receives on average '
    + ', '.join(
      f'{value:.3f} in layer {layer}'
      for layer, value in zip(maps.layers, received)
    )
    + '.',
    columns=2,
    panels=tuple(
      maps_lib.panel(name(layer), probs_NTT)
      for layer, probs_NTT in zip(maps.layers, maps.probs_CNTT)
    ),
  )


def _over_heads(
  label: str, values_LN: np.ndarray, role: spec.Role
) -> spec.Series:
  low, high = np.quantile(values_LN, (0.1, 0.9), axis=1)
  return spec.Series(
    label=label, y=values_LN.mean(axis=1), low=low, high=high, role=role
  )


def _tables(
  found: diagnosis.Sinks, where: where_lib.Where | None
) -> tuple[spec.Table, ...]:
  if where is None or not len(where.after):
    return ()
  flat = found.attention[where.after]
  order = np.argsort(-flat, axis=None)[:5]
  layers, heads = np.unravel_index(order, flat.shape)
  strongest = spec.Table(
    caption='The heads that attend to the massive token most.',
    header=('layer', 'head', 'attention', 'std over texts', 'most attended'),
    rows=tuple(
      (
        str(where.after[i]),
        str(h),
        f'{flat[i, h]:.3f}',
        f'{found.attention_std[where.after[i], h]:.3f}',
        f'{found.largest[where.after[i], h]:.1%}',
      )
      for i, h in zip(layers, heads)
    ),
  )
  count = found.secondary[where.after].mean()
  received = found.secondary_attention[where.after]
  secondary = spec.Table(
    caption=(
      'Secondary sinks: other tokens whose state before the layer has a cosine '
      f'above {sinks.SECONDARY} to the massive one (arXiv 2512.22213), mean over '
      f'{prose.layers(where.after)}.'
    ),
    header=('tokens a text', 'attention to each'),
    rows=(
      (
        f'{count:.3f}',
        'none' if np.isnan(received).all() else f'{np.nanmean(received):.3f}',
      ),
    ),
  )
  return strongest, secondary


def _range(values_L: np.ndarray) -> str:
  return f'{values_L.min():.3f} to {values_L.max():.3f}'


def _numbers(found: diagnosis.Sinks) -> dict[str, object]:
  values = {
    name: getattr(found, name)
    for name in found.__dataclass_fields__
    if not name.endswith('by_position')
  }
  # By position and head is a lot of numbers that say little each.
  values['by_position'] = found.by_position.mean(axis=1)
  values['rate_by_position'] = found.rate_by_position.mean(axis=1)
  return me_report.plain(values)
