"""The search for a mask, on a model in which the best one is planted."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.analysis import next_token
from me_jax.mitigation import scoring
from me_jax.mitigation import tune
from me_jax.mitigation import wemask
from tests.support import planted

REPORT = planted.report()
SPIKE, WRITTEN = 9, (20, 21)
WRONG, RIGHT = 49, 30
HARMFUL, USEFUL = 6, 7


@pytest.fixture(scope='module', name='stock')
def _stock():
  """What layer 6 reads of the massive token misleads, layer 7's informs."""
  model, params = planted.build([planted.Plant(4, 7, SPIKE, 5000.0)])
  params = jax.tree.map(np.array, params)
  layers = params['layers']
  # The spike is what `weight` selects first.
  layers['input_layernorm']['weight'][:, SPIKE] = 1.5
  attention = layers['self_attn']
  for layer, channel in zip((HARMFUL, USEFUL), WRITTEN):
    attention['v_proj']['kernel'][layer, SPIKE, 0] = 1.0
    attention['o_proj']['kernel'][layer, 0, channel] = 4.0
  head = params['lm_head']['kernel']
  head[WRITTEN[0]], head[WRITTEN[1]] = 0.0, 0.0
  head[WRITTEN[0], WRONG], head[WRITTEN[1], RIGHT] = 1.0, 0.5
  params['embed_tokens']['embedding'][:, WRITTEN] = 0.0
  return model, jax.tree.map(jnp.asarray, params)


@pytest.fixture(scope='module', name='calibration')
def _calibration():
  """Texts in which every other token is `RIGHT` and none is `WRONG`."""
  random = np.random.default_rng(3)

  def texts(count):
    found = random.integers(2, WRONG, (count, 20))
    found[:, ::2] = RIGHT
    return [([planted.BOS, *row.tolist()], 0) for row in found]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(scoring, '_PASS', 256)
    return {
      kind: scoring.lay_out(texts(count), bos_token_id=planted.BOS)
      for kind, count in ((tune.CHATS, 12), (tune.PLAIN, 9))
    }


def spike_in(model, *layers, strength=1.0):
  """Masks the spike alone in some layers."""
  return wemask.resolve(model, REPORT, k=1, layers=layers, strength=strength)


def test_the_grid_has_each_setting_once():
  model, _ = planted.build([])
  three = ('weight', 'me_weight', 'random')
  found = tune.grid(model, REPORT, selections=three)
  # Of all channels there are but two layers × two strengths.
  assert len(found) == 3 * 2 * 3 * 2 + 4 == len(set(found.values()))
  recipe = found['me_weight 0.25 × 0.5, next']
  assert recipe == wemask.resolve(
    model, REPORT, select='me_weight', rate=0.25, strength=0.5, layers='next'
  )
  # One layer is left after this span: `next` is `after`.
  late = planted.report(6, (5, 6))
  assert len(tune.grid(model, late, selections=three)) == 3 * 3 * 2 + 2
  assert len(tune.grid(model, late, selections=three, rates=(0,))) == 2
  lists = tune.grid(
    model, REPORT, selections=('weight',), rates=(0.5,), strengths=(1,),
    layers=([5], [6, 7], 'after'), tokens='massive', seed=3,
  )  # fmt: skip
  assert list(lists) == [
    'weight 0.5 × 1, layers 5',
    'weight 0.5 × 1, layers 6+7',
    'weight 0.5 × 1, after',
  ]
  assert {r.layers for r in lists.values()} == {(5,), (6, 7), (5, 6, 7)}
  assert {(r.tokens, r.seed) for r in lists.values()} == {('massive', 3)}


