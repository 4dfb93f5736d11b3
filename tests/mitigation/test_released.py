"""The published code's mask is reproduced, and so are its faults."""

from __future__ import annotations

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax import errors
from me_jax.mitigation import activation
from me_jax.mitigation import released as released_lib
from me_jax.models import batch as batch_lib
from me_jax.models import cache as cache_lib
from me_jax.models import sites
from tests.support import planted
from tests.support import released
from tests.support import tiny

PLANTS = [planted.Plant(4, 7, 9, 5000.0)]
MASK = dict(layers=(5, 6, 7), count=32)
STEPS = 6


def decode(model, params, batch, steps=STEPS, forced=None):
  """Decodes greedily, or what is forced, through our cache.

  Returns:
    The prompt's logits `[B, T, V]` and those of the steps `[B, steps, V]`.
  """
  apply = jax.jit(functools.partial(model.apply, {'params': params}))
  rows, time = batch.tokens_BT.shape
  cache = cache_lib.empty(model.config, rows, time + steps, model.dtype)
  out = apply(*batch, cache=cache)
  prompt, found = np.asarray(out.logits), []
  for i in range(steps):
    token_B = np.argmax(out.logits[:, -1], axis=-1)
    token_B = token_B if forced is None else forced[:, i]
    out = apply(token_B[:, None], cache=out.cache)
    found.append(np.asarray(out.logits))
  return prompt, np.concatenate(found, axis=1)


def whole(model, params, batch):
  return np.asarray(jax.jit(model.apply)({'params': params}, *batch).logits)


def with_leaf(model, params, batch, strength=1.0):
  masked_LD = activation.select(
    model, params, batch, MASK['layers'], MASK['count'], strength
  )
  scale = np.where(masked_LD, np.float32(1.0 - strength), np.float32(1.0))
  return {**params, 'layers': {**params['layers'], 'sink_scale': scale}}


def lively():
  """Returns a planted model whose attention matters to its logits."""
  model, params = planted.build(PLANTS)
  attention = params['layers']['self_attn']
  for name in ('v_proj', 'o_proj'):
    attention[name]['kernel'] = attention[name]['kernel'] * 8.0
  return model, params


@pytest.mark.skipif(
  importlib.util.find_spec('torch') is None,
  reason='torch, the reference implementation, is not installed',
)
@pytest.mark.parametrize(
  ('lengths', 'strength'), [((9, 9, 9), 1.0), ((5, 9, 1), 0.6)]
)
def test_prompt_and_steps_equal_the_published_mask(lengths, strength, tmp_path):
  hf = released.hf_model()
  lm = tiny.loaded(hf, tmp_path)
  random = np.random.default_rng(3)
  texts = [random.integers(3, 101, length).tolist() for length in lengths]
  batch = batch_lib.make_batch(texts, pad_side='left')
  layers, count = (1, 2, 4), 12
  theirs_of = functools.partial(
    released.decode, hf, batch.tokens_BT, batch.segments_BT > 0, STEPS
  )
  with released.masked(hf, layers, count, strength) as seen:
    theirs = theirs_of()
  assert len(seen) == len(layers) * (1 + STEPS)
  model = released_lib.as_released(
    lm.model, layers=layers, count=count, strength=strength
  )
  ours = decode(model, lm.params, batch)
  real_BT = batch.segments_BT > 0
  np.testing.assert_allclose(ours[0][real_BT], theirs[0][real_BT], atol=1e-4)
  np.testing.assert_allclose(ours[1], theirs[1], atol=1e-4)
  for found, unmasked in zip(theirs, theirs_of()):
    assert np.abs(found - unmasked).max() > 0.1


