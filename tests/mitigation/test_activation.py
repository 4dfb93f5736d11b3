"""Channels chosen by size: the published code's, wherever texts stand."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax import errors
from me_jax.mitigation import activation
from me_jax.models import batch as batch_lib
from me_jax.models import params as params_lib
from me_jax.models import sites
from tests.support import planted
from tests.support import released
from tests.support import tiny

PLANTS = [planted.Plant(4, 7, 9, 5000.0)]
LAYERS, WIDTH = planted.LAYERS, planted.WIDTH
# Starts that occur several times must weigh as much as they occur.
STARTS = (1, 1, 1, 7, 7, 30)
TEXTS = [
  [start, *text] for start, text in zip(STARTS, planted.texts(6, bos=False))
]
BATCH = batch_lib.make_batch(TEXTS)
needs_torch = pytest.mark.skipif(
  importlib.util.find_spec('torch') is None,
  reason='torch, the reference implementation, is not installed',
)


def model_and_params():
  """Returns a planted model whose input norms have weights of their own."""
  model, params = planted.build(PLANTS)
  norm = params['layers']['input_layernorm']
  random = np.random.default_rng(5)
  norm['weight'] = jnp.asarray(
    random.normal(1.0, 0.5, norm['weight'].shape), jnp.float32
  )
  return model, params


def with_scale(params, masked_LD, strength):
  scale = np.where(masked_LD, np.float32(1.0 - strength), np.float32(1.0))
  return {**params, 'layers': {**params['layers'], 'sink_scale': scale}}


@needs_torch
@pytest.mark.parametrize('strength', [1.0, 0.6])
def test_channels_and_logits_equal_the_published_mask(strength, tmp_path):
  hf = released.hf_model()
  lm = tiny.loaded(hf, tmp_path)
  tokens_BT = np.random.default_rng(2).integers(3, 101, (4, 20))
  layers, count = (1, 2, 3, 4), 12
  import torch

  with released.masked(hf, layers, count, strength) as seen:
    theirs = hf(torch.tensor(tokens_BT)).logits.numpy()
  stock = hf(torch.tensor(tokens_BT)).logits.detach().numpy()
  assert np.abs(stock - theirs).max() > 0.1
  batch = batch_lib.Batch(tokens_BT, np.ones_like(tokens_BT))
  args = (lm.model, lm.params, batch)
  masked_LD = activation.select(*args, layers, count, strength)
  assert not masked_LD[0].any()
  for layer, channels in seen:
    assert np.flatnonzero(masked_LD[layer]).tolist() == channels.tolist()
  # Layers that were looked at in an unmasked model would differ.
  alone = [activation.select(*args, [i], count)[i] for i in layers]
  if strength == 1.0:
    assert (alone != masked_LD[list(layers)]).any()
  params = with_scale(lm.params, masked_LD, strength)
  ours = jax.jit(lm.model.apply)({'params': params}, tokens_BT).logits
  np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize('layer', [0, 5])
def test_one_layer_equals_numpy_in_float64(layer):
  model, params = model_and_params()
  observed = model.clone(
    sites=sites.Sites(observers=(sites.Capture('resid_pre', 'x'),))
  )
  apply = jax.jit(observed.apply, static_argnames='mutable')
  _, state = apply(
    {'params': params}, *BATCH, {'x': np.array([layer])},
    mutable='intermediates',
  )  # fmt: skip
  x_BD = np.asarray(sites.read(state)['x'], np.float64)[0][:, 0]
  rms_B1 = np.sqrt((x_BD**2).mean(axis=1, keepdims=True) + 1e-6)
  weight_D = np.float64(params['layers']['input_layernorm']['weight'][layer])
  size_D = np.abs(x_BD / rms_B1 * weight_D[None]).mean(axis=0)
  for count in (1, 13, WIDTH):
    masked_LD = activation.select(model, params, BATCH, [layer], count)
    wanted = np.argsort(-size_D, kind='stable')[:count]
    assert set(np.flatnonzero(masked_LD[layer])) == set(wanted)
    assert masked_LD.sum() == count


def test_padding_and_packing_do_not_change_the_choice():
  model, params = model_and_params()
  texts = [text[: 3 + 2 * i] for i, text in enumerate(TEXTS)]
  found = [
    activation.select(
      model, params, batch_lib.make_batch(texts, **layout), [3, 5, 6], 9, 0.7
    )
    for layout in (
      {},
      dict(pad_side='left', length=40),
      dict(pack=True, length=30, pad_side='right'),
      dict(pack=True, length=30, pad_side='left', pad_id=9),
    )
  ]
  assert found[0].sum(axis=1).tolist() == [0, 0, 0, 9, 0, 9, 9, 0]
  for other in found[1:]:
    assert (other == found[0]).all()


def test_the_layout_of_layers_and_an_earlier_mask_do_not_matter():
  model, params = model_and_params()
  wanted = activation.select(model, params, BATCH, [5, 6, 7], 20)
  earlier = with_scale(params, np.ones((LAYERS, WIDTH), bool), 1.0)
  earlier['sink_bound'] = np.ones(LAYERS, np.float32)
  assert (
    activation.select(model, earlier, BATCH, [7, 6, 5, 5], 20) == wanted
  ).all()
  unrolled = activation.select(
    model.clone(scanned=False),
    params_lib.unstack_layers(earlier),
    BATCH,
    range(5, 8),
    20,
  )
  assert (unrolled == wanted).all()


def test_equal_channels_are_taken_from_below():
  model, params = planted.build([])
  table = np.ones((planted.VOCAB, WIDTH), np.float32)
  params['embed_tokens']['embedding'] = table
  masked_LD = activation.select(model, params, BATCH, [0], 5)
  assert np.flatnonzero(masked_LD[0]).tolist() == [0, 1, 2, 3, 4]


def test_edits_of_the_model_are_in_force():
  class Emphasise:
    site = 'resid_pre'

    def __call__(self, value, context):
      factor_D = jnp.ones(WIDTH).at[21].set(1e4)
      return value * factor_D[None, None]

  model, params = planted.build([])
  args = (params, BATCH, [0], 1)
  edited = model.clone(sites=sites.Sites(edits=(Emphasise(),)))
  assert not activation.select(model, *args)[0, 21]
  assert activation.select(edited, *args)[0, 21]


@pytest.mark.parametrize(
  ('layers', 'count', 'strength', 'words'),
  [
    ([8], 3, 1.0, 'no layer 8'),
    ([-1], 3, 1.0, 'no layer -1'),
    ([1], 65, 1.0, 'cannot mask 65 channels'),
    ([1], -1, 1.0, 'cannot mask -1 channels'),
    ([1], 3, 1.5, 'strength'),
    ([1], 3, float('nan'), 'strength'),
  ],
)
def test_impossible_masks_are_refused(layers, count, strength, words):
  model, params = planted.build([])
  with pytest.raises(errors.MeJaxError, match=words):
    activation.select(model, params, BATCH, layers, count, strength)


def test_states_that_are_not_finite_are_refused():
  model, params = planted.build([])
  table = params['embed_tokens']['embedding'].at[7].set(jnp.nan)
  params['embed_tokens']['embedding'] = table
  with pytest.raises(errors.MeJaxError, match='layer 2 is not finite'):
    activation.select(model, params, BATCH, [2, 3], 5)


def test_too_many_starts_for_one_pass_are_refused(monkeypatch):
  model, params = planted.build([])
  monkeypatch.setattr(activation, 'MOST_STARTS', 2)
  with pytest.raises(errors.MeJaxError, match='3 different tokens; at most 2'):
    activation.select(model, params, BATCH, [2], 5)
