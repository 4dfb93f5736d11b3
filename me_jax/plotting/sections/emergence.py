"""Do massive activations emerge in one layer? The report's first section.

Letters: L layers, Z = L + 1 states, D model width.
"""

from __future__ import annotations

import numpy as np

from me_jax.analysis import me_report
from me_jax.plotting import figures
from me_jax.plotting import prose
from me_jax.plotting import spec

_CLAIM = (
  'Massive activations first appear in one decoder layer, the Massive Emergence '
  '(ME) Layer, at its FFN. Deeper layers do not make them again: they inherit '
  'them through the residual stream.'
)
# Of the ME Layer's share that its FFN must have written.
_BY_FFN = 0.5
_MOST_ROWS = 12
_RULES = {
  'share': 'largest share (our rule)',
  'sun': 'first massive output (Sun et al. 2024)',
  'jump': 'largest jump of the norm',
}


def section(report: me_report.MEReport) -> spec.Section:
  """Describes where the massive activations come from.

  Args:
    report: of `find_me_layer`, of any verdict.

  Returns:
    The section on the paper's first claim.
  """
  return spec.Section(
    name='emergence',
    title='One layer creates the massive activations',
    claim=_CLAIM,
    verdict=_verdict(report),
    finding=' '.join(_finding(report)),
    control=_control(report),
    figures=_figures(report),
    tables=tuple(table for table in _tables(report) if table.rows),
    numbers=report.to_json(),
  )


def _verdict(report: me_report.MEReport) -> spec.Verdict:
  if report.verdict == 'none':
    return 'not tested'
  if report.verdict != 'single':
    return 'in part' if report.verdict == 'multi-step' else 'does not hold'
  layer = report.layer
  ffn, attn = report.shares.ffn[layer], report.shares.attn[layer]
  return 'holds' if ffn >= _BY_FFN * (ffn + attn) else 'in part'


def _finding(report: me_report.MEReport) -> list[str]:
  """Says what was measured, a sentence at a time."""
  peak = report.peak
  largest = (
    f'The largest |x| is {prose.size(peak.value)} after layer {peak.layer}, '
    f'{prose.size(peak.ratio)} times the median there.'
  )
  if report.verdict == 'none':
    return [
      largest,
      'An activation counts as massive above 100 and above 1000 times the '
      'median of its layer (Sun et al. 2024), so there is nothing whose origin '
      'could be sought. The figures show the first token of each prompt.',
    ]
  said = [
    f'{report.massive_texts} of {report.texts} prompts hold massive activations.'
  ]
  if report.span:
    spread = report.share_by_text
    ffn = report.shares.ffn[list(report.span)].sum()
    attn = report.shares.attn[list(report.span)].sum()
    said.append(
      f'{prose.layers(report.span).capitalize()} wrote {spread.mean():.4f} of the '
      f"massive token's largest state, and {spread.min():.4f} in the prompt with "
      f'the least: the FFN {_share(ffn)}, attention {_share(attn)}.'
    )
  said.append(f'The embedding brings {_share(report.shares.embedding)}.')
  if report.layer is not None:
    jump = report.jump[report.layer]
    said.append(
      f"In layer {report.layer} the token's norm grows {jump:,.1f}-fold."
    )
  if report.plateau:
    first, last = report.plateau
    over = prose.layers(range(first, last + 1))
    said.append(f'The plateau lasts over {over}.')
  if report.channels:
    first = report.channels[0]
    said.append(
      f'Channel {first.index} carries {first.energy:.1%} of its squared norm '
      f'({first.value:+,.0f} ± {first.std:,.0f}).'
    )
  return said + [largest]


def _control(report: me_report.MEReport) -> str:
  """Says what ordinary tokens do under the same arithmetic."""
  control = report.control
  both = control.shares.attn + control.shares.ffn
  width = len(control.span)
  needed = f'{width} layers' if width != 1 else 'one layer'
  said = (
    'Ordinary tokens of the same prompts, through the same arithmetic, need '
    f'{needed} for 0.8 of their largest state'
    if width
    else 'In ordinary tokens of the same prompts, no run of layers writes 0.8 of '
    'the largest state'
  )
  said += f'; no single layer writes more than {both.max():.3f} of it.'
  if report.layer is not None:
    before, after = control.norm[report.layer], control.norm[report.layer + 1]
    said += (
      f' In layer {report.layer} their norm grows '
      f'{after / max(before, 1e-30):.2f}-fold.'
    )
  return said


