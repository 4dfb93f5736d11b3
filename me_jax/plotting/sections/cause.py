"""Do the norm and the FFN of the ME Layer write the spike together?

Letters: G groups (massive token, ordinary tokens), L layers.
"""

from __future__ import annotations

import numpy as np

from me_jax.analysis import attribution as attribution_lib
from me_jax.analysis import bootstrap
from me_jax.analysis import factorial as factorial_lib
from me_jax.analysis import me_report
from me_jax.plotting import prose
from me_jax.plotting import spec
from me_jax.plotting.sections import cause_figures
from me_jax.plotting.sections import cause_tables
from me_jax.plotting.sections import where as where_lib

_CLAIM = (
  "The ME Layer's RMSNorm and FFN act together: their parameters are large, "
  'aligned with the massive token, and selective for it.'
)
_MATTERS = 0.1  # of the spike, and the interval must not hold 0
_MASSIVE, _ORDINARY = attribution_lib.MASSIVE, attribution_lib.ORDINARY
_MEAN = attribution_lib.MEAN


def section(
  report: me_report.MEReport,
  attribution: attribution_lib.Attribution,
  factorial: factorial_lib.Factorial,
) -> spec.Section:
  """Describes why the ME Layer writes the plateau.

  Args:
    report: of `find_me_layer`, of any verdict.
    attribution: of `attribution.attribute`.
    factorial: of `factorial.run`.

  Returns:
    The section on the paper's second claim.
  """
  return spec.Section(
    name='cause',
    title='What makes that layer write',
    claim=_CLAIM,
    verdict=_verdict(factorial),
    finding=' '.join(_finding(report, attribution, factorial)),
    control=' '.join(_control(report, attribution, factorial)),
    figures=_figures(report, attribution, factorial),
    tables=cause_tables.tables(attribution, factorial),
    numbers=cause_tables.numbers(attribution, factorial),
  )


def matters(effect: bootstrap.Estimate) -> bool:
  """Whether an effect takes at least a tenth of the spike away, surely."""
  return effect.value <= -_MATTERS and effect.high < 0


def _verdict(factorial: factorial_lib.Factorial) -> spec.Verdict:
  if not factorial.tested:
    return 'not tested'
  raw = factorial.of_kind('me')[0].raw
  random = np.mean([u.raw.neurons.value for u in factorial.of_kind('random')])
  # Neurons that any others could stand for are not what writes.
  neurons = matters(raw.neurons) and raw.neurons.value <= 2 * random
  count = int(matters(raw.norm)) + int(neurons)
  return ('does not hold', 'in part', 'holds')[count]


def _where(report: me_report.MEReport) -> list[int]:
  """Returns the layers that the section is about."""
  return [report.layer] if report.layer is not None else list(report.span)


def _best(
  report: me_report.MEReport, values_GSL: np.ndarray
) -> tuple[float, float, float, int]:
  """Returns massive and ordinary at the ME Layer, and the largest elsewhere.

  Returns:
    Two means at the layer of the span where the massive token's is largest, the
    massive token's largest mean outside the span, and that layer.
  """
  massive_L = values_GSL[_MASSIVE, _MEAN]
  here = max(_where(report), key=lambda layer: massive_L[layer])
  elsewhere_L = np.where(
    np.isin(np.arange(len(massive_L)), report.span), -np.inf, massive_L
  )
  layer = int(elsewhere_L.argmax())
  ordinary = values_GSL[_ORDINARY, _MEAN, here]
  return massive_L[here], ordinary, elsewhere_L[layer], layer