def test_a_sweep_finds_the_planted_best(stock, calibration):
  model, params = stock
  recipes = {
    f'{layers} × {strength:g}': spike_in(model, *layers, strength=strength)
    for layers in ((0,), (5,), (6,), (7,), (6, 7))
    for strength in (0.5, 1.0)
  }
  told = []
  trials = tune.sweep(
    model, params, recipes, calibration,
    progress=lambda *step: told.append(step),
  )  # fmt: skip
  assert told == [(i, 10) for i in range(1, 11)]
  assert [(t.name, t.recipe) for t in trials] == list(recipes.items())
  change = {trial.name: trial.change for trial in trials}
  for kind, texts in calibration.items():
    assert change['(6,) × 1'][kind] < change['(6,) × 0.5'][kind] < -0.05
    assert change['(7,) × 1'][kind] > change['(7,) × 0.5'][kind] > 0.05
    # Exactly the difference of two means.
    means = [
      texts.sums(scoring.losses(model, tree, texts)).sum()
      / texts.tokens_X.sum()
      for tree in (
        wemask.ones(model, params),
        wemask.apply(model, params, recipes['(6,) × 1']),
      )
    ]
    assert change['(6,) × 1'][kind] == means[1] - means[0]
  assert tune.best(trials, 0.0).name == '(6,) × 1'
  harmful = [t for t in trials if t.recipe.layers == (7,)]
  assert tune.best(harmful, 1.0) is None


def test_forty_settings_are_one_compile(stock, calibration):
  model, params = stock
  recipes = tune.grid(
    model, REPORT, selections=('weight', 'me_weight', 'weight_bottom')
  )
  assert len(recipes) == 40
  before = next_token.score._cache_size()
  trials = tune.sweep(model, params, recipes, calibration)
  assert next_token.score._cache_size() - before <= 1
  assert len(trials) == 40
  assert all(np.isfinite(list(t.change.values())).all() for t in trials)


def test_strengths_follow_the_gradient(stock, calibration):
  model, params = stock
  recipe = spike_in(model, 0, HARMFUL, USEFUL, strength=0.9)
  told = []
  found = tune.strengths(
    model, params, recipe, calibration, steps=12,
    progress=lambda *step: told.append(step),
  )  # fmt: skip
  assert told == [(i, 12) for i in range(1, 13)]
  assert dataclasses.replace(found, strength=recipe.strength) == recipe
  strength = dict(zip(found.layers, found.strength))
  assert strength[HARMFUL] > 0.6
  assert strength[USEFUL] < 0.03
  assert all(0 <= value <= 1 for value in found.strength)
  # The starting point does not matter, nor does an earlier strength.
  again = tune.strengths(
    model, params, dataclasses.replace(recipe, strength=(0.1, 0.2, 0.3)),
    calibration, steps=12,
  )  # fmt: skip
  assert again == found
  trials = tune.sweep(model, params, tune.scalings(found), calibration)
  assert tune.best(trials, 0.0).change[tune.CHATS] < -0.05


def test_scalings_are_weaker_and_stronger():
  model, _ = planted.build([])
  recipe = wemask.resolve(model, REPORT, strength=[0.2, 0.5, 1.0])
  found = tune.scalings(recipe)
  assert found['weight, by layer × 1'] == recipe
  assert found['weight, by layer × 0.5'].strength == (0.1, 0.25, 0.5)
  assert found['weight, by layer × 1.5'].strength == pytest.approx(
    (0.3, 0.75, 1.0)
  )
  full = wemask.resolve(model, REPORT)
  assert [r.strength[0] for r in tune.scalings(full).values()] == [
    0.5, 0.75, 1.0,
  ]  # fmt: skip


def trial(name, **change):
  return tune.Trial(name, None, change)


def test_the_best_is_within_the_budget():
  trials = [
    trial('dear', chats=-0.5, plain=0.02),
    trial('good', chats=-0.3, plain=0.005),
    trial('same', chats=-0.3, plain=0.0),
    trial('worse', chats=0.1, plain=-0.9),
    trial('broken', chats=float('nan'), plain=float('nan')),
  ]
  for order in (trials, trials[::-1], trials[2:] + trials[:2]):
    assert tune.best(order, 0.03).name == 'dear'
    assert tune.best(order, 0.004).name == 'same'
    assert tune.best(order, -0.5) is None
  assert tune.best(trials, 0.005).name == 'good'
  assert tune.best([], 1.0) is None
  assert tune.best([trial('stock', chats=0.0, plain=0.0)], 1.0) is None


def test_one_kind_of_text_decides_alone():
  plain = [trial('a', plain=-0.1), trial('b', plain=-0.2), trial('c', plain=1)]
  assert tune.best(plain, 0.0).name == 'b'
  chats = [trial('a', chats=-0.1), trial('b', chats=-0.2)]
  assert tune.best(chats, 0.0).name == 'b'
