"""Readings of a model in training, on models whose answer is known."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.models import batch as batch_lib
from me_jax.models import sites
from tests.support import chats
from tests.support import planted
from tests.support import processes
from tests.support.planted import Plant

SPIKE, LAYER = 9, 4
SINK_LAYER, SINK_HEAD = 5, 2


def spiking():
  """Returns a model whose massive token one head of layer 5 looks at."""
  model, params = planted.build([Plant(LAYER, 7, SPIKE, 5000.0)])
  return model, planted.with_a_sink(
    model, params, layer=SINK_LAYER, head=SINK_HEAD, channel=SPIKE
  )


def rows(texts):
  """Returns a batch of one shape, so that the tests share their compiles."""
  assert len(texts) == 14
  return batch_lib.make_batch(texts, length=16)


BATCH = rows(planted.texts(14))


def ragged():
  """Returns texts of several lengths, two of them beyond the window."""
  random = np.random.default_rng(3)
  texts = [
    [planted.BOS, *random.integers(2, planted.VOCAB, n).tolist()]
    for n in (11, 70, 3, 24, 90, 8, 41)
  ]
  return batch_lib.make_batch(texts, pack=True, length=128)


ERASED = planted.VERDICTS['single'] + [Plant(6, 3, SPIKE, -5000.0, read=SPIKE)]


@pytest.mark.parametrize(
  ('verdict', 'plants'), [*planted.VERDICTS.items(), ('single', ERASED)]
)
def test_says_what_find_says(verdict, plants):
  model, params = planted.build(plants)
  # Some without the massive token, and one of nothing else.
  batch = rows(
    planted.texts(10) + planted.texts(3, bos=False) + [[planted.BOS]]
  )
  report = me_jax.find_me_layer(model, params, batch)
  found = me_jax.monitor(model, params, batch)
  assert found.verdict == report.verdict == verdict
  assert found.me_layer == report.layer
  assert found.span == report.span and found.plateau == report.plateau
  assert found.texts == report.texts
  assert found.massive_texts == report.massive_texts
  assert (found.spike, found.spike_ratio, found.spike_layer) == pytest.approx(
    report.peak, rel=1e-5
  )
  assert found.plateau_norm == pytest.approx(report.norm.max(), rel=1e-5)
  assert found.spike_control < found.spike / 10


def test_says_what_diagnose_says():
  """First tokens that differ in all but what the plant reads."""
  model, params = spiking()
  table = np.array(params['embed_tokens']['embedding'])
  table[2:16, 0] = 8.0
  params['embed_tokens']['embedding'] = jnp.asarray(table)
  rest = np.random.default_rng(0).integers(16, planted.VOCAB, (14, 15))
  batch = rows([[first, *row] for first, row in zip(range(2, 16), rest)])
  found = me_jax.monitor(model, params, batch)
  whole = me_jax.diagnose(model, params, batch)
  cosines, received = whole.rigidity, whole.sinks
  assert found.me_layer == whole.layer == LAYER
  assert found.plateau == (LAYER, planted.LAYERS - 1)
  after = slice(LAYER + 1, None)
  pairs = np.triu_indices(planted.LAYERS - LAYER, 1)
  close = {
    'rigidity': cosines.state.mean_L[LAYER:],
    'rigidity_control': cosines.control_state.mean_L[LAYER:],
    'rigidity_before': cosines.state.mean_L[:LAYER],
    'rigidity_attn_in': cosines.attn_in.mean_L[after],
    'rigidity_attn_in_control': cosines.control_attn_in.mean_L[after],
    'rigidity_layers': cosines.layers[LAYER:, LAYER:][pairs],
    'rigidity_layers_control': cosines.control_layers[LAYER:, LAYER:][pairs],
    'attention_after': received.attention[after],
    'attention_before': received.attention[: LAYER + 1],
    'attention_after_control': received.control_attention[after],
    'sink_rate': received.rate,
  }
  for name, expected in close.items():
    assert getattr(found, name) == pytest.approx(expected.mean(), abs=1e-6), (
      name
    )
  assert found.rigidity > 0.999 > 0.9 > found.rigidity_before


def test_sink_rate_against_whole_maps():
  """Gu et al.'s rule, from captured probabilities, text by text."""
  model, params = spiking()
  batch = ragged()
  probs = sites.Capture('attn_probs', 'probs')
  reader = model.clone(sites=sites.Sites(observers=(probs,)))
  operands = {'probs': jnp.arange(planted.LAYERS)}
  _, state = jax.jit(
    lambda params: reader.apply(
      {'params': params}, *batch, operands, mutable='intermediates'
    )
  )(params)
  probs_LBNTS = np.asarray(sites.read(state)['probs'], np.float64)
  alpha = []
  for row, start, length, _ in zip(*batch_lib.text_spans(batch.segments_BT)):
    first = slice(start, start + min(length, 64))
    alpha.append(probs_LBNTS[:, row, :, first, start].mean(axis=-1))
  alpha_XLN = np.stack(alpha)
  found = me_jax.monitor(model, params, batch)
  rate_XLN = alpha_XLN > 0.3
  assert found.sink_rate == pytest.approx(rate_XLN.mean(), abs=1e-6)
  assert 0 < found.sink_rate < 1 and found.sink_rate_control < 0.05
  close = dict(atol=2e-6)
  np.testing.assert_allclose(
    found.sink_rate_by_layer, rate_XLN.mean(axis=(0, 2)), **close
  )
  np.testing.assert_allclose(
    found.attention_by_layer, alpha_XLN.mean(axis=(0, 2)), **close
  )


