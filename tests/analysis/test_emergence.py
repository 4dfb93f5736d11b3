"""The search for the ME Layer, on models whose answer is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

import me_jax
from me_jax.analysis import emergence
from me_jax.models import batch as batch_lib
from tests.support import planted
from tests.support.planted import Plant

SPIKE = 9


def find(plants, batch=None, **kwargs):
  model, params = planted.build(plants, **kwargs)
  return me_jax.find_me_layer(model, params, batch or planted.batch())


def test_names_the_planted_layer_channel_and_neuron():
  report = find([Plant(4, 7, SPIKE, 5000.0)])
  assert report.verdict == 'single'
  assert report.layer == 4 and report.span == (4,)
  assert [c.index for c in report.channels] == [SPIKE]
  assert report.channels[0].value == pytest.approx(5000, rel=0.05)
  assert [(n.layer, n.index) for n in report.neurons] == [(4, 7)]
  assert report.neurons[0].share > 0.95
  assert report.plateau == (4, planted.LAYERS - 1)
  assert {t.position for t in report.tokens} == {0}
  assert {t.token_id for t in report.tokens} == {planted.BOS}
  assert report.massive_texts == report.texts == 6


def test_splits_the_write_between_two_neurons():
  report = find([Plant(4, 7, SPIKE, 3500.0), Plant(4, 2, SPIKE, 1500.0)])
  assert [n.index for n in report.neurons] == [7, 2]
  assert report.neurons[0].share == pytest.approx(0.7, abs=0.02)
  assert report.neurons[1].share == pytest.approx(0.3, abs=0.02)


def test_shares_sum_to_one_and_the_control_token_has_none():
  report = find([Plant(4, 7, SPIKE, 5000.0)])
  shares = report.shares
  total = shares.attn.sum() + shares.ffn.sum() + shares.embedding
  assert total == pytest.approx(1.0, abs=1e-4)
  assert shares.ffn[4] > 0.95
  assert abs(report.control.shares.ffn[4]) < 0.3
  assert report.control.norm.max() < 100


def test_a_layer_that_erases_the_plateau_has_no_share_of_it():
  report = find(
    [
      Plant(4, 7, SPIKE, 5000.0),
      Plant(6, 3, SPIKE, -5000.0, read=SPIKE),
    ]
  )
  assert report.layer == 4 and report.plateau == (4, 5)
  assert report.shares.ffn[6] == 0 and report.norm[7] < 500
  shares = report.shares
  total = shares.attn.sum() + shares.ffn.sum() + shares.embedding
  assert total == pytest.approx(1.0, abs=1e-4)


def test_a_decoy_that_fades_is_not_reported():
  decoy = 20
  report = find(
    [
      Plant(1, 3, decoy, 300.0),
      Plant(3, 5, decoy, -300.0, read=decoy),
      Plant(5, 7, SPIKE, 5000.0),
    ]
  )
  assert report.norm[2] > 200, 'the decoy must be there'
  assert report.norm[4] < 80, 'and it must fade'
  assert report.verdict == 'single' and report.layer == 5
  assert [c.index for c in report.channels] == [SPIKE]
  assert report.plateau == (5, planted.LAYERS - 1)


def test_two_emergence_layers_are_one_span():
  report = find(
    [
      Plant(3, 7, SPIKE, 2000.0),
      Plant(4, 2, SPIKE, 3000.0, read=SPIKE),
    ]
  )
  assert report.verdict == 'multi-step'
  assert report.span == (3, 4)
  assert report.layer == 3, 'the norm jumps more from nothing to 2000'
  assert {(n.layer, n.index) for n in report.neurons} == {(3, 7), (4, 2)}
  assert report.shares.ffn[3] == pytest.approx(0.4, abs=0.03)


def test_gradual_emergence_has_no_me_layer():
  report = find(
    [Plant(1, 7, SPIKE, 800.0)]
    + [Plant(i, 7, SPIKE, 800.0, read=SPIKE) for i in range(2, 7)]
  )
  assert report.verdict == 'gradual'
  assert report.layer is None
  assert len(report.span) > emergence.LONGEST_SPAN
  assert 'gradually' in report.headline()


def test_a_model_without_massive_activations_has_no_me_layer():
  report = find([])
  assert report.verdict == 'none'
  assert report.layer is None and report.span == ()
  assert report.channels == () and report.tokens == ()
  assert report.plateau is None and report.massive_texts == 0
  assert 'No massive activations' in report.headline()


def test_a_spike_in_the_embedding_is_said_to_be_there():
  report = find([], bos_channel=5000.0)
  assert report.verdict == 'embedding' and report.layer is None
  assert report.shares.embedding > 0.95


def test_agreement_is_told_by_kind_of_text():
  texts = planted.texts(4) + planted.texts(6, bos=False)
  model, params = planted.build([Plant(4, 7, SPIKE, 5000.0)])
  report = me_jax.find_me_layer(model, params, batch_lib.make_batch(texts))
  with_bos = report.agreement['with_bos']
  assert (with_bos.texts, with_bos.massive) == (4, 4)
  assert with_bos.rules == {'share': {4: 4}, 'sun': {4: 4}, 'jump': {4: 4}}
  without = report.agreement['without_bos']
  assert (without.texts, without.massive) == (6, 0)
  assert report.layer == 4
  assert '4 of 10 prompts' in report.headline()


def test_half_in_the_embedding_is_said_with_numbers():
  # 2000 in the embedding already, 3000 written in one layer.
  report = find([Plant(4, 7, 0, 3000.0)], bos_channel=2000.0)
  assert report.verdict == 'embedding' and report.layer is None
  assert report.shares.embedding == pytest.approx(0.4, abs=0.02)
  assert '4' in report.headline() and '% come with' in report.headline()


def test_one_token_texts_and_texts_of_massive_tokens_only():
  texts = [[planted.BOS], [planted.BOS, planted.BOS], [7]]
  report = find([Plant(4, 7, SPIKE, 5000.0)], batch_lib.make_batch(texts))
  assert report.layer == 4
  assert report.massive_texts == 2


def test_values_that_overflow_are_an_error_not_a_verdict():
  model, params = planted.build([Plant(4, 7, SPIKE, 5000.0)])
  import jax
  import jax.numpy as jnp

  half = jax.tree.map(lambda x: (x * 30).astype(jnp.float16), params)
  low = model.clone(dtype=jnp.float16, param_dtype=jnp.float16)
  with pytest.raises(me_jax.MeJaxError, match='not finite in float16'):
    me_jax.find_me_layer(low, half, planted.batch())


def test_a_massive_token_later_in_the_text_is_followed():
  texts = [[5, 6, 7, planted.BOS, 8, 9], [5, planted.BOS, 6, 7]]
  report = find([Plant(4, 7, SPIKE, 5000.0)], batch_lib.make_batch(texts))
  assert report.layer == 4
  assert {(t.position, t.texts) for t in report.tokens} == {(3, 1), (1, 1)}
  assert report.shares.ffn[4] > 0.95


def test_of_two_massive_tokens_the_first_is_followed():
  texts = [[planted.BOS, 5, 6, planted.BOS, 7]]
  report = find([Plant(4, 7, SPIKE, 5000.0)], batch_lib.make_batch(texts))
  assert {t.position for t in report.tokens} == {0, 3}
  assert report.layer == 4


@pytest.mark.parametrize('layout', ['left', 'packed', 'streamed'])
def test_layout_does_not_change_the_answer(layout):
  model, params = planted.build([Plant(4, 7, SPIKE, 5000.0)])
  texts = [t[: 4 + 2 * i] for i, t in enumerate(planted.texts(5))]
  whole = me_jax.find_me_layer(model, params, batch_lib.make_batch(texts))
  batch = batch_lib.make_batch(
    texts,
    pack=layout == 'packed',
    length=24 if layout == 'packed' else None,
    pad_side='left' if layout == 'left' else 'right',
  )
  rows = 2 if layout == 'streamed' else None
  other = me_jax.find_me_layer(model, params, batch, rows=rows)
  np.testing.assert_allclose(other.norm, whole.norm, rtol=1e-5)
  np.testing.assert_allclose(other.shares.ffn, whole.shares.ffn, atol=1e-5)
  np.testing.assert_allclose(other.profile, whole.profile, rtol=1e-3, atol=1e-4)
  assert other.channels[0].index == whole.channels[0].index
  assert (other.layer, other.plateau) == (whole.layer, whole.plateau)


def test_shares_equal_a_float64_version_over_whole_states():
  """The compiled sums against plain NumPy on fully captured writes."""
  import jax
  import jax.numpy as jnp

  from me_jax.models import sites

  model, params = planted.build([Plant(4, 7, SPIKE, 5000.0)], seed=3)
  batch = planted.batch(count=2)
  report = me_jax.find_me_layer(model, params, batch)
  names = ('resid_pre', 'attn_out', 'ffn_out', 'resid_post')
  capturing = model.clone(
    sites=sites.Sites(observers=tuple(sites.Capture(n, n) for n in names))
  )
  everything = jnp.arange(planted.LAYERS)
  with jax.default_matmul_precision('highest'):
    _, state = capturing.apply(
      {'params': params}, *batch, {n: everything for n in names},
      mutable='intermediates',
    )  # fmt: skip
  seen = {
    k: np.asarray(v, np.float64)[:, :, 0] for k, v in sites.read(state).items()
  }
  ffn = []
  for text in range(2):
    norms = np.linalg.norm(seen['resid_post'][:, text], axis=-1)
    plateau = seen['resid_post'][norms.argmax(), text]
    length = np.linalg.norm(plateau)
    shares = seen['ffn_out'][:, text] @ plateau / length**2
    shares[norms.argmax() + 1 :] = 0
    ffn.append(shares)
  np.testing.assert_allclose(report.shares.ffn, np.mean(ffn, axis=0), atol=2e-6)


def test_the_compiled_pass_is_traced_once_per_shape():
  import chex

  from me_jax.analysis import residual

  chex.clear_trace_counter()
  model, params = planted.build([Plant(4, 7, SPIKE, 5000.0)])
  import jax

  counted = jax.jit(
    chex.assert_max_traces(residual.measure.__wrapped__, n=1), static_argnums=0
  )
  for seed in range(3):
    batch = planted.batch(count=8, length=30, seed=seed)
    report = me_jax.find_me_layer(model, params, batch, rows=2, measure=counted)
    assert report.layer == 4


def test_the_plateau_and_the_medians_are_those_of_the_texts_used():
  report = find([Plant(4, 7, SPIKE, 5000.0)])
  mean_D = report.plateau_mean
  assert mean_D[SPIKE] == pytest.approx(report.channels[0].value)
  assert np.linalg.norm(mean_D) == pytest.approx(report.norm.max(), rel=0.02)
  # Random embeddings of size 0.5: the median of |x| is two thirds of that.
  np.testing.assert_allclose(report.median, 0.34, atol=0.05)
  assert report.peak.value / report.peak.ratio == pytest.approx(
    report.median[report.peak.layer], rel=0.1
  )
  assert 'plateau_mean' not in report.to_json()


def test_json_is_plain_and_complete():
  report = find([Plant(4, 7, SPIKE, 5000.0)])
  values = json.loads(json.dumps(report.to_json()))
  for key in ('layer', 'span', 'channels', 'neurons', 'tokens', 'plateau',
              'agreement', 'shares', 'jump', 'provenance', 'verdict'):  # fmt: skip
    assert key in values
  assert values['layer'] == 4 and values['layer_from_one'] == 5
  assert values['span_share']['min'] > 0.95
  assert values['provenance']['matmul_precision'] == 'highest'
  assert json.loads(json.dumps(find([]).to_json()))['layer'] is None


def test_bad_batches_are_refused():
  model, params = planted.build([])
  for tokens, segments in (
    ([[planted.VOCAB, 1]], [[1, 1]]),
    ([[-1, 1]], [[1, 1]]),
    ([[1, 1]], [[0, 0]]),
    ([[1, 2, 3]], [[1, 2, 1]]),
    ([[1, 2, 3]], [[1, 1]]),
    ([[1] * 300], [[1] * 300]),
    ([[1.5, 2.0]], [[1, 1]]),
  ):
    batch = batch_lib.Batch(np.array(tokens), np.array(segments))
    with pytest.raises(me_jax.MeJaxError):
      me_jax.find_me_layer(model, params, batch)


@pytest.mark.parametrize(
  ('shares', 'span'),
  [
    ([0, 0.9, 0.1], (1,)),
    ([0.1, 0.45, 0.45], (1, 2)),
    ([0.5, -0.5, 0.5, 0.5], (2, 3)),
    ([0.2, 0.2, 0.2, 0.2, 0.2], (0, 1, 2, 3)),
    ([0.1, 0.1], ()),
    ([-0.2, 0.85, 0.95, -0.6], (2,)),
  ],
)
def test_the_span_is_the_shortest_run_with_the_largest_sum(shares, span):
  assert emergence.emergence_span(np.array(shares)) == span
