"""The contract of sites: what is read, what is written, what it costs."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.analysis import observers
from me_jax.models import batch as batch_lib
from me_jax.models import params as params_lib
from me_jax.models import sites
from tests.support import planted


@dataclasses.dataclass(frozen=True)
class Zero:
  """Zeroes a site at `operands['layer']`."""

  site: str

  def __call__(self, value, context):
    return jnp.where(context.layer == context.operands['layer'], 0.0, value)


@dataclasses.dataclass(frozen=True)
class KeySum:
  """Attention that each key receives, summed over queries, `[B, N, T]`."""

  site: str = 'attn_probs'
  name: str = 'received'

  def __call__(self, value, context):
    total = value.sum(axis=2)
    missing = context.segments_BT.shape[1] - total.shape[-1]
    return jnp.pad(total, ((0, 0), (0, 0), (0, missing)))


@pytest.fixture(scope='module', name='model_and_params')
def _model_and_params():
  return planted.build([planted.Plant(4, 7, 9, 5000.0)])


BATCH = planted.batch(count=2, length=20)


def run(model, params, used, operands=None, **kwargs):
  apply = functools.partial(
    model.clone(sites=used, **kwargs).apply, mutable='intermediates'
  )
  output, state = jax.jit(apply)({'params': params}, *BATCH, operands)
  return output, sites.read(state)


@pytest.mark.parametrize('site', sites.SITES)
@pytest.mark.parametrize('scanned', [True, False])
def test_every_site_can_be_read(model_and_params, site, scanned):
  model, params = model_and_params
  if not scanned:
    params = params_lib.unstack_layers(params)
  used = sites.Sites(
    observers=(
      KeySum()
      if site == 'attn_probs'
      else observers.TokenNorm(site=site, name='seen'),
    )
  )
  _, seen = run(model, params, used, scanned=scanned)
  (value,) = seen.values()
  assert value.shape[0] == planted.LAYERS
  assert np.isfinite(value).all() and (value != 0).any()


def test_scanned_and_unrolled_see_the_same(model_and_params):
  model, params = model_and_params
  used = sites.Sites(
    observers=(observers.TokenNorm(), KeySum(), sites.Capture('ffn_act', 'act'))
  )
  operands = {'act': jnp.array([4, 1])}
  _, scanned = run(model, params, used, operands)
  _, unrolled = run(
    model, params_lib.unstack_layers(params), used, operands, scanned=False
  )
  assert set(scanned) == {'norm', 'received', 'act'}
  chex.assert_trees_all_close(scanned, unrolled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('site', sites.SITES)
def test_an_edit_changes_nothing_before_its_layer(model_and_params, site):
  model, params = model_and_params
  norm = observers.TokenNorm(site='resid_post')
  _, plain = run(model, params, sites.Sites(observers=(norm,)))
  used = sites.Sites(observers=(norm,), edits=(Zero(site),))
  _, edited = run(model, params, used, {'layer': jnp.int32(5)})
  changed = np.abs(plain['norm'] - edited['norm']).max(axis=(1, 2))
  # Reading the probabilities divides them earlier: another rounding.
  assert (changed[:5] <= (1e-5 if site == 'attn_probs' else 0)).all()
  assert changed[5] > 1e-4


def test_a_sweep_over_layers_is_one_compile(model_and_params):
  model, params = model_and_params
  model = model.clone(
    sites=sites.Sites(
      observers=(observers.TokenNorm(),), edits=(Zero('ffn_out'),)
    )
  )
  chex.clear_trace_counter()

  @jax.jit
  @chex.assert_max_traces(n=1)
  def sweep(layer):
    _, state = model.apply(
      {'params': params}, *BATCH, {'layer': layer}, mutable='intermediates'
    )
    return sites.read(state)['norm'][-1]

  results = [sweep(jnp.int32(layer)) for layer in range(planted.LAYERS)]
  assert len({float(r.sum()) for r in results}) == planted.LAYERS


def test_what_is_not_read_leaves_no_trace(model_and_params):
  model, params = model_and_params

  # An odd number no one else computes shows in the compiled text.
  @dataclasses.dataclass(frozen=True)
  class Odd:
    site: str = 'resid_post'
    name: str = 'odd'

    def __call__(self, value, context):
      return jnp.sum(jnp.cos(value) * 1234.5)

  seeing = model.clone(sites=sites.Sites(observers=(Odd(),)))

  def compiled(model):
    call = jax.jit(lambda p: model.apply({'params': p}, *BATCH).logits)
    return call.lower(params).compile()

  plain, silent = compiled(model), compiled(seeing)
  assert '1234.5' not in silent.as_text()
  assert silent.cost_analysis()['flops'] == plain.cost_analysis()['flops']
  reading = jax.jit(
    lambda p: seeing.apply({'params': p}, *BATCH, mutable='intermediates')[1]
  )
  assert '1234.5' in reading.lower(params).compile().as_text()


def test_an_unread_observer_is_not_called_eagerly(model_and_params):
  model, params = model_and_params

  @dataclasses.dataclass(frozen=True)
  class Fails:
    site: str = 'resid_post'
    name: str = 'fails'

    def __call__(self, value, context):
      raise AssertionError('called')

  seeing = model.clone(sites=sites.Sites(observers=(Fails(),)))
  seeing.apply({'params': params}, *BATCH)
  with pytest.raises(AssertionError, match='called'):
    seeing.apply({'params': params}, *BATCH, mutable='intermediates')


@pytest.mark.parametrize('site', ['resid_mid', 'ffn_act', 'attn_probs'])
def test_capture_keeps_chosen_layers_whole(model_and_params, site):
  model, params = model_and_params
  used = sites.Sites(observers=(sites.Capture(site, 'kept'),))
  _, two = run(model, params, used, {'kept': jnp.array([6, 2])})
  _, everything = run(model, params, used, {'kept': jnp.arange(planted.LAYERS)})
  np.testing.assert_array_equal(
    two['kept'], everything['kept'][jnp.array([6, 2])]
  )
  assert (two['kept'][0] != two['kept'][1]).any()


def test_attention_rows_sum_to_one_over_visible_keys(model_and_params):
  model, params = model_and_params
  used = sites.Sites(observers=(sites.Capture('attn_probs', 'probs'),))
  _, seen = run(
    model, params, used, {'probs': jnp.array([3])}, attention_chunk=8
  )
  probs = np.asarray(seen['probs'][0])
  np.testing.assert_allclose(probs.sum(-1), 1.0, atol=1e-5)
  assert (np.triu(probs[0, 0], 1) == 0).all()


def test_padding_has_no_row_of_attention():
  model, params = planted.build([])
  used = sites.Sites(observers=(sites.Capture('attn_probs', 'probs'),))
  batch = batch_lib.make_batch([[3, 4, 5], [3, 4, 5, 6, 7, 8]], pad_side='left')
  _, state = model.clone(sites=used, attention_chunk=2).apply(
    {'params': params}, *batch, {'probs': jnp.array([3])},
    mutable='intermediates',
  )  # fmt: skip
  probs = np.asarray(sites.read(state)['probs'][0, 0])
  assert (probs[:, :3] == 0).all() and (probs[:, :, :3] == 0).all()
  np.testing.assert_allclose(probs[:, 3:].sum(-1), 1.0, atol=1e-5)


def test_an_unread_observer_of_probabilities_changes_no_program():
  model, params = planted.build([])
  seeing = model.clone(sites=sites.Sites(observers=(KeySum(),)))

  def compiled(model):
    call = jax.jit(lambda p: model.apply({'params': p}, *BATCH).logits)
    return call.lower(params).compile().cost_analysis()

  plain, silent = compiled(model), compiled(seeing)
  assert silent['flops'] == plain['flops']
  assert silent['bytes accessed'] == plain['bytes accessed']


def test_chunks_of_attention_add_up(model_and_params):
  model, params = model_and_params
  used = sites.Sites(observers=(KeySum(),))
  _, whole = run(model, params, used, attention_chunk=64)
  _, parts = run(model, params, used, attention_chunk=4)
  np.testing.assert_allclose(whole['received'], parts['received'], atol=1e-5)
  np.testing.assert_allclose(whole['received'].sum(-1), 21, atol=1e-3)


def test_reading_probabilities_does_not_change_the_output(model_and_params):
  model, params = model_and_params
  plain = jax.jit(model.apply)({'params': params}, *BATCH).logits
  output, _ = run(model, params, sites.Sites(observers=(KeySum(),)))
  np.testing.assert_allclose(output.logits, plain, atol=1e-5)


def test_no_stacked_states_exist():
  """What leaves the scan is small: no buffer of all layers' states."""
  model, params = planted.build([])
  used = sites.Sites(observers=(observers.TokenNorm(),))
  text = (
    jax.jit(lambda p: run(model, p, used)[1]).lower(params).compile().as_text()
  )
  layers, (rows, time) = planted.LAYERS, BATCH.tokens_BT.shape
  assert f'f32[{layers},{rows},{time}]' in text
  assert f'f32[{layers},{rows},{time},{planted.WIDTH}]' not in text


def test_mistakes_in_sites_are_refused():
  with pytest.raises(ValueError, match='share a name'):
    sites.Sites(observers=(observers.TokenNorm(), observers.TokenNorm()))
  with pytest.raises(ValueError, match='no site'):
    sites.Sites(observers=(observers.TokenNorm(site='resid'),))


def test_at_positions_takes_the_right_tokens(model_and_params):
  model, params = model_and_params
  used = sites.Sites(
    observers=(
      observers.AtPositions('resid_post', 'taken'),
      sites.Capture('resid_post', 'whole'),
    )
  )
  positions = np.array([[0, 5, 20], [7, 7, 1]], np.int32)
  _, seen = run(
    model, params, used, {'positions': positions, 'whole': jnp.arange(8)}
  )
  wanted = np.take_along_axis(
    np.asarray(seen['whole']), positions[None, ..., None], axis=2
  )
  np.testing.assert_array_equal(seen['taken'], wanted)