def _figures(report: me_report.MEReport) -> tuple[spec.Figure, ...]:
  token = figures.token_name(report)
  state, channel = np.unravel_index(
    report.profile[1:].argmax(), report.profile[1:].shape
  )
  top = report.profile[1:].max()
  control = report.control.profile[1:].max()
  place = 'There is no ME Layer.'
  if report.layer is not None:
    place = f'The ME Layer is layer {report.layer}.'
  return (
    spec.Figure(
      name='emergence-ridges',
      title=f'Where |x| of {token} grows',
      caption=(
        f'Mean |x| over {report.massive_texts or report.texts} prompts, a line a '
        f'layer: first of {token}, then, on the same scale, of ordinary tokens '
        'of the same prompts, which are the control.'
      ),
      alt=(
        f'{token.capitalize()} reaches a mean |x| of {prose.size(top)} in channel '
        f'{channel} after layer {state}; for ordinary tokens the largest mean is '
        f'{prose.size(control)}. {place}'
      ),
      panels=figures.ridges(report),
    ),
    spec.Figure(
      name='emergence-layers',
      title='Norm and authorship, layer by layer',
      caption=(
        'First the norm of the state, on a logarithmic axis; then the share of '
        "each layer's attention and FFN, which is the projection of what it wrote "
        "on the direction of the token's largest state, over that state's norm. "
        "Shares, the embedding's included, sum to one. Ordinary tokens are the "
        'control in both.'
      ),
      alt=_layers_alt(report, token),
      panels=(figures.norms(report), figures.shares(report)),
    ),
  )


def _layers_alt(report: me_report.MEReport, token: str) -> str:
  ffn, attn = report.shares.ffn, report.shares.attn
  best = int((ffn + attn).argmax())
  both = report.control.shares.attn + report.control.shares.ffn
  return (
    f'The norm of {token} is {prose.size(report.norm[best])} before layer {best} and '
    f'{prose.size(report.norm[best + 1])} after it. Layer {best} wrote the most of the '
    f'largest state: FFN {_share(ffn[best])}, attention {_share(attn[best])}. In '
    f'ordinary tokens the most that a layer wrote is {both.max():.3f}, layer '
    f'{int(both.argmax())}.'
  )


def _tables(report: me_report.MEReport) -> list[spec.Table]:
  rows = [
    (group.replace('_', ' ').replace('bos', 'BOS'),
     f'{found.massive} of {found.texts}', _RULES.get(rule, rule),
     _counts(layers))
    for group, found in report.agreement.items()
    for rule, layers in found.rules.items()
    if layers
  ]  # fmt: skip
  tokens = [
    (
      str(token.position),
      str(token.token_id) if token.string is None else repr(token.string),
      str(token.token_id),
      str(token.texts),
    )
    for token in report.tokens[:_MOST_ROWS]
  ]
  channels = [
    (str(c.index), f'{c.value:+,.1f}', f'{c.std:,.1f}', f'{c.energy:.2%}')
    for c in report.channels[:_MOST_ROWS]
  ]
  neurons = [
    (str(n.layer), str(n.index), f'{n.share:.4f}') for n in report.neurons
  ]
  return [
    spec.Table(
      caption='Which layer three rules name, each prompt taken alone',
      header=('prompts', 'with massive activations', 'rule', 'layer (prompts)'),
      rows=tuple(rows),
    ),
    spec.Table(
      caption='Massive tokens' + _of(len(report.tokens)),
      header=('position', 'token', 'id', 'prompts'),
      rows=tuple(tokens),
    ),
    spec.Table(
      caption='Massive channels of the plateau' + _of(len(report.channels)),
      header=('channel', 'mean', 'deviation', 'part of the squared norm'),
      rows=tuple(channels),
    ),
    spec.Table(
      caption='FFN neurons that write the plateau',
      header=('layer', 'neuron', 'share'),
      rows=tuple(neurons),
    ),
  ]


def _share(share: float) -> str:
  """Spells a share; what rounds to zero has no sign."""
  return f'{round(float(share), 4) + 0.0:.4f}'


def _of(count: int) -> str:
  return f', the first {_MOST_ROWS} of {count}' if count > _MOST_ROWS else ''


def _counts(layers: dict[int | None, int]) -> str:
  ranked = sorted(layers.items(), key=lambda item: -item[1])
  return ', '.join(
    f'{"none" if layer is None else layer} ({count})' for layer, count in ranked
  ) or '-'  # fmt: skip