def _finding(
  report: me_report.MEReport,
  attribution: attribution_lib.Attribution,
  factorial: factorial_lib.Factorial,
) -> list[str]:
  if not factorial.tested:
    return [factorial.reason, 'The figures show what there is to see.']
  gain, plain_gain, *_ = _best(report, attribution.ffn_gain_GSL)
  match, plain_match, *_ = _best(report, attribution.alignment_GSL)
  norm, plain_norm, *_ = _best(report, attribution.gain_GSL)
  said = [
    f'The FFN gives the massive token {gain:,.0f} times the norm that it is '
    f'given, ordinary tokens {plain_gain:,.3g} times.',
    f'The token is aligned with its best neuron, |cos gate| · |cos up| = '
    f'{match:.3f}, ordinary tokens with theirs by {plain_match:.3f}.',
    f'The norm hardly tells them apart: its gain is {norm:.3g} for the massive '
    f'token and {plain_norm:.3g} for ordinary ones.'
    if 0.5 < norm / plain_norm < 2
    else f"The norm's gain is {norm:.3g} for the massive token and "
    f'{plain_norm:.3g} for ordinary ones.',
  ]
  said += _scale(report, attribution, factorial)
  table = attribution.dominating
  if len(table.index_I):
    said.append(
      f'Neuron {table.index_I[0]} of layer {table.layer_I[0]} has rows '
      f'{table.gate_size_I[0]:.1f} (gate), {table.up_size_I[0]:.1f} (up) and '
      f'{table.down_size_I[0]:.1f} (down) times as long as the median.'
    )
  unit = factorial.of_kind('me')[0]
  ((_, b), (a, both)) = unit.peak_ABX.mean(axis=-1)
  which = 'after' if factorial.after else 'before'
  said += [
    f'With the norm {which} the FFN flattened to its mean, {a:.1%} of the spike '
    f'is left; with {_count(len(unit.neurons))} set to the '
    f'{_neutral(factorial)}, {b:.1%}; with both, {both:.1%}.',
    f'Main effects, over {factorial.prefixes} distinct massive tokens: norm '
    f'{prose.interval(unit.raw.norm)}, neurons '
    f'{prose.interval(unit.raw.neurons)}; interaction '
    f'{prose.interval(unit.raw.interaction)}.',
  ]
  said += _doses(factorial)
  said += [
    f'Layers before prepare what it reads. {sentence}'
    for place, (sentence, least) in _others(report, factorial).items()
    if _prepares(place, least)
  ]
  if factorial.prefixes < 5:
    few = f'are only {factorial.prefixes} distinct massive tokens'
    if factorial.prefixes == 1:
      few = 'is only one distinct massive token'
    said.append(f'There {few}: the intervals say little.')
  return said


def _scale(
  report: me_report.MEReport,
  attribution: attribution_lib.Attribution,
  factorial: factorial_lib.Factorial,
) -> list[str]:
  """Says whether earlier layers scaled the token down more."""
  scale_L = attribution.scale_GSL[_MASSIVE, _MEAN]
  here = max(_where(report), key=lambda layer: scale_L[layer])
  if factorial.after or not here:
    return []
  least = int(scale_L[:here].argmin())
  ratio = scale_L[least] / scale_L[here]
  if ratio > 0.5:
    return []
  return [
    'The norm divides by the size of the whole state. At the FFN of layer '
    f'{least} that was {1 / ratio:.3g} times what it is here (1 / rms '
    f'{scale_L[least]:.3g}, here {scale_L[here]:.3g}): a component along these '
    f'neurons as large as it is here would have reached them {1 / ratio:.3g} times '
    f'smaller, and written {ratio**2:.1%}, the square. Layers in between made the '
    'rest of the state small.'
  ]


def _count(neurons: int) -> str:
  return 'its one writing neuron' if neurons == 1 else (
    f'its {neurons} writing neurons'
  )  # fmt: skip


def _neutral(factorial: factorial_lib.Factorial) -> str:
  return 'mean of ordinary tokens' if factorial.neutral == 'mean' else 'value 0'


def _doses(factorial: factorial_lib.Factorial) -> list[str]:
  """Says what the norm contributes, if not its pattern."""
  effect = factorial.of_kind('me')[0].raw.norm
  left = {(d.change, d.share): d.left.value for d in factorial.doses}
  share = min(share for change, share in left if change == 'largest')
  # A norm after the FFN multiplies what is written, once.
  expected = 'half of it' if factorial.after else 'a quadratic form leaves 0.25'
  said = []
  if matters(effect):
    said.append("So the pattern of the norm's weight over the channels counts.")
  elif effect.value >= _MATTERS:
    said.append("So the pattern of the norm's weight makes the spike smaller.")
  else:
    said.append(
      "So a flat weight of the same mean does what the norm's own does"
      + (
        '.'
        if factorial.after
        else ': the token is aligned with the neurons before it is weighted.'
      )
    )
  return said + [
    f'The weight halved leaves {left["halved", 1.0]:.3f} of the spike '
    f'({expected}); without its largest {share:.0%} of channels '
    f'{left["largest", share]:.3f} is left, without as many random ones '
    f'{left["random", share]:.3f}, without the smallest '
    f'{left["smallest", share]:.3f}.'
  ]


