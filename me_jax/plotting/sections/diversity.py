"""Does the massive token make what attention receives less diverse?

Letters: L layers.
"""

from __future__ import annotations

import numpy as np

from me_jax.analysis import diagnosis
from me_jax.analysis import me_report
from me_jax.plotting import prose
from me_jax.plotting import spec
from me_jax.plotting.sections import where as where_lib

_CLAIM = (
  'A question beyond the paper: does a token that hardly varies, and that most '
  'heads look at, narrow what attention works with?'
)
# Change of the effective rank that counts as one.
_CHANGE = 0.05
# Other tokens a text, along the massive one, from which they are mentioned.
_OTHERS = 0.5


def section(
  found: diagnosis.Diagnosis, report: me_report.MEReport
) -> spec.Section:
  """Describes the spectra of what attention receives.

  Args:
    found: of `diagnose`.
    report: of `find_me_layer` on the same texts.
  """
  where = where_lib.where(report)
  spectra = found.diversity
  rank_L2 = spectra.effective_rank
  change_L = _change(rank_L2[:, 1], rank_L2[:, 0])
  own_L = _change(spectra.participation[:, 1], spectra.participation[:, 0])
  control_L = _change(spectra.participation[:, 2], spectra.participation[:, 0])
  layers = np.arange(len(rank_L2)) if where is None else where.after
  control = (
    'Without an ordinary token instead, the participation ratio, another count '
    f'of directions, changes by {control_L[layers].mean():+.2%} on average in the '
    f'same layers; without the massive one by {own_L[layers].mean():+.2%}.'
    if len(layers)
    else 'There are no layers to compare.'
  )
  verdict: spec.Verdict = 'not tested'
  finding = f'The effective rank lies between {_range(rank_L2[:, 0])}.'
  if where is not None and len(where.after):
    others = float(found.sinks.secondary[where.after].mean())
    verdict, finding = _finding(rank_L2, change_L, where, others)
  return spec.Section(
    name='diversity',
    title='Diversity of what attention receives',
    claim=_CLAIM,
    verdict=verdict,
    finding=finding,
    control=control,
    figures=(_figure(spectra, own_L, control_L, where),),
    numbers=me_report.plain(
      {name: getattr(spectra, name) for name in spectra.__dataclass_fields__}
    ),
  )


def _finding(
  rank_L2: np.ndarray,
  change_L: np.ndarray,
  where: where_lib.Where,
  others: float,
) -> tuple[spec.Verdict, str]:
  """Returns verdict and finding; `others` are a text's other massive tokens."""
  after = rank_L2[where.after, 0].mean()
  change = change_L[where.after].mean()
  said = (
    f"Of the vectors that attention receives of a text's tokens, the effective "
    f'rank is {after:.2f} on average in {prose.layers(where.after)}; without '
    f'the massive token it changes by {change:+.1%}.'
  )
  if not len(where.before):
    return ('holds' if change > _CHANGE else 'does not hold'), said
  early = np.append(where.before, where.before[-1] + 1)
  before = rank_L2[early, 0].mean()
  said += f' In {prose.layers(early)} it is {before:.2f}.'
  lower = after < (1 - _CHANGE) * before
  if lower and change > _CHANGE:
    return 'holds', said
  if lower and others >= _OTHERS:
    return 'in part', said + (
      f' It is lower after the span, where {others:.1f} other tokens a text '
      'point along the massive one: taking one away leaves the others.'
    )
  if lower:
    return 'does not hold', said + (
      ' It is lower after the span, but not because the massive token is among '
      'the vectors: a norm takes its size away before attention sees it.'
    )
  return 'does not hold', said


def _figure(
  spectra: diagnosis.Diversity,
  own_L: np.ndarray,
  control_L: np.ndarray,
  where: where_lib.Where | None,
) -> spec.Figure:
  mark = where_lib.marks(None) if where is None else where.mark

  def pair(values_L2: np.ndarray) -> tuple[spec.Series, ...]:
    return (
      spec.Series(label='all tokens', y=values_L2[:, 0], role='plain'),
      spec.Series(
        label='without the massive token',
        y=values_L2[:, 1],
        role='massive',
        style='dashed',
      ),
    )

  return spec.Figure(
    name='diversity',
    title='Spectra of what attention receives',
    caption=(
      "Of each text's tokens after the input norm, mean over texts: effective "
      'rank exp(-sum p log p), anisotropy (share of the largest direction), '
      'and how much the participation ratio changes without one token, the '
      'massive one or, as control, an ordinary one.'
    ),
    alt=(
      f'Effective rank by layer between {_range(spectra.effective_rank[:, 0])}; '
      'without the massive token '
      f'between {_range(spectra.effective_rank[:, 1])}. Anisotropy between '
      f'{_range(spectra.anisotropy[:, 0])}.'
    ),
    columns=3,
    panels=(
      spec.Chart(
        title='effective rank',
        x_label='layer',
        y_label='directions',
        series=pair(spectra.effective_rank),
        **mark,
      ),
      spec.Chart(
        title='anisotropy',
        x_label='layer',
        y_label='share of the largest direction',
        y_range=(0.0, 1.0),
        series=pair(spectra.anisotropy),
        **mark,
      ),
      spec.Chart(
        title='participation ratio without one token',
        x_label='layer',
        y_label='change in percent',
        **mark,
        series=(
          spec.Series(
            label='without the massive token', y=100 * own_L, role='massive'
          ),
          spec.Series(
            label='without an ordinary token', y=100 * control_L, role='control'
          ),
        ),
      ),
    ),
  )


def _change(new_L: np.ndarray, old_L: np.ndarray) -> np.ndarray:
  return new_L / np.maximum(old_L, 1e-30) - 1


def _range(values_L: np.ndarray) -> str:
  return f'{values_L.min():.2f} and {values_L.max():.2f}'
