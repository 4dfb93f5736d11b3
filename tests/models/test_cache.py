"""Decoding through a cache gives what whole texts give, mitigated or not."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.models import batch as batch_lib
from me_jax.models import cache as cache_lib
from me_jax.models import config as config_lib
from me_jax.models import params as params_lib
from tests.support import planted

PLANTS = [planted.Plant(4, 7, 9, 5000.0)]
ARCHITECTURES = {
  'llama': {},
  'windows, norms of queries and keys': dict(
    norm_placement='sandwich', norm_offset=1.0, qk_norm='head',
    sliding_window=4, layer_windowed=(True, False) * 4,
    rope_local=config_lib.RopeConfig(theta=100.0), attention_bias=True,
  ),
  'norms after the branches': dict(
    norm_placement='post', qk_norm='projection', rope_in_float32=True
  ),
}  # fmt: skip
PROMPTS, NEW = (5, 9, 1), 7


def masked(params: dict) -> dict:
  """Returns the parameters with half of the channels masked after layer 4."""
  scale = np.ones((planted.LAYERS, planted.WIDTH), np.float32)
  scale[5:, ::2] = 0.0
  return {**params, 'layers': {**params['layers'], 'sink_scale': scale}}


def decode(model, params, texts, pad_side, chunk=1):
  """Returns the logits of every token, from a prompt and steps after it."""
  prompts = [text[:count] for text, count in zip(texts, PROMPTS)]
  batch = batch_lib.make_batch(prompts, pad_side=pad_side)
  rows, time = batch.tokens_BT.shape
  apply = jax.jit(functools.partial(model.apply, {'params': params}))
  cache = cache_lib.empty(
    model.config, rows, time + NEW, model.dtype, stacked=model.scanned
  )
  out = apply(*batch, cache=cache)
  found = [
    [out.logits[b, batch.segments_BT[b] > 0]] for b in range(rows)
  ]  # fmt: skip
  for i in range(0, NEW, chunk):
    step = np.array([t[n + i : n + i + chunk] for t, n in zip(texts, PROMPTS)])
    out = apply(step, np.ones_like(step), cache=out.cache)
    for b in range(rows):
      found[b].append(out.logits[b])
  return [np.concatenate(row) for row in found]


@pytest.mark.parametrize(
  ('name', 'pad_side', 'scanned'),
  [
    ('llama', 'left', True),
    ('windows, norms of queries and keys', 'right', True),
    ('windows, norms of queries and keys', 'left', False),
    ('norms after the branches', 'right', False),
  ],
)
def test_decoding_equals_the_whole_text_at_every_step(name, pad_side, scanned):
  model, params = planted.build(PLANTS, **ARCHITECTURES[name])
  params = masked(params)
  texts = [
    text[: count + NEW]
    for text, count in zip(planted.texts(3, length=20), PROMPTS)
  ]
  batch = batch_lib.make_batch(texts)
  logits_BTV = jax.jit(model.apply)({'params': params}, *batch).logits
  whole = [logits_BTV[b, batch.segments_BT[b] > 0] for b in range(len(texts))]
  if not scanned:
    model, params = (
      model.clone(scanned=False),
      params_lib.unstack_layers(params),
    )
  found = decode(model, params, texts, pad_side)
  for ours, theirs in zip(found, whole):
    np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=2e-4)


def test_several_tokens_at_a_time():
  model, params = planted.build(PLANTS)
  texts = [
    text[: count + NEW]
    for text, count in zip(planted.texts(3, length=20), PROMPTS)
  ]
  one = decode(model, params, texts, 'left')
  seven = decode(model, params, texts, 'left', chunk=NEW)
  for a, b in zip(one, seven):
    np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-4)


def test_a_row_of_segment_0_stands_still():
  model, params = planted.build(PLANTS)
  text = planted.texts(1)[0]
  apply = jax.jit(functools.partial(model.apply, {'params': params}))
  cache = cache_lib.empty(model.config, 1, 16, model.dtype)
  out = apply(np.array([text[:6]]), cache=cache)
  plain = apply(np.array([text[6:7]]), cache=out.cache).logits
  out = apply(np.array([[3]]), np.zeros((1, 1), np.int32), cache=out.cache)
  late = apply(np.array([text[6:7]]), cache=out.cache).logits
  np.testing.assert_allclose(late, plain, atol=1e-5)


def test_the_step_of_decoding_does_not_know_the_mask():
  model, params = planted.build(PLANTS)
  cache = cache_lib.empty(model.config, 2, 16, model.dtype)
  cache = cache.replace(started=True)

  @jax.jit
  def step(params, tokens, cache):
    return model.apply({'params': params}, tokens, cache=cache)

  tokens = jnp.ones((2, 1), jnp.int32)
  # Before XLA: what is compiled names source lines, which differ.
  programs = [
    step.lower(tree, tokens, cache).as_text()
    for tree in (params, masked(params))
  ]
  assert programs[0] == programs[1]