def test_decoding_is_not_what_the_whole_text_gives_but_the_leafs_is():
  model, params = lively()
  batch = planted.batch(count=3, length=6 + STEPS)
  prompt = batch_lib.Batch(*(x[:, :-STEPS] for x in batch))
  forced = batch.tokens_BT[:, -STEPS:]
  faulty = released_lib.as_released(model, **MASK)
  leaf = with_leaf(model, params, prompt)

  one_call = whole(faulty, params, batch)[:, -STEPS:]
  leaf_call = whole(model, leaf, batch)[:, -STEPS:]
  start, faulty_steps = decode(faulty, params, prompt, forced=forced)
  leaf_start, leaf_steps = decode(model, leaf, prompt, forced=forced)
  # As long as index 0 is the first token, both are the same mask ...
  np.testing.assert_allclose(start, leaf_start, atol=1e-4)
  np.testing.assert_allclose(one_call, leaf_call, atol=1e-4)
  # ... and in every step of decoding they are not.
  np.testing.assert_allclose(leaf_steps, leaf_call, atol=1e-4)
  gap_BS = np.abs(faulty_steps - one_call).max(axis=-1)
  assert gap_BS.min() > 0.01


def test_a_text_padded_on_the_left_is_not_masked():
  model, params = lively()
  texts = planted.texts(2)
  texts[1] = texts[1][:5]
  batch = batch_lib.make_batch(texts, pad_side='left')
  real_T = batch.segments_BT[1] > 0
  faulty = released_lib.as_released(model, **MASK)
  stock, found, leaf = (
    whole(model, params, batch),
    whole(faulty, params, batch),
    whole(model, with_leaf(model, params, batch), batch),
  )
  np.testing.assert_allclose(found[1, real_T], stock[1, real_T], atol=1e-5)
  assert np.abs(found[0] - stock[0]).max() > 0.01
  assert np.abs(leaf[1, real_T] - stock[1, real_T]).max() > 0.01


def test_a_text_depends_on_its_neighbours():
  model, params = lively()
  texts = planted.texts(2, bos=False)
  batch = batch_lib.make_batch(texts)
  faulty = released_lib.as_released(model, **MASK)
  alone = whole(faulty, params, batch_lib.make_batch(texts[:1]))
  assert np.abs(whole(faulty, params, batch)[0] - alone[0]).max() > 0.01


def test_observers_and_edits_of_the_model_stay():
  class Shift:
    site = 'attn_in'

    def __call__(self, value, context):
      return value + jnp.asarray(3.0, value.dtype)

  class Given:
    site, name = 'attn_in', 'given'

    def __call__(self, value, context):
      return value

  model, params = planted.build(PLANTS)
  own = model.clone(sites=sites.Sites(observers=(Given(),), edits=(Shift(),)))
  faulty = released_lib.as_released(own, layers=[5], count=planted.WIDTH)
  assert own.sites.edits == faulty.sites.edits[1:]
  apply = jax.jit(faulty.apply, static_argnames='mutable')
  _, state = apply(
    {'params': params}, *planted.batch(count=2), mutable='intermediates'
  )
  given_LBTD = np.asarray(sites.read(state)['given'])
  # Masked first, then shifted: the mask stands where the leaf would.
  threes_LBT = (given_LBTD == 3.0).all(axis=-1)
  assert threes_LBT[5, :, 0].all()
  assert threes_LBT.sum() == 2


def test_nothing_chosen_changes_no_bit():
  model, params = planted.build(PLANTS)
  batch = planted.batch(count=2)
  stock = whole(model, params, batch)
  for mask in (
    dict(layers=(), count=9),
    dict(layers=(5, 6), count=9, strength=0.0),
  ):
    faulty = released_lib.as_released(model, **mask)
    assert (whole(faulty, params, batch) == stock).all()


def test_impossible_masks_are_refused():
  model, _ = planted.build([])
  with pytest.raises(errors.MeJaxError, match='no layer 9'):
    released_lib.as_released(model, layers=[9], count=3)
  with pytest.raises(errors.MeJaxError, match='strength'):
    released_lib.as_released(model, layers=[1], count=3, strength=-0.1)
