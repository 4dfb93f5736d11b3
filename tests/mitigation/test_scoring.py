"""Losses text by text, against a loop in float64, and their gradient."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

import me_jax
from me_jax.mitigation import scoring
from me_jax.mitigation import wemask
from me_jax.models import batch as batch_lib
from me_jax.models import decoder
from tests.support import planted

BOS = planted.BOS
_random = np.random.default_rng(0)
# Token ids and how many come before the answer.
TEXTS = [
  ([BOS, *_random.integers(2, planted.VOCAB, n).tolist()], before)
  for n, before in ((20, 0), (3, 2), (40, 33), (1, 1), (40, 0), (9, 9), (60, 0))
]
# A text three times, with answers that start elsewhere; and BOS once more.
TEXTS += [(TEXTS[0][0], 7), (TEXTS[0][0], 0)]
TEXTS += [([5, BOS, 6, 7, BOS, BOS, 8], 2), ([BOS, *range(2, 49)], 0)]
_apply = jax.jit(decoder.Decoder.apply, static_argnums=0)


@pytest.fixture(scope='module', name='masked')
def _masked():
  """A model with a mask that matters, at massive tokens after layer 4."""
  model, params = planted.build([planted.Plant(4, 7, 9, 5000.0)])
  for name in ('k_proj', 'v_proj', 'o_proj'):
    kernel = params['layers']['self_attn'][name]
    kernel['kernel'] = kernel['kernel'] * 6
  params['lm_head']['kernel'] = params['lm_head']['kernel'] * 8
  norm = params['layers']['input_layernorm']
  norm['weight'] = norm['weight'].at[:, :9].set(0.5)
  return model, wemask.wemask(
    model, params, planted.report(), strength=0.5, tokens='massive'
  )


@pytest.fixture(scope='module', name='laid')
def _laid():
  with pytest.MonkeyPatch.context() as patch:
    # Several passes, the last with rows of padding.
    patch.setattr(scoring, '_PASS', 128)
    laid = scoring.lay_out(TEXTS, bos_token_id=BOS)
  assert laid.rows == 2 and len(laid.counted_BT) == 5
  return laid


@pytest.fixture(scope='module', name='expected')
def _expected(masked):
  """Sums over texts and answers, each text in a row of its own."""
  model, params = masked
  batch = batch_lib.make_batch([ids for ids, _ in TEXTS])
  logits = np.asarray(
    _apply(model, {'params': params}, *batch).logits, np.float64
  )
  sums = np.zeros((len(TEXTS), 2))
  counts = np.zeros((len(TEXTS), 2), int)
  for x, (ids, before) in enumerate(TEXTS):
    for t in range(1, len(ids)):
      if ids[t] == BOS:
        continue
      row = logits[x, t - 1]
      loss = np.log(np.exp(row - row.max()).sum()) + row.max() - row[ids[t]]
      here = [True, t >= before]
      sums[x] += np.where(here, loss, 0)
      counts[x] += here
  return sums, counts


def test_sums_are_those_of_each_text_alone(masked, laid, expected):
  sums, counts = expected
  losses_BT = scoring.losses(*masked, laid)
  assert losses_BT.shape == laid.counted_BT.shape
  assert laid.tokens_X.tolist() == counts[:, 0].tolist()
  assert laid.answers_X.tolist() == counts[:, 1].tolist()
  np.testing.assert_allclose(laid.sums(losses_BT), sums[:, 0], rtol=1e-5)
  np.testing.assert_allclose(laid.answer_sums(losses_BT), sums[:, 1], rtol=1e-5)
  # The same text has the same loss, and three different answers.
  assert sums[0, 0] == pytest.approx(sums[8, 0])
  assert sums[7, 1] < sums[0, 1]


def test_order_and_packing_change_nothing(masked, laid, expected):
  sums, _ = expected
  order = np.random.default_rng(1).permutation(len(TEXTS))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(scoring, '_PASS', 128)
    other = scoring.lay_out([TEXTS[x] for x in order], bos_token_id=BOS)
    some = scoring.lay_out([TEXTS[x] for x in (3, 6)], bos_token_id=BOS)
  losses_BT = scoring.losses(*masked, other)
  np.testing.assert_allclose(other.sums(losses_BT), sums[order, 0], rtol=1e-5)
  np.testing.assert_allclose(
    other.answer_sums(losses_BT), sums[order, 1], rtol=1e-5
  )
  np.testing.assert_allclose(
    some.sums(scoring.losses(*masked, some)), sums[[3, 6], 0], rtol=1e-5
  )
  for texts, given in ((laid, range(len(TEXTS))), (other, order)):
    # Every token of every text, once.
    found = {
      x: texts.batch.tokens_BT[texts.text_BT == x].tolist()
      for x in range(len(TEXTS))
    }
    assert found == {i: TEXTS[x][0] for i, x in enumerate(given)}


def test_rows_have_few_lengths():
  for length, row in ((None, 64), (64, 64), (65, 128), (3, 64)):
    laid = scoring.lay_out(TEXTS, length=length)
    assert laid.batch.tokens_BT.shape[1] == row
  long = scoring.lay_out([([5] * 1500, 0)])
  assert long.rows == 1 and long.batch.tokens_BT.shape == (1, 1536)
  # Without a BOS to leave out, all but the first token are predicted.
  assert laid.tokens_X.tolist() == [len(ids) - 1 for ids, _ in TEXTS]


def test_progress_is_told(masked, laid):
  told = []
  scoring.losses(*masked, laid, lambda *step: told.append(step))
  assert told == [(2, 5), (4, 5), (5, 5)]


def test_the_mean_and_its_gradient(masked, laid, expected):
  sums, counts = expected
  model, params = masked
  starts = range(0, 5, laid.rows)
  mean, gradient_LD = scoring.mean_and_gradient(model, params, laid, starts)
  assert mean == pytest.approx(sums[:, 0].sum() / counts[:, 0].sum(), rel=1e-5)
  # The mask acts after layer 4 alone, and nowhere else can it change a loss.
  assert (gradient_LD[:5] == 0).all()
  assert (np.abs(gradient_LD[5:]).max(axis=1) > 1e-4).all()

  scale_LD = np.asarray(params['layers']['sink_scale'], np.float64)

  def loss(step_LD):
    tree = wemask.with_scale(params, scale_LD + step_LD)
    return laid.sums(scoring.losses(model, tree, laid)).sum()

  def slope(direction_LD, size=0.02):
    ahead, behind = loss(size * direction_LD), loss(-size * direction_LD)
    return (ahead - behind) / (2 * size) / counts[:, 0].sum()

  for layer in (5, 6, 7):
    direction_LD = np.zeros_like(gradient_LD)
    direction_LD[layer] = gradient_LD[layer]
    length = np.linalg.norm(direction_LD)
    assert slope(direction_LD / length) == pytest.approx(length, rel=0.02)
  at = np.unravel_index(np.abs(gradient_LD).argmax(), gradient_LD.shape)
  one_LD = np.zeros_like(gradient_LD)
  one_LD[at] = 1.0
  assert slope(one_LD) == pytest.approx(gradient_LD[at], rel=0.02)


def test_some_passes_are_a_mean_of_their_own(masked, laid):
  losses_BT = scoring.losses(*masked, laid).astype(np.float64)
  parts = []
  for start in (0, 2, 4):
    mean, gradient_LD = scoring.mean_and_gradient(*masked, laid, [start])
    here = slice(start, start + 2)
    counted = laid.counted_BT[here]
    assert mean == pytest.approx(losses_BT[here][counted].mean(), rel=1e-5)
    parts.append(gradient_LD * counted.sum())
  _, whole_LD = scoring.mean_and_gradient(*masked, laid, iter((0, 2, 4)))
  np.testing.assert_allclose(
    sum(parts) / laid.counted_BT.sum(), whole_LD, rtol=1e-9
  )


@pytest.mark.parametrize(
  ('texts', 'words'),
  [
    ([], 'there is no text to score'),
    ([([5, 6], 0), ([5], 0)], 'text 2 has no token to predict'),
    ([([5, 6], 0), ([], 0), ([7, 8], 0)], 'text 2 is empty'),
    ([([5, BOS], 0)], 'text 1 has no token to predict'),
    ([([5, 6, 7], 0), ([5, 6, 7], 3)], 'has no token to predict'),
  ],
)
def test_texts_without_a_prediction_are_refused(texts, words):
  lay_out = functools.partial(scoring.lay_out, bos_token_id=BOS)
  with pytest.raises(me_jax.MeJaxError, match=words) as caught:
    lay_out(texts)
  assert '\n' not in str(caught.value)
