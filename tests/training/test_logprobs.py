"""Log-probabilities chunk by chunk against all logits at once."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.analysis import next_token
from me_jax.models import batch as batch_lib
from me_jax.models import decoder
from me_jax.models import params as params_lib
from me_jax.training import logprobs
from tests.support import planted

needs_torch = pytest.mark.skipif(
  importlib.util.find_spec('torch') is None,
  reason='torch, the reference implementation, is not installed',
)
HEADS = {
  'tied': dict(tie_word_embeddings=True),
  'untied': {},
  'soft cap': dict(final_logit_softcapping=2.0),
  'tied soft cap': dict(tie_word_embeddings=True, final_logit_softcapping=2.0),
}
VOCAB, WIDTH = 50, 16
# 1: a token a chunk; 7: the last chunk reaches back; 10: chunks come out even;
# 26: two chunks, of 25; 999: one chunk.
CHUNKS = (1, 7, 10, 26, 999)


def config(head, vocab=VOCAB):
  model, _ = planted.build([], **HEADS[head])
  return dataclasses.replace(model.config, vocab_size=vocab)


def tree(head, table_VD):
  if 'untied' in head or head == 'soft cap':
    return {'lm_head': {'kernel': table_VD.T}}
  return {'embed_tokens': {'embedding': table_VD}}


def inputs(seed=0, size=1.0):
  random = np.random.default_rng(seed)
  table_VD = random.normal(0, size, (VOCAB, WIDTH)).astype(np.float32)
  hidden_BTD = random.normal(0, 1, (2, 5, WIDTH)).astype(np.float32)
  targets_BT = random.integers(0, VOCAB, (2, 5)).astype(np.int32)
  # With chunks of 7 the last reaches back over this one.
  targets_BT[0, 0] = 45
  # What the scores are weighted with to give one number.
  by_BT = random.normal(0, 1, (2, 2, 5)).astype(np.float32)
  return table_VD, hidden_BTD, targets_BT, by_BT


def weighted(head, by_BT, **kwargs):
  """Returns a function from a head and states to a number and the scores."""

  def function(table_VD, hidden_BTD, targets_BT):
    scores = logprobs.token_logprobs(
      config(head, len(table_VD)),
      tree(head, table_VD),
      hidden_BTD,
      targets_BT,
      **kwargs,
    )
    return sum(jnp.sum(b * s) for b, s in zip(by_BT, scores)), scores

  return function


def expected(head, temperature, table_VD, hidden_BTD, targets_BT):
  """The same scores in float64 from all logits."""
  cap = HEADS[head].get('final_logit_softcapping')
  logits = hidden_BTD.astype(float) @ table_VD.astype(float).T
  if cap:
    logits = cap * np.tanh(logits / cap)
  logits = logits / temperature
  logits = logits - logits.max(axis=-1, keepdims=True)
  logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  picked_BT = np.take_along_axis(logp, targets_BT[..., None], axis=2)[..., 0]
  return picked_BT, -(np.exp(logp) * logp).sum(axis=-1)


@pytest.mark.parametrize(('head', 'temperature'), [*zip(HEADS, (1.0, 0.7) * 2)])
def test_chunked_is_whole(head, temperature):
  table_VD, hidden_BTD, targets_BT, by_BT = inputs()
  want = expected(head, temperature, table_VD, hidden_BTD, targets_BT)
  for chunk in CHUNKS:
    function = weighted(head, by_BT, chunk=chunk, temperature=temperature)
    _, scores = function(table_VD, hidden_BTD, targets_BT)
    # Logits of up to 20, whose last digits are 2e-6.
    np.testing.assert_allclose(scores, want, atol=1e-5, err_msg=str(chunk))


@pytest.mark.parametrize(('head', 'temperature'), [*zip(HEADS, (1.0, 0.7) * 2)])
def test_gradients_are_finite_differences(head, temperature):
  table_VD, hidden_BTD, targets_BT, by_BT = inputs(size=0.3)
  random = np.random.default_rng(1)
  for chunk in (7, 999):
    function = weighted(head, by_BT, chunk=chunk, temperature=temperature)
    gradients, _ = jax.grad(function, (0, 1), has_aux=True)(
      table_VD, hidden_BTD, targets_BT
    )
    for which in range(2):
      point = [table_VD.astype(float), hidden_BTD.astype(float)]
      for _ in range(5):
        direction = random.normal(0, 1, point[which].shape)
        ends = []
        for sign in (1, -1):
          moved = list(point)
          moved[which] = point[which] + sign * 1e-5 * direction
          ends.append(
            (by_BT * expected(head, temperature, *moved, targets_BT)).sum()
          )
        want = (ends[0] - ends[1]) / 2e-5
        # The differences have errors of 1e-9, the gradients float32's.
        found = np.sum(np.asarray(gradients[which], float) * direction)
        assert found == pytest.approx(want, rel=1e-4, abs=1e-4)


@needs_torch
@pytest.mark.parametrize('head', ['tied', 'untied'])
def test_cross_entropy_is_torchs(head):
  import torch

  table_VD, hidden_BTD, targets_BT, _ = inputs()
  by_BT = (-np.ones((2, 5)), np.zeros((2, 5)))
  function = weighted(head, by_BT, chunk=7)
  (loss, _), found = jax.value_and_grad(function, (0, 1), has_aux=True)(
    table_VD, hidden_BTD, targets_BT
  )
  leaves = [
    torch.tensor(x, dtype=torch.float64, requires_grad=True)
    for x in (table_VD, hidden_BTD)
  ]
  reference = torch.nn.functional.cross_entropy(
    (leaves[1] @ leaves[0].T).flatten(0, 1),
    torch.tensor(targets_BT).flatten().long(),
    reduction='sum',
  )
  reference.backward()
  assert float(loss) == pytest.approx(reference.item(), rel=1e-6)
  for gradient, leaf in zip(found, leaves):
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize('head', ['tied', 'soft cap'])
def test_bfloat16_is_computed_as_the_decoder_does(head):
  table_VD, hidden_BTD, targets_BT, by_BT = inputs(size=0.3)
  hidden_BTD = jnp.asarray(hidden_BTD, jnp.bfloat16)
  model = decoder.Decoder(config(head), dtype=jnp.bfloat16)

  def whole(table_VD, hidden_BTD):
    logits = next_token.logits(
      model, tree(head, table_VD), hidden_BTD.reshape(-1, WIDTH)
    )
    logp = jax.nn.log_softmax(logits).reshape(2, 5, VOCAB)
    picked = jnp.take_along_axis(logp, targets_BT[..., None], axis=2)[..., 0]
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return jnp.sum(by_BT[0] * picked + by_BT[1] * entropy), (picked, entropy)

  function = weighted(head, by_BT, chunk=7)
  (_, found), given = jax.value_and_grad(function, (0, 1), has_aux=True)(
    table_VD, hidden_BTD, targets_BT
  )
  (_, want), wanted = jax.value_and_grad(whole, (0, 1), has_aux=True)(
    table_VD, hidden_BTD
  )
  # The same products of bfloat16, added up in float32.
  np.testing.assert_allclose(found, want, atol=1e-5)
  assert found.logp_BT.dtype == jnp.float32
  for gradient, reference in zip(given, wanted):
    assert gradient.dtype == reference.dtype
    gradient, reference = (
      np.asarray(x, np.float32) for x in (gradient, reference)
    )
    # bfloat16 has eight bits, which both sides drop in places of their own.
    error = np.linalg.norm(gradient - reference) / np.linalg.norm(reference)
    assert error < 2**-7


@pytest.mark.parametrize('head', ['tied', 'untied'])
def test_memory_of_backward_does_not_grow_with_the_vocabulary(head):
  tokens, chunk = 512, 256

  def memory(vocab, of):
    shape = (WIDTH, vocab) if head == 'untied' else (vocab, WIDTH)
    name = ('lm_head', 'kernel')
    if head == 'tied':
      name = ('embed_tokens', 'embedding')

    def loss(table, hidden_BTD, targets_BT):
      params = {name[0]: {name[1]: table}}
      scores = logprobs.token_logprobs(
        config(head, vocab), params, hidden_BTD, targets_BT, chunk=chunk
      )
      return -jnp.sum(scores.logp_BT)

    lowered = jax.jit(jax.value_and_grad(loss, of)).lower(
      jax.ShapeDtypeStruct(shape, jnp.float32),
      jax.ShapeDtypeStruct((1, tokens, WIDTH), jnp.float32),
      jax.ShapeDtypeStruct((1, tokens), jnp.int32),
    )
    return lowered.compile().memory_analysis()

  small = memory(4096, (0, 1)).temp_size_in_bytes
  # A few arrays of a chunk's logits.
  assert small < 8 * 4 * tokens * chunk
  # The gradient of the head is a result, not a temporary. A frozen head has
  # none. 4096 bytes are for a number or two a chunk.
  for vocab, of in ((16384, (0, 1)), (16381, (0, 1)), (16384, (1,))):
    large = memory(vocab, of)
    assert large.temp_size_in_bytes - small < 4096
    assert (large.output_size_in_bytes >= 4 * vocab * WIDTH) == (0 in of)


def test_precision_reaches_backward():
  table_VD, hidden_BTD, targets_BT, by_BT = inputs()
  function = weighted('tied', by_BT)

  def under_highest(*args):
    with jax.default_matmul_precision('highest'):
      return function(*args)[0]

  # Traced for the gradient after the context is left.
  text = str(
    jax.make_jaxpr(jax.grad(under_highest, (0, 1)))(
      table_VD, hidden_BTD, targets_BT
    )
  )
  assert text.count('dot_general[') == 4
  assert text.count('Precision.HIGHEST') == 2 * 4


@pytest.mark.parametrize('chunk', [7, 999])
def test_extreme_logits_stay_finite(chunk):
  table_VD, hidden_BTD, targets_BT, by_BT = inputs()
  hidden_BTD = hidden_BTD * np.float32(1e6)
  function = weighted('untied', by_BT, chunk=chunk)
  (_, scores), gradients = jax.value_and_grad(function, (0, 1), has_aux=True)(
    table_VD, hidden_BTD, targets_BT
  )
  want = expected('untied', 1.0, table_VD, hidden_BTD, targets_BT)
  # Of logits of 1e7 the last digit is 1.
  np.testing.assert_allclose(scores.logp_BT, want[0], rtol=1e-5, atol=4)
  np.testing.assert_allclose(scores.entropy_BT, 0, atol=1e-5)
  assert want[0].min() < -1e6
  assert all(np.isfinite(x).all() for x in gradients)


def test_large_common_logits_cost_no_digits():
  # The same number in all logits of a column changes no score. Multiples of
  # 1/16 up to 2^18 are exact, so that all that is lost is lost after them.
  table_VD, hidden_BTD, targets_BT, by_BT = inputs()
  table_VD, hidden_BTD = (
    np.round(table_VD * 4) / 4,
    np.round(hidden_BTD * 4) / 4,
  )
  table_VD[:, 0] = 1.0
  shifted_BTD = hidden_BTD.copy()
  hidden_BTD[..., 0], shifted_BTD[..., 0] = 0.0, 2.0**18
  function = jax.grad(weighted('tied', by_BT, chunk=7), 1, has_aux=True)
  (wanted, want), (given, found) = (
    function(table_VD, x, targets_BT) for x in (hidden_BTD, shifted_BTD)
  )
  np.testing.assert_allclose(found, want, atol=1e-6)
  np.testing.assert_allclose(given, wanted, atol=1e-5)
  assert np.ptp(want.logp_BT) > 1


@pytest.mark.parametrize('head', ['tied', 'untied'])
def test_unwanted_columns_have_no_influence(head):
  table_VD, hidden_BTD, targets_BT, by_BT = inputs()
  wanted_BT = np.random.default_rng(2).random((2, 5)) < 0.5
  assert 0 < wanted_BT.sum() < wanted_BT.size
  function = weighted(head, by_BT, chunk=7, wanted_BT=wanted_BT)
  grad = jax.value_and_grad(function, (0, 1), has_aux=True)
  want = grad(table_VD, hidden_BTD, targets_BT)
  assert (np.asarray(want[0][1])[:, ~wanted_BT] == 0).all()
  # Copies: jax may still be reading the arrays themselves.
  hidden_BTD, targets_BT = hidden_BTD.copy(), targets_BT.copy()
  hidden_BTD[~wanted_BT], targets_BT[~wanted_BT] = np.nan, -100
  found = grad(table_VD, hidden_BTD, targets_BT)
  jax.tree.map(np.testing.assert_array_equal, found, want)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(want))
  assert (np.asarray(found[1][1])[~wanted_BT] == 0).all()


@pytest.mark.parametrize('target', [-1, VOCAB])
def test_a_target_outside_of_the_vocabulary_is_impossible(target):
  table_VD, hidden_BTD, targets_BT, by_BT = inputs()
  targets_BT[1, 2] = target
  _, scores = weighted('tied', by_BT, chunk=7)(table_VD, hidden_BTD, targets_BT)
  assert scores.logp_BT[1, 2] == -np.inf
  assert np.isfinite(scores.logp_BT).sum() == targets_BT.size - 1


@pytest.mark.parametrize(
  ('setting', 'message'),
  [
    (dict(chunk=0), 'chunk is 0'),
    (dict(temperature=0), 'temperature is 0'),
    (dict(temperature=float('nan')), 'temperature is nan'),
  ],
)
def test_impossible_settings_are_refused(setting, message):
  table_VD, hidden_BTD, targets_BT, by_BT = inputs()
  with pytest.raises(me_jax.MeJaxError, match=message):
    weighted('tied', by_BT, **setting)(table_VD, hidden_BTD, targets_BT)


@functools.cache
def small():
  """A model of two layers whose logits differ by more than rounding."""
  model, params = planted.build([], bos_channel=2.0, tie_word_embeddings=True)
  model, params = params_lib.first_layers(model, params, 2)
  return model, jax.tree.map(lambda x: x * 5 if x.ndim == 3 else x, params)


@functools.partial(jax.jit, static_argnums=0)
def scored(model, params, batch):
  """Sums a batch's log-probabilities: number, scores and mask, gradient."""

  def function(params):
    scores, mask = logprobs.answer_logprobs(model, params, *batch, chunk=16)
    return jnp.sum(scores.logp_BT), (scores, mask)

  return jax.value_and_grad(function, has_aux=True)(params)


