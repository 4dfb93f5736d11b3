"""The vocabulary probe, on models that know which tokens spike."""

from __future__ import annotations

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.analysis import vocabulary
from me_jax.models import batch as batch_lib
from tests.support import planted
from tests.support.planted import Plant

SPIKE, LAYER = 9, 4
ROWS = 16
PLANTS = (Plant(LAYER, 7, SPIKE, 5000.0),)
# Everything but these holds the channel that the plant reads.
QUIET = (3, 17, 40)


def model_of(spiking, *, plants=PLANTS, **fields):
  """A model where chosen tokens spike."""
  model, params = planted.build(plants, **fields)
  embedding = params['embed_tokens']['embedding']
  column_V = jnp.zeros(planted.VOCAB).at[jnp.array(spiking)].set(40.0)
  params['embed_tokens']['embedding'] = embedding.at[:, 0].set(column_V)
  return model, params


def all_but_quiet():
  return [i for i in range(planted.VOCAB) if i not in QUIET]


def report_of(model, params):
  return me_jax.find_me_layer(model, params, planted.batch())


def probe(model, params, report=None, **kwargs):
  report = report or report_of(model, params)
  return vocabulary.probe(model, params, report, rows=ROWS, **kwargs)


def test_finds_the_tokens_that_spike_and_those_that_do_not():
  found = probe(*model_of([planted.BOS, 5, 8]))
  assert sorted(found.alone.ids[found.alone.spikes]) == [planted.BOS, 5, 8]
  assert found.everything == (50, 50, 3, 0.06, 0.06, 0.06)
  assert len(found.quiet) == 47 and not found.sampled
  assert found.layers == LAYER + 1 and found.reason == ''
  spiking = found.alone.spikes
  np.testing.assert_allclose(found.alone.peak[spiking], 5000, rtol=0.05)
  np.testing.assert_allclose(found.alone.projection[spiking], 1, rtol=0.05)
  assert found.alone.cosine[spiking].min() > 0.99
  assert found.alone.peak[~spiking].max() < 100
  assert np.abs(found.alone.projection[~spiking]).max() < 0.01


def test_the_quiet_tokens_are_listed_smallest_projection_first():
  model, params = model_of(all_but_quiet())
  found = probe(model, params, report_of(*model_of([planted.BOS])))
  assert sorted(found.quiet) == list(QUIET)
  projection = dict(zip(found.alone.ids, found.alone.projection))
  assert list(found.quiet) == sorted(QUIET, key=projection.get)
  assert found.everything.share == pytest.approx(47 / 50)


def test_readings_equal_those_of_the_whole_model():
  model, params = model_of([planted.BOS, 5, 8])
  report = report_of(model, params)
  found = probe(model, params, report, ids=[8, 2, 5, 2])
  assert list(found.alone.ids) == [2, 5, 8], 'each once'
  batch = me_jax.Batch(np.array([[2], [5], [8]]), np.ones((3, 1), int))
  from me_jax.models import sites

  whole = model.clone(
    sites=sites.Sites(observers=(sites.Capture('resid_post', 'x'),))
  )
  with jax.default_matmul_precision('highest'):
    _, state = whole.apply(
      {'params': params}, *batch, {'x': jnp.array([LAYER])},
      mutable='intermediates',
    )  # fmt: skip
  state_XD = np.asarray(sites.read(state)['x'], np.float64)[0, :, 0]
  plateau_D = report.plateau_mean.astype(np.float64)
  along_X = state_XD @ plateau_D
  length = np.linalg.norm(plateau_D)
  alone = found.alone
  np.testing.assert_allclose(alone.peak, np.abs(state_XD).max(1), rtol=1e-5)
  np.testing.assert_allclose(
    alone.projection, along_X / length**2, rtol=1e-4, atol=1e-6
  )
  np.testing.assert_allclose(
    alone.cosine,
    along_X / length / np.linalg.norm(state_XD, axis=1),
    rtol=1e-4,
  )


def test_a_massive_state_of_another_direction_is_no_spike():
  # Token 5 alone is massive in another channel.
  plants = (
    Plant(LAYER, 7, SPIKE, 5000.0),
    Plant(LAYER, 3, 20, 5000.0, read=2),
  )
  model, params = model_of([planted.BOS], plants=plants)
  embedding = params['embed_tokens']['embedding'].at[5, 2].set(40.0)
  params['embed_tokens']['embedding'] = embedding
  texts = [[planted.BOS, 6, 7, 8, 9], [planted.BOS, 8, 9, 6]]
  report = me_jax.find_me_layer(model, params, batch_lib.make_batch(texts))
  found = probe(model, params, report)
  at = list(found.alone.ids).index(5)
  assert found.alone.peak[at] > 3000 and found.alone.cosine[at] < 0.1
  assert not found.alone.spikes[at]
  assert found.alone.spikes[list(found.alone.ids).index(planted.BOS)]


def first_token_model():
  """A model where every token spikes in front, and behind BOS none does.

  Layer 0 attends uniformly and writes channel 0, which the plant reads: +160
  for a token alone, -160 for BOS alone, and so nothing for a token behind BOS.
  BOS gets its own channel 0 from a neuron of layer 1.
  """
  marker, reader = 5, Plant(1, 9, 0, 12_700.0, read=5)
  model, params = planted.build([*PLANTS, reader], bos_channel=0.0)
  attention = params['layers']['self_attn']
  for name in ('q_proj', 'k_proj', 'v_proj', 'o_proj'):
    kernel = attention[name]['kernel']
    attention[name]['kernel'] = kernel.at[0].set(0.0)
  value, out = (attention[n]['kernel'] for n in ('v_proj', 'o_proj'))
  attention['v_proj']['kernel'] = value.at[0, 2, 0].set(1.0)
  attention['o_proj']['kernel'] = out.at[0, 0, 0].set(20.0)
  embedding = params['embed_tokens']['embedding']
  column_V = jnp.full(planted.VOCAB, 40.0).at[planted.BOS].set(-160.0)
  embedding = embedding.at[:, 2].set(column_V).at[:, marker].set(0.0)
  embedding = embedding.at[planted.BOS, marker].set(40.0)
  params['embed_tokens']['embedding'] = embedding
  return model, params


