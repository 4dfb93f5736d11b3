"""Massive activations and super weights taken away, against doing it by hand."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.analysis import interventions
from me_jax.analysis import next_token
from me_jax.analysis import super_weights
from me_jax.models import batch as batch_lib
from me_jax.models import sites
from tests.support import planted
from tests.support.planted import Plant

BOS, SPIKE = planted.BOS, 9


@dataclasses.dataclass(frozen=True)
class Put:
  """Sets one channel of BOS in one layer's output, by what is compiled in."""

  layer: int
  value: float
  site: str = 'resid_post'

  def __call__(self, value, context):
    is_bos = context.operands['tokens'] == BOS
    edited = value.at[..., SPIKE].set(
      jnp.where(is_bos, self.value, value[..., SPIKE])
    )
    return jnp.where(context.layer == self.layer, edited, value)


def sensitive(plants):
  """A planted model whose later layers look at the spike, and texts it likes.

  The texts go on as the model would, so that whatever disturbs it costs.
  """
  model, params = planted.build(plants)
  random = np.random.default_rng(8)
  attn = params['layers']['self_attn']
  for name in ('q_proj', 'k_proj', 'v_proj', 'o_proj'):
    kernel = attn[name]['kernel']
    noise = random.normal(0, 0.2, kernel.shape).astype(np.float32)
    attn[name]['kernel'] = kernel.at[5:].add(noise[5:])
  params['lm_head']['kernel'] = params['lm_head']['kernel'] * 10
  starts = [[BOS, 3], [BOS, 8], [BOS, 20], [BOS, 31], [5, BOS, 7], [9, BOS, 6]]
  tokens = np.zeros((len(starts), 16), np.int32)
  for row, start in zip(tokens, starts):
    row[: len(start)] = start
  run = jax.jit(lambda t: model.apply({'params': params}, t).logits)
  for t in range(2, 16):
    best = np.asarray(run(tokens))[:, t - 1].argmax(axis=-1)
    tokens[:, t] = np.where(tokens[:, t] == 0, best, tokens[:, t])
  return model, params, tokens.tolist()


@pytest.fixture(scope='module', name='made')
def _made():
  model, params, texts = sensitive(
    [Plant(4, 7, SPIKE, 3500.0), Plant(4, 2, SPIKE, 1500.0)]
  )
  batch = batch_lib.make_batch(texts)
  report = me_jax.find_me_layer(model, params, batch)
  assert report.layer == 4 and report.channels[0].index == SPIKE
  return model, params, batch, report


@pytest.fixture(scope='module', name='found')
def _found(made):
  return interventions.run(*made)


def loss_by_hand(model, params, batch, edit=None):
  """Nats per token in float64, a text a row; and how many tokens."""
  used = sites.Sites(edits=(edit,) if edit else ())
  with jax.default_matmul_precision('highest'):
    logits = jax.jit(model.clone(sites=used).apply)(
      {'params': params}, *batch, {'tokens': batch.tokens_BT}
    ).logits  # fmt: skip
  logits = np.asarray(logits, np.float64)
  log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  total = count = 0
  for row, (tokens, segments) in enumerate(zip(*batch)):
    for t, following in enumerate(tokens[1:]):
      if segments[t + 1] and following != BOS:
        total -= log_probs[row, t, following]
        count += 1
  return total / count, count


def test_stock_zero_and_mean_equal_edits_by_hand(made, found):
  model, params, batch, _ = made
  assert found.tested and found.layer == 4 and found.channels == (SPIKE,)
  stock, count = loss_by_hand(model, params, batch)
  assert found.tokens == count
  assert found.texts == 6 and found.left_out == 0
  assert found.stock_loss == pytest.approx(stock, abs=2e-5)
  np.testing.assert_allclose(found.values_XK, 5000, rtol=0.03)
  for name, value in (('zero', 0.0), ('mean', float(found.values_XK.mean()))):
    loss, _ = loss_by_hand(model, params, batch, Put(4, value))
    condition = found.named(name)
    assert condition.loss == pytest.approx(loss, abs=2e-5)
    assert condition.increase.value == pytest.approx(loss - stock, abs=4e-5)
    assert not condition.control


def test_zero_changes_much_mean_and_controls_little(found):
  zero = found.named('zero')
  assert zero.increase.value > 0.5 and zero.agreement < 0.7
  assert 0 < zero.increase.low < zero.increase.value < zero.increase.high
  for name in ('mean', 'random_channels', 'other_token', 'random_weights'):
    condition = found.named(name)
    assert condition.control == (name != 'mean')
    assert abs(condition.increase.value) < 0.05 * zero.increase.value, name
    assert condition.agreement > 0.9


def test_super_weights_equal_entries_removed_by_hand(made, found):
  model, params, batch, _ = made
  assert found.super_weights == ((4, 7, SPIKE), (4, 2, SPIKE))
  before = jax.tree.map(np.asarray, params)
  kernel = params['layers']['mlp']['down_proj']['kernel']
  for name, where in (
    ('super_weight', ([7], SPIKE)),
    ('super_weights', ([7, 2], SPIKE)),
    ('super_neuron', ([7], slice(None))),
    ('super_neurons', ([7, 2], slice(None))),
  ):
    neurons, channels = where
    changed = jax.tree.map(lambda leaf: leaf, params)
    changed['layers']['mlp']['down_proj']['kernel'] = kernel.at[
      4, np.array(neurons), channels
    ].set(0)
    loss, _ = loss_by_hand(model, changed, batch)
    assert found.named(name).loss == pytest.approx(loss, abs=2e-5)
    assert not found.named(name).control
  chex.assert_trees_all_equal(before, params)


