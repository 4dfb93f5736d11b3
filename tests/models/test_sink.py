"""Where the mitigation acts, and that it does nothing where it should not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.models import batch as batch_lib
from me_jax.models import cache as cache_lib
from me_jax.models import params as params_lib
from me_jax.models import sites
from tests.support import planted

PLANTS = [planted.Plant(4, 7, 9, 5000.0)]
LAYERS, WIDTH = planted.LAYERS, planted.WIDTH


class _Given:
  """Reads what attention receives."""

  site, name = 'attn_in', 'given'

  def __call__(self, value, context):
    return value


def scaled(params, value, layers=slice(None), **leaves):
  scale = np.ones((LAYERS, WIDTH), np.float32)
  scale[layers] = value
  return {
    **params, 'layers': {**params['layers'], 'sink_scale': scale}, **leaves
  }  # fmt: skip


def given(model, params, batch):
  """Returns attn_in, `[L, B, T, D]`."""
  model = model.clone(sites=sites.Sites(observers=(_Given(),)))
  apply = jax.jit(model.apply, static_argnames='mutable')
  _, state = apply({'params': params}, *batch, mutable='intermediates')
  return np.asarray(sites.read(state)['given'])


def marked(model, params, batch, layer):
  """Returns which tokens' attention input is zero in a layer."""
  return (given(model, params, batch)[layer] == 0).all(axis=-1)


# Every pair of values occurs, not every combination.
@pytest.mark.parametrize(
  ('dtype', 'jitted', 'scanned', 'cached'),
  [
    ('float32', True, True, True),
    ('float32', False, False, False),
    ('bfloat16', True, False, False),
    ('bfloat16', False, True, True),
    ('float16', True, True, False),
    ('float16', True, False, True),
  ],
)
def test_ones_change_no_bit(dtype, jitted, scanned, cached):
  model, params = planted.build(PLANTS, bos_channel=4.0)
  dtype = jnp.dtype(dtype)
  model = model.clone(dtype=dtype, param_dtype=dtype, scanned=scanned)
  trees = [params, scaled(params, 1.0)]
  trees = [jax.tree.map(lambda x: jnp.asarray(x, dtype), t) for t in trees]
  if not scanned:
    trees = [params_lib.unstack_layers(tree) for tree in trees]
  batch = planted.batch(count=2)

  def run(params):
    if not cached:
      return model.apply({'params': params}, *batch).logits
    cache = cache_lib.empty(model.config, 2, 16, dtype, stacked=scanned)
    out = model.apply({'params': params}, *batch, cache=cache)
    step = np.full((2, 1), 5)
    again = model.apply({'params': params}, step, cache=out.cache)
    return jnp.concatenate([out.logits, again.logits], axis=1)

  stock, ones = map(jax.jit(run) if jitted else run, trees)
  assert bool(jnp.isfinite(stock).all())
  assert (np.asarray(stock) == np.asarray(ones)).all()


@pytest.mark.parametrize('pad_side', ['left', 'right'])
def test_the_first_token_of_each_text_is_scaled(pad_side):
  model, params = planted.build(PLANTS)
  texts = [[1, 5, 6], [1, 7], [8, 9, 10, 11]]
  batch = batch_lib.make_batch(texts, pack=True, length=6, pad_side=pad_side)
  hit = marked(model, scaled(params, 0.0), batch, 3)
  start = batch_lib.text_spans(batch.segments_BT)
  wanted = np.zeros_like(hit)
  wanted[start.row, start.start] = True
  assert (hit[batch.segments_BT > 0] == wanted[batch.segments_BT > 0]).all()


def test_given_positions_are_scaled_in_every_text():
  model, params = planted.build(PLANTS)
  texts = [[1, 5, 6, 7], [1, 7]]
  batch = batch_lib.make_batch(texts, pack=True, length=6)
  tree = scaled(params, 0.0, sink_positions=np.array([0.0, 0.0, 1.0]))
  assert marked(model, tree, batch, 0).tolist() == [
    [False, False, True, False, False, False]
  ]


def test_tokens_are_found_massive_inside_the_same_pass():
  model, params = planted.build(PLANTS)
  # BOS is massive wherever it stands; the second text has none.
  texts = [[5, 1, 6, 1], [7, 8, 9, 10]]
  batch = batch_lib.make_batch(texts)
  bound = np.zeros(LAYERS, np.float32)
  bound[4] = 1000.0
  tree = scaled(params, 0.0, sink_bound=bound)
  assert not marked(model, tree, batch, 4).any()
  for layer in (5, 7):
    assert marked(model, tree, batch, layer).tolist() == [
      [False, True, False, True],
      [False] * 4,
    ]


def test_other_rows_and_padding_do_not_change_a_row():
  model, params = planted.build(PLANTS)
  tree = scaled(params, 0.3)
  texts = planted.texts(3)
  texts[1] = texts[1][:4]
  apply = jax.jit(model.apply)
  alone = apply({'params': tree}, np.array([texts[1]])).logits[0]
  for pad_side in ('left', 'right'):
    batch = batch_lib.make_batch(texts, pad_side=pad_side)
    together = apply({'params': tree}, *batch).logits[1]
    np.testing.assert_allclose(
      together[batch.segments_BT[1] > 0], alone, atol=1e-5
    )


def test_the_gradient_reaches_the_scale_where_it_acts():
  model, params = planted.build(PLANTS)
  batch = planted.batch(count=2)

  def loss(scale):
    layers = {**params['layers'], 'sink_scale': scale}
    out = model.apply({'params': {**params, 'layers': layers}}, *batch)
    return jnp.mean(out.logits**2)

  gradient = np.asarray(jax.jit(jax.grad(loss))(jnp.ones((LAYERS, WIDTH))))
  assert np.isfinite(gradient).all()
  assert (np.abs(gradient).max(axis=1) > 0).all()