def test_each_column_scores_the_next_token_of_its_text():
  model, params = small()
  texts = planted.texts(4, length=11)
  batch = batch_lib.make_batch(texts, length=20, pad_side='left')
  (_, (scores, mask)), _ = scored(model, params, batch)
  logits = model.apply({'params': params}, *batch).logits
  logp_BTV = np.asarray(jax.nn.log_softmax(logits))
  want = np.zeros(batch.tokens_BT.shape)
  for b, text in enumerate(texts):
    for t in range(len(text) - 1):
      at = 20 - len(text) + t
      want[b, at] = logp_BTV[b, at, text[t + 1]]
  np.testing.assert_allclose(scores.logp_BT, want, atol=1e-5)
  np.testing.assert_array_equal(mask, want != 0)


def test_tokens_that_are_not_wanted_get_no_score_and_change_none():
  model, params = small()
  batch = planted.batch(count=2)
  tokens_BT, segments_BT = (np.asarray(x) for x in batch)
  wanted_BT = np.random.default_rng(3).random(tokens_BT.shape) < 0.5
  scores, mask_BT = logprobs.answer_logprobs(model, params, *batch)
  some, learnt_BT = logprobs.answer_logprobs(
    model, params, *batch, wanted_BT, entropy=False
  )
  expected_BT = np.array(mask_BT)
  # A column scores the token after it.
  expected_BT[:, :-1] &= wanted_BT[:, 1:]
  np.testing.assert_array_equal(learnt_BT, expected_BT)
  assert 0 < expected_BT.sum() < mask_BT.sum()
  np.testing.assert_allclose(
    some.logp_BT, np.where(expected_BT, scores.logp_BT, 0), atol=1e-5
  )
  assert some.entropy_BT is None


