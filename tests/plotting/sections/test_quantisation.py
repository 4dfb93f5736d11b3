"""The section on rounding says what was measured, by its written thresholds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from me_jax.analysis import bootstrap
from me_jax.evaluation import conditions
from me_jax.evaluation import quantisation as quantisation_lib
from me_jax.evaluation import rounding
from me_jax.plotting import static
from me_jax.plotting.sections import quantisation

LAYERS, ME, STOCK = 6, 2, 'stock'
FAMILIES = ('activations', 'stream')


def sure(value):
  return bootstrap.Estimate(value, value - 0.01, value + 0.01)


def made(
  cost=0.5, massive=-0.45, ordinary=0.0, relief=0.0, me_layer=ME,
  massive_tokens=8, only=FAMILIES, masked=True, stream_relief=None, broken=(),
):  # fmt: skip
  """A result in which `only` these families cost something."""
  plan = conditions.all_of(LAYERS, me_layer)
  names = [c.name for c in plan]
  variants = (STOCK, 'masked') if masked else (STOCK,)
  cost_of = {name: sure(0.001) for name in names[1:]}
  cost_of |= {name: sure(cost) for name in only}
  spared = {}
  for family in FAMILIES:
    spared[f'{family}, massive exempt'] = sure(massive)
    spared[f'{family}, ordinary exempt'] = sure(ordinary)
  relief_of = {name: sure(relief) for name in names[1:]}
  if stream_relief is not None:
    relief_of['stream'] = sure(stream_relief)
  error = {
    c.name: {site: np.linspace(0.01, 0.9, LAYERS) for site in c.sites}
    for c in plan
    if c.sites
  }
  both = np.stack([np.full(LAYERS, 5000.0), np.full(LAYERS, 7.0)])
  return quantisation_lib.Quantisation(
    bits=8,
    guessing=11.0,
    me_layer=me_layer,
    conditions=plan,
    variants=variants,
    corpora={
      name: quantisation_lib.Corpus(8, 900, massive_tokens, massive_tokens)
      for name in ('chats', 'prose')
    },
    loss={
      c: {
        v: dict.fromkeys(names, 2.0) | dict.fromkeys(broken, 12.0)
        for v in variants
      }
      for c in CORPORA
    },
    cost={c: dict.fromkeys(variants, cost_of) for c in CORPORA},
    relief={c: dict.fromkeys(variants[1:], relief_of) for c in CORPORA},
    spared={c: dict.fromkeys(variants, spared) for c in CORPORA},
    error=dict.fromkeys(variants, error),
    peak=dict.fromkeys(variants, dict.fromkeys(rounding.SITES, both)),
    weight_error={},
  )


CORPORA = ('chats', 'prose')


@pytest.mark.parametrize(
  ('fields', 'verdicts'),
  [
    (dict(relief=-0.2), ('holds', 'holds')),
    # The massive tokens are the cause, and the mask does not help.
    (dict(), ('holds', 'does not hold')),
    (dict(masked=False), ('holds', 'not tested')),
    # It helps one family alone.
    (dict(relief=-0.2, stream_relief=0.0), ('holds', 'in part')),
    # Models worse than guessing say nothing of each other.
    (
      dict(relief=-0.2, stream_relief=0.0, broken=['stream']),
      ('holds', 'holds'),
    ),
    (dict(relief=-0.2, broken=FAMILIES), ('holds', 'not tested')),
    # It helps, and the massive tokens are not the cause.
    (dict(massive=-0.1, relief=-0.2), ('does not hold', 'holds')),
    # Ordinary tokens are as much to blame.
    (dict(ordinary=-0.45), ('does not hold', 'does not hold')),
    (dict(massive=-0.1), ('does not hold', 'does not hold')),
    (dict(massive=-0.1, relief=-0.02), ('does not hold', 'does not hold')),
    # What is not sure is not counted.
    (
      dict(massive=-0.01, relief=-0.009, cost=0.06),
      ('does not hold', 'does not hold'),
    ),
    # Nothing costs anything, or there is nobody to blame.
    (dict(cost=0.04, massive=-0.04), ('not tested', 'not tested')),
    (dict(massive_tokens=0), ('not tested', 'not tested')),
    (dict(only=('stream',), relief=-0.2), ('holds', 'holds')),
  ],
)
def test_the_verdicts_follow_the_thresholds(fields, verdicts):
  sections = quantisation.sections(made(**fields))
  assert tuple(one.verdict for one in sections) == verdicts


@pytest.mark.parametrize('me_layer', [ME, None])
@pytest.mark.parametrize('masked', [True, False])
def test_a_section_is_whole(me_layer, masked):
  section, relief = quantisation.sections(
    made(me_layer=me_layer, masked=masked)
  )
  assert section.finding and section.control
  assert relief.finding and relief.control
  for figure in section.figures:
    static.draw(figure)
    assert figure.alt and figure.caption
  for table in section.tables:
    assert all(len(row) == len(table.header) for row in table.rows)
  json.dumps([section.numbers, relief.numbers], allow_nan=False)
  assert ('layer 2' in section.finding) == (me_layer is not None)


def test_words_hold_the_numbers():
  section, relief = quantisation.sections(made(relief=0.123))
  assert '+0.500 (+0.490 to +0.510) on chats' in section.finding
  assert 'In 4 of 4 cases' in section.finding
  assert "'stream' by +0.123 (+0.113 to +0.133) on chats" in relief.finding
  assert 'in 0 of 4 cases' in relief.finding
  assert '-0.450 (-0.460 to -0.440)' in section.control
  rows = {row[0]: row[1:] for row in section.tables[0].rows}
  assert rows['nothing (loss)'] == ('2.0000', '2.0000', '')
  assert rows['the residual stream, a scale a tensor'] == (
    '+0.500 (+0.490 to +0.510)',
    '+0.500 (+0.490 to +0.510)',
    '+0.123 (+0.113 to +0.133)',
  )


def test_models_that_broke_are_named_and_not_compared():
  _, relief = quantisation.sections(made(broken=['stream']))
  assert "Not counted: 'stream' on chats, 'stream' on prose" in relief.finding
  assert "'stream' by" not in relief.finding
  assert 'in 0 of 2 cases' in relief.finding


def test_without_massive_tokens_nothing_is_blamed():
  section, relief = quantisation.sections(made(massive_tokens=0))
  assert relief.finding.startswith('There is nothing to relieve')
  assert section.finding == (
    'The texts hold no massive activations to be blamed.'
  )