def test_other_large_entries_are_drawn(made):
  _, params, _, report = made
  entries = super_weights.find(report)
  random = np.random.default_rng(0)
  drawn = super_weights.like(params, entries, 10, random)
  assert len(set(drawn)) == 20
  for layer, neuron, channel in drawn:
    assert layer == 4 and neuron not in (7, 2) and channel != SPIKE
  # None is as large as those that were planted: the largest others, then.
  kernel = np.abs(np.asarray(params['layers']['mlp']['down_proj']['kernel'][4]))
  others = np.delete(np.delete(kernel, [7, 2], 0), SPIKE, 1)
  assert super_weights.sizes(params, drawn).min() == np.sort(others, None)[-20]
  # Where there are some of the size, they are taken at random.
  ordinary = [(4, 3, 3)]
  kernel = params['layers']['mlp']['down_proj']['kernel'].at[4, 3, 3].set(0.02)
  layers = params['layers']
  mlp = {**layers['mlp'], 'down_proj': {'kernel': kernel}}
  changed = {**params, 'layers': {**layers, 'mlp': mlp}}
  drawn = super_weights.like(changed, ordinary, 400, random)
  size = super_weights.sizes(changed, drawn)
  assert len(drawn) == 400 and (size >= 0.01).all() and (size <= 0.04).all()
  assert not any(n == 3 or channel == 3 for _, n, channel in drawn)
  assert len({neuron for _, neuron, _ in drawn}) > 15, 'from all over'


def test_the_order_and_the_layout_of_texts_do_not_matter(made, found):
  model, params, batch, _ = made
  texts = batch.tokens_BT.tolist()
  doubled = texts[::-1] + texts[:2]
  batch = batch_lib.make_batch(doubled, pack=True, length=40, pad_side='left')
  report = me_jax.find_me_layer(model, params, batch)
  other = interventions.run(model, params, batch, report)
  assert other.texts == found.texts and other.tokens == found.tokens
  for one, two in zip(found.conditions, other.conditions):
    assert one.name == two.name
    assert one.increase == pytest.approx(two.increase, abs=2e-5)


def test_a_bound_takes_whole_texts(made):
  model, params, batch, report = made
  found = interventions.run(model, params, batch, report, max_tokens=32)
  assert found.texts == 2 and found.left_out == 4
  assert found.tokens <= 30
  found = interventions.run(model, params, batch, report, max_tokens=1)
  assert found.texts == 1


def test_every_massive_token_of_a_text_is_edited(made):
  model, params, *_ = made
  batch = batch_lib.make_batch([[BOS, 5, BOS, 6, 7, 8], [BOS, 9, 6]])
  report = me_jax.find_me_layer(model, params, batch)
  found = interventions.run(model, params, batch, report)
  loss, count = loss_by_hand(model, params, batch, Put(4, 0.0))
  assert found.tokens == count == 6
  assert found.named('zero').loss == pytest.approx(loss, abs=2e-5)


def test_a_span_of_several_layers_is_edited_behind_its_last():
  model, params, texts = sensitive(
    [Plant(3, 7, SPIKE, 2000.0), Plant(4, 2, SPIKE, 3000.0, read=SPIKE)]
  )
  batch = batch_lib.make_batch(texts)
  report = me_jax.find_me_layer(model, params, batch)
  assert report.verdict == 'multi-step' and report.layer == 3
  found = interventions.run(model, params, batch, report)
  assert found.layer == 4
  assert {entry[:2] for entry in found.super_weights} == {(3, 7), (4, 2)}
  np.testing.assert_allclose(found.values_XK, 5000, rtol=0.05)


def test_without_super_weights_the_rest_is_still_tested():
  model, params = planted.build([], bos_channel=5000.0)
  batch = planted.batch()
  report = me_jax.find_me_layer(model, params, batch)
  assert report.verdict == 'embedding'
  found = interventions.run(model, params, batch, report)
  assert found.tested and found.super_weights == ()
  assert found.named('super_weight') is None and found.named('zero')


def test_nothing_to_take_away():
  model, params = planted.build([])
  batch = planted.batch()
  report = me_jax.find_me_layer(model, params, batch)
  found = interventions.run(model, params, batch, report)
  assert not found.tested and 'no massive' in found.reason
  assert found.conditions == ()


def test_nothing_to_predict(made):
  model, params, *_ = made
  batch = batch_lib.make_batch([[BOS], [BOS, BOS]])
  report = me_jax.find_me_layer(model, params, batch)
  found = interventions.run(model, params, batch, report)
  assert not found.tested and 'to predict' in found.reason


def test_all_conditions_are_one_compile(made, monkeypatch):
  chex.clear_trace_counter()
  counted = jax.jit(
    chex.assert_max_traces(next_token.score.__wrapped__, n=1), static_argnums=0
  )
  monkeypatch.setattr(next_token, 'score', counted)
  assert interventions.run(*made).tested


def test_a_report_about_other_texts_is_refused(made):
  model, params, _, report = made
  with pytest.raises(me_jax.MeJaxError, match='about 6 texts'):
    interventions.run(model, params, planted.batch(count=2), report)
