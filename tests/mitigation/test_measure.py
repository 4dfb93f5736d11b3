"""What a mask changes: against NumPy, and beside the right controls."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import me_jax
from me_jax.mitigation import measure
from me_jax.mitigation import scoring
from me_jax.mitigation import wemask
from me_jax.models import batch as batch_lib
from me_jax.models import decoder
from tests.support import planted

LAYERS, WIDTH = planted.LAYERS, planted.WIDTH
REPORT = planted.report()
SPIKE = 9
# Two of them are chats: an answer follows so many tokens.
TEXTS = list(
  zip(
    planted.texts(3, length=30) + planted.texts(3, length=9, seed=4),
    (0, 12, 0, 5, 0, 0),
  )
)
_apply = jax.jit(decoder.Decoder.apply, static_argnums=0)


@pytest.fixture(scope='module', name='stock')
def _stock():
  """A model with a sink that the mask of one channel takes away."""
  model, params = planted.build([planted.Plant(4, 7, SPIKE, 5000.0)])
  params = planted.with_a_sink(model, params, layer=5, head=2, channel=SPIKE)
  # The head that has the same keys asks for nothing.
  query = params['layers']['self_attn']['q_proj']
  query['kernel'] = query['kernel'].at[5, :, 3 * 16 :].set(0.0)
  # Ordinary tokens have a little of it: more than a massive one that is masked.
  embedding = params['embed_tokens']['embedding']
  params['embed_tokens']['embedding'] = embedding.at[:, SPIKE].set(1.0)
  params['lm_head']['kernel'] = params['lm_head']['kernel'] * 8
  norm = params['layers']['input_layernorm']
  norm['weight'] = norm['weight'].at[:, SPIKE].set(1.5)
  value = params['layers']['self_attn']['v_proj']
  value['kernel'] = value['kernel'] * 8
  return model, params


@pytest.fixture(scope='module', name='texts')
def _texts():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(scoring, '_PASS', 128)
    return scoring.lay_out(TEXTS, bos_token_id=planted.BOS)


@pytest.fixture(scope='module', name='against')
def _against(stock, texts):
  return measure.reference(*stock, texts, chat=True)


def log_probs(model, params):
  """Returns log probabilities of each text in a row of its own, float64."""
  batch = batch_lib.make_batch([ids for ids, _ in TEXTS])
  logits = _apply(model, {'params': params}, *batch).logits
  logits = np.asarray(logits, np.float64)
  top = logits.max(axis=-1, keepdims=True)
  return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def test_change_against_numpy(stock, against):
  model, params = stock
  masked = wemask.wemask(model, params, REPORT, strength=0.7)
  stock_XTV, masked_XTV = (
    log_probs(model, x) for x in (wemask.ones(model, params), masked)
  )
  loss, answer, kl, before, counts = [], [], [], [], []
  for x, (ids, start) in enumerate(TEXTS):
    at = np.arange(len(ids) - 1), np.array(ids[1:])
    a_T, b_T = (-y[x][at] for y in (stock_XTV, masked_XTV))
    said_T = np.arange(1, len(ids)) >= start
    y, z = stock_XTV[x, : len(ids) - 1], masked_XTV[x, : len(ids) - 1]
    loss.append((b_T - a_T).sum())
    answer.append((b_T - a_T)[said_T].sum())
    kl.append((np.exp(y) * (y - z)).sum())
    before.append((a_T.sum(), a_T[said_T].sum()))
    counts.append((len(a_T), said_T.sum()))
  tokens, answers = np.sum(counts, axis=0)
  change, found = measure.change(model, params, masked, against)
  expected = sum(loss) / tokens, sum(answer) / answers, sum(kl) / tokens
  # The mask does something, or being equal would say little.
  assert min(map(abs, expected)) > 1e-3
  for estimate, value in zip(change, expected):
    assert estimate.value == pytest.approx(value, rel=1e-3)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.low < estimate.high
  assert change.loss.value != pytest.approx(change.answer.value, rel=0.01)
  assert (found.chat, found.texts) == (True, 6)
  assert (found.tokens, tokens) == (117, 117)
  sums = np.sum(before, axis=0)
  assert found.loss == pytest.approx(sums[0] / tokens, rel=1e-5)
  assert found.answer == pytest.approx(sums[1] / answers, rel=1e-5)
  other, _ = measure.change(model, params, masked, against, seed=1)
  assert other.loss.value == change.loss.value
  assert other.loss.low != change.loss.low


def test_masks_are_compared_by_text(stock, against):
  model, params = stock
  one, other = (
    measure.compare(
      model, params, wemask.wemask(model, params, REPORT, strength=x), against
    )
    for x in (0.7, 0.3)
  )
  found = measure.less(one, other, against)
  changes = [measure.summary(x, against)[0].loss for x in (one, other)]
  assert found.value == pytest.approx(changes[0].value - changes[1].value)
  # Texts move together, so their difference is surer than the two apart.
  width = found.high - found.low
  assert 0 < width < sum(x.high - x.low for x in changes)
  same = measure.less(one, one, against)
  assert same == (0.0, 0.0, 0.0)


def test_no_mask_no_change(stock, against):
  model, params = stock
  ones = wemask.ones(model, params)
  empty = wemask.wemask(model, params, REPORT, rate=0.0)
  told = []
  for tree in (ones, empty):
    change, _ = measure.change(
      model, params, tree, against, progress=lambda *x: told.append(x)
    )
    assert [tuple(estimate) for estimate in change] == [(0.0, 0.0, 0.0)] * 3
  rows, count = against.texts.rows, len(against.texts.counted_BT)
  assert told[-1] == (count, count) and told[0] == (rows, count)


ALL = {
  'random channels', 'smallest |γ|', 'all channels', 'token 5 instead',
  'layers before the span',
}  # fmt: skip


def test_controls_differ_from_the_mask_in_one_thing():
  model, _ = planted.build([])
  recipe = wemask.resolve(model, REPORT, strength=[0.2, 0.5, 1.0], seed=3)
  found = measure.controls(model, recipe, REPORT)
  assert found.keys() == ALL
  assert recipe not in found.values() and len(set(found.values())) == 5
  changed = {
    name: {
      key: getattr(control, key)
      for key in recipe.to_json()
      if getattr(control, key) != getattr(recipe, key)
    }
    for name, control in found.items()
  }
  assert changed == {
    'random channels': {'select': 'random'},
    'smallest |γ|': {'select': 'weight_bottom'},
    'all channels': {'count': WIDTH},
    'token 5 instead': {'tokens': (5,)},
    'layers before the span': {'layers': (1, 2, 3)},
  }


@pytest.mark.parametrize(
  ('arguments', 'lacking'),
  [
    (dict(select='random'), {'random channels'}),
    (dict(select='weight_bottom'), {'smallest |γ|'}),
    # Such a choice is made by looking at the first token.
    (dict(select='activation'), {'token 5 instead'}),
    (dict(tokens=[5]), {'token 5 instead'}),
    # Before the span no token has been found yet.
    (dict(tokens='massive'), {'layers before the span'}),
    # All channels: random ones would be the same mask.
    (dict(rate=1.0), {'random channels', 'smallest |γ|', 'all channels'}),
    (dict(layers=range(8)), {'layers before the span'}),
  ],
)
def test_controls_that_cannot_be_are_left_out(arguments, lacking):
  model, params = planted.build([])
  recipe = wemask.resolve(model, REPORT, **arguments)
  found = measure.controls(model, recipe, REPORT)
  assert found.keys() == ALL - lacking
  assert recipe not in found.values()
  for control in found.values():
    if recipe.select != 'activation':
      wemask.apply(model, params, control)
    assert len(control.strength) == len(control.layers)


def test_controls_where_little_comes_before_or_nothing_is_massive():
  model, _ = planted.build([])
  early = planted.report(2, (1, 2))
  recipe = wemask.resolve(model, early, strength=[0.1, 0.2, 0.3, 0.4, 0.5])
  before = measure.controls(model, recipe, early)['layers before the span']
  assert (before.layers, before.strength) == ((0,), (0.5,))
  none = planted.report(None, (), 'none')
  recipe = wemask.resolve(model, none, layers=[4])
  assert measure.controls(model, recipe, none).keys() == ALL - {
    'layers before the span'
  }
  post, _ = planted.build([], norm_placement='post')
  recipe = wemask.resolve(post, REPORT, select='random')
  assert 'smallest |γ|' not in measure.controls(post, recipe, REPORT)


def test_internals_are_averages_after_the_span(stock):
  model, params = stock
  batch = planted.batch(count=4)
  trees = (
    wemask.ones(model, params),
    wemask.wemask(model, params, REPORT, k=1, layers='next'),
  )
  before, after = (
    measure.internals(model, tree, batch, REPORT) for tree in trees
  )
  seen = me_jax.diagnose(model, trees[0], batch)
  attention_LN, rate_LN = seen.sinks.attention, seen.sinks.rate
  assert before.attention == pytest.approx(attention_LN[5:].mean())
  assert before.sink_rate == pytest.approx(rate_LN[5:].mean())
  assert before.effective_rank == pytest.approx(
    seen.diversity.effective_rank[5:, 0].mean()
  )
  assert before.attention_by_layer == pytest.approx(attention_LN.mean(axis=1))
  assert before.sink_rate_by_layer == pytest.approx(rate_LN.mean(axis=1))
  # The mask takes one head's sink of one layer.
  assert before.massive_texts == after.massive_texts == 4
  lost_L = before.attention_by_layer - after.attention_by_layer
  assert lost_L[5] > 0.2 and np.abs(lost_L[:5]).max() < 1e-6
  assert after.attention < before.attention
  lost_L = before.sink_rate_by_layer - after.sink_rate_by_layer
  assert lost_L[5] == pytest.approx(0.25)


def test_results_become_json():
  recipe = wemask.resolve(planted.build([])[0], REPORT)
  loss = measure.bootstrap.Estimate(1.0, 0.5, 1.5)
  content = {
    'recipe': recipe,
    'change': measure.Change(loss, loss, loss),
    'stock': measure.Stock(chat=True, texts=1, tokens=2, loss=0.5, answer=0.5),
    'arrays': (np.arange(3), [np.float64(0.5), np.int64(2), np.bool_(True)]),
  }
  assert json.loads(json.dumps(measure.to_json(content))) == {
    'recipe': recipe.to_json(),
    'change': {
      name: {'value': 1.0, 'low': 0.5, 'high': 1.5}
      for name in ('loss', 'answer', 'kl')
    },
    'stock': dataclasses.asdict(content['stock']),
    'arrays': [[0, 1, 2], [0.5, 2, True]],
  }
