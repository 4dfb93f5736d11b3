"""One pass that measures everything, on models whose answer is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax import errors
from me_jax.analysis import diagnosis
from me_jax.analysis import sinks
from me_jax.models import batch as batch_lib
from me_jax.models import sites
from tests.support import planted
from tests.support.planted import Plant

SPIKE = 9
SINK_LAYER, SINK_HEAD = 5, 2


def spiking(**kwargs):
  return planted.build([Plant(4, 7, SPIKE, 5000.0)], **kwargs)


def with_a_sink(model, params):
  return model, planted.with_a_sink(
    model, params, layer=SINK_LAYER, head=SINK_HEAD, channel=SPIKE
  )


def ragged(seed=3):
  """Returns texts of several lengths, some packed, some padded on the left."""
  random = np.random.default_rng(seed)
  texts = [
    [planted.BOS, *random.integers(2, planted.VOCAB, n)]
    for n in (11, 70, 3, 24, 90, 8, 41)
  ]
  return texts


def flat(found):
  return {
    jax.tree_util.keystr(path): np.asarray(value, np.float64)
    for path, value in jax.tree_util.tree_leaves_with_path(found)
  }


@pytest.mark.parametrize(
  'layout', [dict(rows=2), dict(pad_side='left'), dict(pack=True, length=128)]
)
def test_batches_and_their_order_change_nothing(layout):
  model, params = with_a_sink(*spiking())
  texts = ragged()
  whole = flat(me_jax.diagnose(model, params, batch_lib.make_batch(texts)))
  rows = layout.pop('rows', None)
  batch = batch_lib.make_batch(texts[::-1], **layout)
  parts = flat(me_jax.diagnose(model, params, batch, rows=rows))
  assert whole.keys() == parts.keys()
  for name, value in whole.items():
    scale = max(np.nan_to_num(np.abs(value)).max(), 1e-3)
    # The median is counted, where one flipped comparison is a step.
    size = 2e-3 if name == '.stream.median' else 1e-5
    np.testing.assert_allclose(
      parts[name], value, atol=size * scale, rtol=size, err_msg=name
    )


def test_says_what_find_says():
  model, params = spiking()
  batch = planted.batch()
  found = me_jax.diagnose(model, params, batch)
  report = me_jax.find_me_layer(model, params, batch)
  assert (found.layer, found.span) == (report.layer, report.span) == (4, (4,))
  assert found.massive_texts == found.texts == report.texts
  np.testing.assert_allclose(
    found.stream.ffn_share, report.shares.ffn, atol=1e-6
  )
  np.testing.assert_allclose(found.stream.norm, report.norm, rtol=1e-6)
  np.testing.assert_allclose(found.stream.jump, report.jump, rtol=1e-6)
  assert np.abs(found.stream.plateau).argmax() == SPIKE


def test_the_planted_sink_is_found_where_it_is():
  model, params = with_a_sink(*spiking())
  found = me_jax.diagnose(model, params, batch_lib.make_batch(ragged())).sinks
  top = np.unravel_index(found.attention.argmax(), found.attention.shape)
  assert top == (SINK_LAYER, SINK_HEAD)
  assert found.attention[top] > 0.9 and found.rate[top] == 1
  assert found.largest[top] > 0.99
  assert found.by_position[*top, 0] > 0.9
  assert found.by_position[*top, 1:].max() < 0.2
  others = np.delete(
    found.largest.ravel(), np.ravel_multi_index(top, found.largest.shape)
  )
  assert others.max() < 0.5
  assert found.control_attention[top] < 0.05
  assert found.control_largest[top] == 0


def test_attention_against_whole_maps():
  """alpha and the rest from captured probabilities, text by text."""
  model, params = with_a_sink(*spiking())
  texts = ragged()
  batch = batch_lib.make_batch(texts, pack=True, length=128)
  layers = planted.LAYERS
  probs = sites.Capture('attn_probs', 'probs')
  reader = model.clone(sites=sites.Sites(observers=(probs,)))
  _, state = reader.apply(
    {'params': params},
    *batch,
    operands={'probs': jnp.arange(layers)},
    mutable='intermediates',
  )
  probs_LBNTS = np.asarray(sites.read(state)['probs'], np.float64)
  spans = batch_lib.text_spans(batch.segments_BT)
  alpha, rate, largest, early = [], [], [], []
  for row, start, length, _ in zip(*spans):
    inside = slice(start, start + length)
    a_LNTS = probs_LBNTS[:, row, :, inside, inside]
    alpha.append(a_LNTS[..., 0].mean(axis=-1))
    rate.append(alpha[-1] > 0.3)
    most_LNT = a_LNTS[:, :, 1:].argmax(axis=-1) == 0
    largest.append(most_LNT.mean(axis=-1))
    window = a_LNTS[:, :, : sinks.WINDOW, : sinks.WINDOW]
    keys = window.shape[-1]
    early.append(
      np.stack([window[:, :, k:, k].mean(axis=-1) for k in range(keys)], -1)
    )
  found = me_jax.diagnose(model, params, batch).sinks
  close = dict(atol=2e-6)
  np.testing.assert_allclose(found.attention, np.mean(alpha, axis=0), **close)
  np.testing.assert_allclose(found.attention_std, np.std(alpha, 0), atol=1e-4)
  np.testing.assert_allclose(found.rate, np.mean(rate, axis=0), **close)
  np.testing.assert_allclose(found.largest, np.mean(largest, axis=0), **close)
  for k in (0, 1, 30, 63):
    expected = np.mean([e[..., k] for e in early if e.shape[-1] > k], axis=0)
    np.testing.assert_allclose(found.by_position[..., k], expected, **close)


def test_the_state_is_rigid_after_the_plant_and_control_tokens_are_not():
  """Ten first tokens that differ in all but what the plant reads."""
  model, params = spiking()
  table = np.array(params['embed_tokens']['embedding'])
  table[2:12, 0] = 8.0
  params['embed_tokens']['embedding'] = jnp.asarray(table)
  rest = np.random.default_rng(0).integers(12, planted.VOCAB, (10, 20))
  texts = [[first, *row] for first, row in zip(range(2, 12), rest)]
  found = me_jax.diagnose(model, params, batch_lib.make_batch(texts)).rigidity
  assert found.state.inputs == found.control_state.inputs == 10
  assert found.state.mean_L[4:].min() > 0.999
  assert found.state.mean_L[:4].max() < 0.9
  assert found.attn_in.mean_L[5:].min() > 0.999
  assert found.control_state.mean_L.max() < 0.5
  assert found.layers[4:, 4:].min() > 0.999 and found.layers[0, 5] < 0.2
  assert found.layers_least[4:, 4:].min() > 0.999


def test_texts_that_start_alike_are_one_input():
  model, params = spiking()
  found = me_jax.diagnose(model, params, planted.batch()).rigidity
  assert found.state.inputs == 1 and np.isnan(found.state.mean_L).all()
  assert found.control_state.inputs == 6


def test_diversity_of_states_of_known_rank():
  """Tokens along four axes: attention receives four directions."""
  model, params = planted.build([])
  table = np.zeros((planted.VOCAB, planted.WIDTH), np.float32)
  table[np.arange(planted.VOCAB), np.arange(planted.VOCAB) % 4] = 1.0
  params['embed_tokens']['embedding'] = jnp.asarray(table)
  text = [1, *range(2, 21)]
  found = me_jax.diagnose(model, params, batch_lib.make_batch([text]))
  assert found.diversity.effective_rank[0, 0] == pytest.approx(4, rel=1e-3)
  assert found.diversity.stable_rank[0, 0] == pytest.approx(4, rel=1e-4)
  p = np.array([4, 5, 5, 5]) / 19
  without = np.exp(-(p * np.log(p)).sum())
  assert found.diversity.effective_rank[0, 1] == pytest.approx(
    without, rel=2e-3
  )


def test_secondary_sinks_are_counted():
  """A second BOS in the text holds the same state."""
  model, params = spiking()
  text = [planted.BOS, 5, 6, planted.BOS, 7, 8, 9]
  found = me_jax.diagnose(model, params, batch_lib.make_batch([text])).sinks
  assert found.secondary[5:].tolist() == [1, 1, 1]
  assert 0 < found.secondary_attention[6] < 0.5
  alone = me_jax.diagnose(model, params, batch_lib.make_batch([[1, 5, 6]]))
  assert (alone.sinks.secondary[5:] == 0).all()
  assert np.isnan(alone.sinks.secondary_attention[6])


def test_a_model_without_massive_activations():
  model, params = planted.build([])
  found = me_jax.diagnose(model, params, planted.batch())
  assert found.massive_texts == 0 and found.texts == 6
  assert found.layer is None and found.span == ()
  assert found.sinks.attention.shape == (planted.LAYERS, 4)
  assert np.isfinite(found.diversity.entropy).all()


def test_long_texts_are_sampled():
  spans = batch_lib.TextSpans(*(np.array([x]) for x in (0, 2, 1000, 0)))
  from me_jax.analysis import diversity

  own, control = np.array([2]), np.array([507])
  taken = diversity.sample(spans, 1, 1, own, control, 64)[0, 0]
  assert taken[0] == 2 and taken[1] == 507
  assert len(set(taken.tolist())) == 64 and taken.max() > 900
  short = batch_lib.TextSpans(*(np.array([x]) for x in (0, 2, 5, 0)))
  taken = diversity.sample(short, 1, 1, np.array([4]), np.array([2]), 8)[0, 0]
  assert taken.tolist()[:2] == [4, 2] and sorted(taken)[3:] == [2, 3, 4, 5, 6]


def test_wrong_input_is_one_line():
  model, params = planted.build([])
  with pytest.raises(errors.MeJaxError, match='diagnose got a'):
    me_jax.diagnose(params, model, planted.batch())
  with pytest.raises(errors.MeJaxError, match='outside the vocabulary'):
    me_jax.diagnose(model, params, batch_lib.make_batch([[999]]))


def test_it_compiles_once():
  model, params = spiking()
  before = diagnosis.measure._cache_size()
  for seed in (1, 2):
    me_jax.diagnose(model, params, planted.batch(seed=seed), rows=4)
  assert diagnosis.measure._cache_size() == before + 1