def test_a_massive_token_inside_a_text_is_found():
  model, params = spiking()
  texts = planted.texts(14)
  batch = rows([x[1:4] + [planted.BOS] + x[4:] for x in texts])
  found = me_jax.monitor(model, params, batch)
  report = me_jax.find_me_layer(model, params, batch)
  assert {token.position for token in report.tokens} == {3}
  assert found.me_layer == report.layer == LAYER
  assert found.spike == pytest.approx(5000, rel=0.05)
  assert found.plateau_norm == pytest.approx(report.norm.max(), rel=1e-5)
  # The inputs up to it differ, and it does not.
  assert found.rigidity > 0.999


def test_without_massive_activations_nothing_is_made_up():
  model, params = planted.build([])
  found = me_jax.monitor(model, params, BATCH)
  assert found.verdict == 'none' and found.massive_texts == 0
  nothing = {
    name
    for name, value in found.to_json().items()
    if value is None
  }  # fmt: skip
  assert nothing == {
    'me_layer', 'plateau', 'attention_after', 'attention_before',
    'attention_after_control', 'rigidity', 'rigidity_control',
    'rigidity_before', 'rigidity_attn_in', 'rigidity_attn_in_control',
    'rigidity_layers', 'rigidity_layers_control',
  }  # fmt: skip
  assert found.plateau_norm < 100 and found.spike < 100


def test_texts_of_one_token_have_no_control():
  model, params = spiking()
  found = me_jax.monitor(model, params, rows([[planted.BOS], [5]] * 7))
  assert found.me_layer == LAYER
  assert found.spike_control is None and found.plateau_norm_control is None
  assert found.sink_rate == 1, 'one token receives all there is'
  assert found.sink_rate_control is None
  assert found.rigidity is None and found.rigidity_layers > 0.99


def test_readings_are_json():
  model, params = spiking()
  found = me_jax.monitor(model, params, BATCH)
  read = json.loads(json.dumps(found.to_json(), allow_nan=False))
  assert list(read) == [f.name for f in dataclasses.fields(found)]
  assert read['me_layer'] == LAYER and read['span'] == [LAYER]
  assert len(read['sink_rate_by_layer']) == planted.LAYERS
  # Texts that begin alike are one input.
  assert read['rigidity'] is None and read['rigidity_control'] < 0.9


def test_a_mask_takes_attention_from_the_first_token():
  model, params = spiking()
  # The channel with the largest weights is masked.
  norm = params['layers']['input_layernorm']
  norm['weight'] = norm['weight'].at[:, SPIKE].set(1.5)
  masked = me_jax.wemask(model, params, planted.report(), k=1)
  stock = me_jax.monitor(model, params, BATCH)
  found = me_jax.monitor(model, masked, BATCH)
  assert stock.me_layer == found.me_layer == LAYER
  assert found.attention_before == pytest.approx(stock.attention_before)
  changed = stock.attention_by_layer - found.attention_by_layer
  assert changed.argmax() == SINK_LAYER and changed.max() > 0.15
  assert found.attention_after < stock.attention_after - 0.04
  assert found.sink_rate < stock.sink_rate


