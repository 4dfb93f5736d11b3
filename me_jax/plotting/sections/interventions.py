"""Does the model need its massive activations?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from me_jax.analysis import bootstrap
from me_jax.analysis import interventions as interventions_lib
from me_jax.analysis import me_report
from me_jax.plotting import prose
from me_jax.plotting import spec

_CLAIM = (
  'Massive activations act as a bias that the model cannot do without (Sun et '
  'al. 2024): set to zero they break it, set to their mean over texts they do '
  'not, because they hold no information about the text. Single weights write '
  'them (Yu et al. 2024).'
)
_HARM = 1.0  # nats per token: broken
_HARMLESS = 0.05  # of the harm that zero does
_NAMES = {
  'zero': 'set to zero',
  'mean': 'set to the mean',
  'random_channels': 'random channels to zero',
  'other_token': 'ordinary token to zero',
  'super_weight': 'super weight removed',
  'super_neuron': 'its whole neuron to zero',
  'super_weights': 'all super weights removed',
  'super_neurons': 'all their neurons to zero',
  'random_weights': 'random large weights removed',
}


def section(found: interventions_lib.Interventions) -> spec.Section:
  """Describes the indispensable-bias test.

  Args:
    found: of `interventions.run`, tested or not.

  Returns:
    The section.
  """
  return spec.Section(
    name='interventions',
    title='Whether the model needs them',
    claim=_CLAIM,
    verdict=_verdict(found),
    finding=' '.join(_finding(found)),
    control=_control(found),
    figures=_figures(found),
    tables=_tables(found),
    numbers=_numbers(found),
  )


def _verdict(found: interventions_lib.Interventions) -> spec.Verdict:
  if not found.tested:
    return 'not tested'
  zero, mean = _increase(found, 'zero'), _increase(found, 'mean')
  breaks = zero.value >= _HARM and zero.low > 0
  harmless = abs(mean.value) <= _HARMLESS * max(abs(zero.value), _HARM)
  others = [abs(c.increase.value) for c in found.conditions if c.control]
  specific = max(others) <= _HARMLESS * max(abs(zero.value), _HARM)
  if breaks and harmless and specific:
    return 'holds'
  return 'in part' if zero.low > 0 and specific else 'does not hold'


def _increase(
  found: interventions_lib.Interventions, name: str
) -> bootstrap.Estimate:
  """Returns the increase of a condition that was run."""
  condition = found.named(name)
  assert condition is not None, name
  return condition.increase


def _said(found: interventions_lib.Interventions, name: str) -> str:
  return prose.interval(_increase(found, name))


def _finding(found: interventions_lib.Interventions) -> list[str]:
  if not found.tested:
    return [found.reason]
  said = [
    f'On {found.tokens} tokens of {found.texts} texts the stock model loses '
    f'{found.stock_loss:.3f} nats per token. With the massive activations at the '
    f'output of layer {found.layer} at zero it loses {_said(found, "zero")} '
    f'more, at their mean {_said(found, "mean")}.'
  ]
  if found.super_weights:
    layer, neuron, channel = found.super_weights[0]
    said.append(
      f'Without the super weight (layer {layer}, neuron {neuron}, channel '
      f'{channel}) it loses {_said(found, "super_weight")} more, without that '
      f'whole neuron {_said(found, "super_neuron")}.'
    )
    if found.named('super_weights'):
      said.append(
        f'Without all {len(found.super_weights)} super weights it loses '
        f'{_said(found, "super_weights")} more, without all their neurons '
        f'{_said(found, "super_neurons")}.'
      )
  if found.texts < 5:
    said.append(f'Only {found.texts} texts: the intervals say little.')
  return said


def _control(found: interventions_lib.Interventions) -> str:
  if not found.tested:
    return 'Nothing was edited, so there is nothing to compare with.'
  return ' '.join(
    f'{c.edited[0].upper()}{c.edited[1:]}: {_said(found, c.name)}.'
    for c in found.conditions
    if c.control
  )


def _chart(
  title: str, conditions: Sequence[interventions_lib.Condition]
) -> spec.Chart:
  """Draws what some conditions add to the loss."""
  series = []
  for label, role, control in (
    ('massive activations', 'massive', False),
    ('control', 'control', True),
  ):
    places = [i for i, c in enumerate(conditions) if c.control == control]
    rows = np.array([conditions[i].increase for i in places]).reshape(-1, 3)
    series.append(
      spec.Series(
        label=label,
        x=np.array(places, float),
        y=rows[:, 0],
        low=rows[:, 1],
        high=rows[:, 2],
        role=role,
        style='bars',
        hover=[conditions[i].edited for i in places],
      )
    )
  return spec.Chart(
    title=title,
    series=tuple(series),
    x_label='',
    y_label='nats per token',
    categories=tuple(_NAMES[c.name] for c in conditions),
    # No two stand at one place.
    bars='overlaid',
  )


def _figures(
  found: interventions_lib.Interventions,
) -> tuple[spec.Figure, ...]:
  if not found.tested:
    return ()
  small = [c for c in found.conditions if c.control or c.name == 'mean']
  return (
    spec.Figure(
      name='interventions-loss',
      title='Loss without the massive activations',
      caption=(
        f'Increase of the loss over the stock model on {found.tokens} tokens of '
        f'{found.texts} texts; whiskers are 95 % bootstrap intervals over texts. '
        'Green: controls. Second: what is too small to see in the first, on a '
        'scale of its own.'
      ),
      alt='; '.join(
        f'{_NAMES[c.name]} {c.increase.value:+.3g} nats per token'
        for c in found.conditions
      )
      + '.',
      panels=(
        _chart('loss added', found.conditions),
        _chart('the mean and the controls, enlarged', small),
      ),
    ),
  )


def _tables(
  found: interventions_lib.Interventions,
) -> tuple[spec.Table, ...]:
  if not found.tested:
    return ()
  return (
    spec.Table(
      caption='Loss in nats per token, and the same likeliest next token',
      header=('intervention', 'loss', 'increase (95 %)', 'same top token'),
      rows=(
        ('none', f'{found.stock_loss:.4f}', '', ''),
        *(
          (
            c.edited,
            f'{c.loss:.4f}',
            _said(found, c.name),
            f'{c.agreement:.1%}',
          )
          for c in found.conditions
        ),
      ),
    ),
  )


def _numbers(found: interventions_lib.Interventions) -> dict:
  values = {
    name: value for name, value in vars(found).items() if name != 'values_XK'
  }
  values_K = found.values_XK
  values['values'] = {
    'mean': values_K.mean(axis=0) if values_K.size else [],
    'std': values_K.std(axis=0) if values_K.size else [],
  }
  return me_report.plain(values)