def test_the_control_behind_another_token_does_not_spike():
  model, params = first_token_model()
  report = report_of(model, params)
  assert report.layer == LAYER
  found = probe(model, params, report)
  assert found.everything.share == 1
  (behind,) = found.behind
  assert behind.front == planted.BOS and behind.front_spikes
  assert planted.BOS not in behind.readings.ids
  assert behind.tally.probed == 49 and behind.tally.share == 0


def test_tokens_that_spike_anywhere_are_caught_by_the_control():
  found = probe(*model_of([planted.BOS, 5, 8]), controls=1)
  (behind,) = found.behind
  assert behind.tally.share == 1
  assert (behind.tally.tokens, behind.tally.probed) == (2, 1)
  assert behind.tally.low < 1, 'only one of two was run'


def test_special_tokens_are_counted_apart():
  special = [planted.BOS, 3, 4, 1000]
  found = probe(*model_of([planted.BOS, 5, 8]), special_ids=special)
  assert found.special[:3] == (3, 3, 1)
  assert found.ordinary[:3] == (47, 47, 2)
  assert found.everything.share == pytest.approx(3 / 50)


def test_a_sample_has_an_interval_that_holds_the_truth():
  model, params = model_of([planted.BOS, *range(5, 25)])
  report = report_of(model, params)
  truth = probe(model, params, report).ordinary.share
  held = []
  for seed in range(20):
    found = probe(
      model, params, report, sample=12, seed=seed, special_ids=[planted.BOS]
    )
    assert found.sampled and len(found.alone.ids) == 13
    assert found.ordinary.probed == 12 and found.ordinary.tokens == 49
    assert found.special.low == found.special.high == 1.0
    held.append(found.ordinary.low <= truth <= found.ordinary.high)
  assert np.mean(held) >= 0.9
  again = probe(model, params, report, sample=12, seed=3)
  same = probe(model, params, report, sample=12, seed=3)
  np.testing.assert_array_equal(again.alone.ids, same.alone.ids)


def test_without_a_span_nothing_is_run():
  for kwargs in ({'plants': ()}, {'plants': (), 'bos_channel': 5000.0}):
    model, params = planted.build(**kwargs)
    report = report_of(model, params)
    found = probe(model, params, report)
    assert found.reason and found.layers == 0
    assert len(found.alone.ids) == 0 and len(found.quiet) == 0
    assert json.loads(json.dumps(found.to_json()))['reason']


@pytest.mark.parametrize(
  'fields',
  [
    {'norm_offset': 1.0, 'attention_bias': True},
    {
      'sliding_window': 8,
      'layer_windowed': (True, False) * 4,
      'rope_layers': (False, True) * 4,
    },
  ],
)
def test_other_architectures(fields):
  found = probe(*model_of([planted.BOS, 5], **fields))
  assert sorted(found.alone.ids[found.alone.spikes]) == [planted.BOS, 5]


def test_one_compile_serves_all_passes():
  model, params = model_of([planted.BOS, 5, 8])
  report = report_of(model, params)
  vocabulary.measure.clear_cache()
  probe(model, params, report)
  assert vocabulary.measure._cache_size() == 2, 'one token, and two'


def test_the_head_is_never_computed():
  model, params = model_of([planted.BOS])
  text = vocabulary.measure.lower(
    model, params, jnp.zeros((4, 1), jnp.int32), jnp.ones(planted.WIDTH)
  ).compile().as_text()  # fmt: skip
  assert f'[4,1,{planted.VOCAB}]' not in text
  assert f'[4,{planted.VOCAB}]' not in text


def test_progress_and_json():
  steps = []
  model, params = model_of([planted.BOS, 5])
  found = probe(model, params, progress=lambda *step: steps.append(step))
  assert steps[-1] == (51, 51), 'the front token comes with them'
  values = json.loads(json.dumps(found.to_json()))
  assert values['everything']['spikes'] == 2 and values['quiet_count'] == 48
  assert sum(values['alone']['log10_peak_counts']) == 50
  assert values['behind'][0]['front'] == planted.BOS


def test_bad_input_is_refused():
  model, params = model_of([planted.BOS])
  report = report_of(model, params)
  for kwargs, match in (
    ({'ids': [50]}, 'outside'),
    ({'ids': [-1]}, 'outside'),
    ({'ids': []}, 'empty'),
    ({'ids': [0.5]}, 'list of token ids'),
    ({'ids': [1], 'sample': 2}, 'not both'),
    ({'sample': 0}, 'at least 1'),
  ):
    with pytest.raises(me_jax.MeJaxError, match=match):
      vocabulary.probe(model, params, report, **kwargs)


def test_rows_do_not_change_the_readings():
  model, params = model_of([planted.BOS, 5])
  report = report_of(model, params)
  some = probe(model, params, report)
  other = vocabulary.probe(model, params, report, rows=64)
  chex.assert_trees_all_close(some.alone, other.alone, rtol=1e-4, atol=1e-4)