def test_other_parameters_are_no_new_compile():
  model, params = spiking()
  model = model.clone(attention_chunk=8)  # which no other test has
  compiled = []

  def listen(event, *_, **__):
    if event.endswith('backend_compile_duration'):
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    before = me_jax.monitor(model, params, BATCH)
    assert compiled, 'nothing was heard of the first compile'
    other = jax.tree.map(lambda x: x * 1.01, params)
    compiled.clear()
    after = me_jax.monitor(model, other, BATCH)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert not compiled
  assert after.spike != before.spike


@pytest.mark.parametrize(
  ('batch', 'words'),
  [
    ([[1, 2, 3]], 'a Decoder and a list'),
    (batch_lib.make_batch([[1, planted.VOCAB]]), 'outside the vocabulary'),
    (
      batch_lib.Batch(np.ones((2, 3), int), np.zeros((2, 3), int)),
      'no tokens',
    ),
  ],
)
def test_a_bad_batch_is_refused(batch, words):
  model, params = planted.build([])
  with pytest.raises(me_jax.MeJaxError, match=words):
    me_jax.monitor(model, params, batch)


def test_states_that_are_not_finite_are_an_error():
  model, params = planted.build([])
  params['norm']['weight'] = params['norm']['weight'] * jnp.nan
  me_jax.monitor(model, params, BATCH)  # after the last layer
  params['embed_tokens']['embedding'] *= jnp.nan
  with pytest.raises(me_jax.MeJaxError, match='not finite'):
    me_jax.monitor(model, params, BATCH)


def test_probes_are_full_rows_and_the_same_every_time():
  model, params = planted.build([])
  lm = me_jax.LoadedModel(model, params, chats.tokenizer(), model.config)
  batch = me_jax.probes(lm)
  assert batch.tokens_BT.shape == (8, 64)
  assert (batch.segments_BT == 1).all()
  assert len({tuple(row) for row in batch.tokens_BT}) == 8
  np.testing.assert_array_equal(me_jax.probes(lm).tokens_BT, batch.tokens_BT)
  assert me_jax.probes(lm, texts=3, length=20).tokens_BT.shape == (3, 20)
  # The context is 256 tokens.
  assert me_jax.probes(lm, texts=24, length=999).tokens_BT.shape == (24, 256)
  for sizes in (dict(texts=0), dict(texts=25), dict(length=1)):
    with pytest.raises(me_jax.MeJaxError, match='to monitor with'):
      me_jax.probes(lm, **sizes)


PROGRAM = """
    import jax
    import numpy as np

    import me_jax
    from me_jax.analysis import monitor
    from me_jax.training import sharding
    from tests.support import planted

    assert len(jax.devices()) == 8
    model, params = planted.build([planted.Plant(4, 7, 9, 5000.0)])
    batch = planted.batch(count=8, length=15, bos=False)
    batch.tokens_BT[:, 2] = planted.BOS
    alone = me_jax.monitor(model, params, batch).to_json()
    assert alone['me_layer'] == 4 and alone['rigidity'] > 0.99

    mesh = sharding.mesh(data=2, fsdp=2, tensor=2)
    rules = sharding.fit(model.config, mesh)
    places = sharding.shardings(model.config, mesh, rules)
    placed = jax.tree.map(jax.device_put, params, places)

    # What comes to the host must be whole on every process's own devices.
    def whole(compiled):
      def call(*args):
        found = compiled(*args)
        for name, value in found.items():
          assert len(value.sharding.device_set) == 8, name
          assert value.sharding.is_fully_replicated, name
        return found
      return call

    monitor.measure = whole(monitor.measure)
    monitor._attribute = whole(monitor._attribute)
    with sharding.use(mesh, rules):
      inside = me_jax.monitor(model, placed, batch).to_json()
    outside = me_jax.monitor(model, placed, batch).to_json()
    for found in (inside, outside):
      for name, want in alone.items():
        if isinstance(want, (str, type(None))):
          assert found[name] == want, name
        else:
          # The median is counted, where one flipped comparison is a step.
          np.testing.assert_allclose(
            found[name], want, rtol=2e-3, atol=1e-5, err_msg=name
          )
"""


def test_eight_devices_read_what_one_reads():
  done = processes.run(PROGRAM, devices=8)
  assert done.returncode == 0, done.stderr[-3000:]