def test_packed_rows_are_unpacked_rows():
  model, params = small()
  texts = [t[:n] for t, n in zip(planted.texts(4), (13, 5, 9, 1))]
  packed = batch_lib.make_batch(texts, pack=True, length=20)
  assert len(packed.tokens_BT) == 2
  # Rows of padding alone, as passes of one shape have.
  packed = batch_lib.Batch(*(np.pad(x, ((0, 2), (0, 0))) for x in packed))
  alone = batch_lib.make_batch(texts, length=20)
  (found, (scores, mask)), given = scored(model, params, packed)
  (want, (each, each_mask)), wanted = scored(model, params, alone)
  assert mask.sum() == each_mask.sum() == sum(map(len, texts)) - len(texts)
  np.testing.assert_allclose(found, want, rtol=1e-6)
  np.testing.assert_allclose(
    np.sort(scores.logp_BT[mask]), np.sort(each.logp_BT[each_mask]), atol=1e-5
  )
  # Sums in another order, of gradients of up to ten.
  jax.tree.map(
    lambda f, w: np.testing.assert_allclose(f, w, atol=1e-4), given, wanted
  )


def test_padding_contributes_nothing():
  model, params = small()
  batch = batch_lib.make_batch(planted.texts(4, length=11), length=20)
  want = scored(model, params, batch)
  tokens_BT = batch.tokens_BT.copy()
  # Ids that the model clamps, or reads from the wrong end.
  garbage = np.array([49, 10**6, -7])
  at = batch.segments_BT == 0
  tokens_BT[at] = np.resize(garbage, at.sum())
  found = scored(model, params, batch._replace(tokens_BT=tokens_BT))
  jax.tree.map(np.testing.assert_array_equal, found, want)
  assert np.isfinite(want[0][0])


def test_logits_of_all_columns_never_exist():
  model, params = small()
  batch = batch_lib.make_batch(planted.texts(3), length=20)
  text = str(
    jax.make_jaxpr(lambda p: logprobs.answer_logprobs(model, p, *batch))(params)
  )
  assert f'f32[3,20,{planted.VOCAB}]' not in text
  text = str(
    jax.make_jaxpr(lambda p: model.apply({'params': p}, *batch))(params)
  )
  assert f'f32[3,20,{planted.VOCAB}]' in text