def _control(
  report: me_report.MEReport,
  attribution: attribution_lib.Attribution,
  factorial: factorial_lib.Factorial,
) -> list[str]:
  if not factorial.tested:
    return [
      f'{attribution.ordinary} ordinary tokens went through the same arithmetic.'
    ]
  gain = _best(report, attribution.ffn_gain_GSL)
  match = _best(report, attribution.alignment_GSL)
  random = np.mean(
    [u.peak_ABX[0, 1].mean() for u in factorial.of_kind('random')]
  )
  matched = factorial.of_kind('matched')[0].peak_ABX[0, 1].mean()
  said = []
  if np.isfinite(gain[2]):  # there is a layer outside the span
    said.append(
      f"At other layers the massive token's largest FFN gain is {gain[2]:,.0f} "
      f'(layer {gain[3]}), its largest alignment {match[2]:.3f} (layer '
      f'{match[3]}).'
    )
  said.append(
    f'As many random neurons neutralised leave {random:.1%} of the spike, the '
    f'next largest contributors {matched:.1%}.'
  )
  return said + [
    sentence
    for place, (sentence, least) in _others(report, factorial).items()
    if not _prepares(place, least)
  ]


def _others(
  report: me_report.MEReport, factorial: factorial_lib.Factorial
) -> dict[str, tuple[str, float]]:
  """Says what is left with both switches thrown at one other layer.

  Returns:
    Of the layers before the span, and of those after it, if there are any, a
    sentence and the least that is left.
  """
  layers = factorial.of_kind('layer')
  places = {
    'before': [u for u in layers if u.layers[0] < min(report.span)],
    'after': [u for u in layers if u.layers[0] > max(report.span)],
  }
  found = {}
  for place, units in places.items():
    if units:
      left = np.array([u.end_ABX[1, 1].mean() for u in units])
      worst = units[int(np.abs(left - 1).argmax())]
      sentence = (
        f'Both switches at one layer {place} the span leave between '
        f'{left.min():.1%} and {left.max():.1%} at the end of the plateau '
        f'(the most changed: layer {worst.layers[0]}).'
      )
      found[place] = sentence, float(left.min())
  return found


def _prepares(place: str, left: float) -> bool:
  """Whether layers matter because the span reads what they write."""
  return place == 'before' and left <= 1 - _MATTERS


def _figures(
  report: me_report.MEReport,
  attribution: attribution_lib.Attribution,
  factorial: factorial_lib.Factorial,
) -> tuple[spec.Figure, ...]:
  marks = where_lib.marks(report.layer, report.span)
  token = 'massive token' if attribution.massive else 'first token'
  of = (
    f'{attribution.prefixes} distinct {token}s (blue) and '
    f'{attribution.ordinary} ordinary tokens (green). Bands: 10 to 90 % of '
    'the tokens.'
  )
  here = bool(marks['marks'])
  norm = _best(report, attribution.gain_GSL) if here else None
  ffn = _best(report, attribution.ffn_gain_GSL) if here else None
  match = _best(report, attribution.alignment_GSL) if here else None
  figures = [
    spec.Figure(
      name='cause-norm',
      title="The norm's side",
      caption=f'What {attribution.norm} does to {of}',
      alt=(
        f"The norm's gain on the massive token at the ME Layer is {norm[0]:.3g}, "
        f'on ordinary tokens {norm[1]:.3g}.'
        if norm
        else 'There is no ME Layer; the lines show every layer.'
      ),
      panels=cause_figures.norm_panels(attribution, marks),
    ),
    spec.Figure(
      name='cause-ffn',
      title="The FFN's side",
      caption=f'What the FFN does to {of}',
      alt=(
        f'The FFN multiplies the norm of the massive token by {ffn[0]:,.0f} at '
        f'the ME Layer, that of ordinary tokens by {ffn[1]:.3g}; alignment is '
        f'{match[0]:.3f} against {match[1]:.3f}.'
        if ffn and match
        else 'There is no ME Layer; the lines show every layer.'
      ),
      panels=cause_figures.ffn_panels(attribution, marks),
    ),
  ]
  if factorial.tested:
    ((_, b), (a, both)) = factorial.of_kind('me')[0].peak_ABX.mean(axis=-1)
    figures.append(
      spec.Figure(
        name='cause-factorial',
        title='Norm and neurons switched off, alone and together',
        caption=(
          f'What is left of the spike on {factorial.prefixes} distinct massive '
          'tokens. First: the ME Layer, with its writing neurons, with the next '
          'largest and with random ones. Then every layer, with as many of its '
          'own largest neurons (those of the emergence span are switched '
          'together). Whiskers: smallest and largest over tokens.'
        ),
        alt=(
          f'Left of the spike: {a:.1%} with the norm flattened, {b:.1%} with the '
          f'writing neurons neutralised, {both:.1%} with both.'
        ),
        panels=cause_figures.factorial_panels(factorial),
      )
    )
  return tuple(figures)
