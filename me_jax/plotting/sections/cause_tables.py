"""Which numbers stand behind the cause? As tables and as plain values.

Letters: G groups (massive token, ordinary tokens), S statistics, I neurons, E
numbers of top channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from me_jax.analysis import attribution as attribution_lib
from me_jax.analysis import factorial as factorial_lib
from me_jax.analysis import me_report
from me_jax.plotting import prose
from me_jax.plotting import spec

_MASSIVE, _ORDINARY = attribution_lib.MASSIVE, attribution_lib.ORDINARY
_MEAN = attribution_lib.MEAN


def tables(
  attribution: attribution_lib.Attribution, factorial: factorial_lib.Factorial
) -> tuple[spec.Table, ...]:
  """Returns the experiment's cells, the norm's doses, the writing neurons."""
  names = {
    'me': 'emergence span, writing neurons',
    'matched': 'same layers, next largest neurons',
    'random': 'same layers, random neurons',
    'layer': 'layer',
  }
  rows, seen = [], set()
  for unit in factorial.units:
    # One random draw is as good as another in a table; all are in the JSON.
    if unit.kind == 'random' and 'random' in seen:
      continue
    seen.add(unit.kind)
    place = f' {unit.layers[0]}' if unit.kind == 'layer' else ''
    rows.append(
      (
        names[unit.kind] + place,
        *(f'{y:.3f}' for y in unit.peak_ABX.mean(axis=-1).ravel()[1:]),
        *(prose.interval(effect) for effect in unit.raw),
        *(f'{effect.value:+.2f}' for effect in unit.log),
      )
    )
  table = attribution.dominating
  neurons = [
    (
      f'{table.layer_I[i]}',
      f'{table.index_I[i]}',
      *(
        f'{values[_MASSIVE, _MEAN, i]:.3g} / {values[_ORDINARY, _MEAN, i]:.3g}'
        for values in (
          table.gate_GSI, table.up_GSI, table.gate_cos_GSI, table.up_cos_GSI
        )
      ),
      f'{table.gate_up_cos_I[i]:.2f}',
      f'{table.gate_size_I[i]:.1f}, {table.up_size_I[i]:.1f}, '
      f'{table.down_size_I[i]:.1f}',
    )
    for i in range(len(table.index_I))
  ]  # fmt: skip
  changes = {
    'halved': 'all channels halved',
    'largest': 'the largest weights at 0',
    'smallest': 'the smallest weights at 0',
    'random': 'random channels at 0',
  }
  found = [
    spec.Table(
      caption=(
        'The factorial experiment: what is left of the spike, main effects and '
        'interaction (95 % intervals), the same on a logarithmic scale'
      ),
      header=(
        'where', 'neurons', 'norm', 'both', 'effect of the norm',
        'effect of the neurons', 'interaction', 'norm (ln)', 'neurons (ln)',
        'interaction (ln)',
      ),
      rows=tuple(rows),
    ),
    spec.Table(
      caption='Other changes of the norm in the emergence span',
      header=('change', 'channels', 'spike left'),
      rows=tuple(
        (changes[d.change], f'{d.share:.0%}',
         f'{d.left.value:.3f} ({d.left.low:.3f} to {d.left.high:.3f})')
        for d in factorial.doses
      ),
    ),
    spec.Table(
      caption='The neurons that write, massive token / ordinary tokens',
      header=(
        'layer', 'neuron', 'gate', 'up', 'cosine gate', 'cosine up',
        'cosine of gate with up', 'lengths of gate, up, down over the median',
      ),
      rows=tuple(neurons),
    ),
  ]  # fmt: skip
  return tuple(table for table in found if table.rows)


def numbers(
  attribution: attribution_lib.Attribution, factorial: factorial_lib.Factorial
) -> dict[str, Any]:
  """Returns everything measured as plain values."""

  def groups(values: np.ndarray) -> dict:
    return {
      group: dict(zip(('mean', 'low', 'high'), values_S))
      for group, values_S in zip(('massive', 'ordinary'), values)
    }

  def table(found: attribution_lib.NeuronTable) -> dict:
    return {
      name.rsplit('_', 1)[0]: groups(value) if name.endswith('GSI') else value
      for name, value in vars(found).items()
    }

  energy = {
    f'top_{count}': groups(attribution.energy_GSLE[..., i])
    for i, count in enumerate((1, 5, 10))
  }
  return me_report.plain(
    {
      'attribution': {
        'massive': attribution.massive,
        'prefixes': attribution.prefixes,
        'ordinary': attribution.ordinary,
        'norm': attribution.norm,
        'attn_norm': attribution.attn_norm,
        'scale': groups(attribution.scale_GSL),
        'gain': groups(attribution.gain_GSL),
        'energy': energy,
        'ffn_gain': groups(attribution.ffn_gain_GSL),
        'alignment': groups(attribution.alignment_GSL),
        'channels': attribution.channels_K,
        'gamma_attn': attribution.gamma_attn_LK,
        'gamma_ffn': attribution.gamma_ffn_LK,
        'attn_in': groups(attribution.attn_in_GSLK),
        'ffn_in': groups(attribution.ffn_in_GSLK),
        'dominating': table(attribution.dominating),
        'random': table(attribution.random),
        'aligned': table(attribution.aligned),
      },
      'factorial': {
        'tested': factorial.tested,
        'reason': factorial.reason,
        'norm': factorial.norm,
        'after': factorial.after,
        'neutral': factorial.neutral,
        'prefixes': factorial.prefixes,
        'left_out': factorial.left_out,
        'units': [
          {
            'kind': unit.kind,
            'layers': unit.layers,
            'neurons': unit.neurons,
            'left': unit.peak_ABX.mean(axis=-1),
            'left_at_end': unit.end_ABX.mean(axis=-1),
            'raw': unit.raw,
            'log': unit.log,
          }
          for unit in factorial.units
        ],
        'doses': factorial.doses,
      },
    }
  )
