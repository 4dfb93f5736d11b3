"""The loss of the next token, without ever holding all logits."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from me_jax.analysis import next_token
from me_jax.models import batch as batch_lib
from me_jax.models import sites
from tests.support import planted

HEADS = {
  'tied': dict(tie_word_embeddings=True),
  'untied': {},
  'soft cap': dict(final_logit_softcapping=2.0),
}


@pytest.mark.parametrize('head', HEADS)
def test_loss_and_top_token_are_those_of_the_logits(head):
  model, params = planted.build([], **HEADS[head])
  watch = sites.Capture('resid_post', 'x')  # an observer, whichever
  model = model.clone(sites=sites.Sites(observers=(watch,)))
  batch = batch_lib.make_batch(
    planted.texts(5, length=40), pack=True, length=90
  )
  operands = {'x': np.array([0])}
  found, seen = next_token.score(model, params, *batch, operands)
  assert seen['x'].shape == (1, *batch.tokens_BT.shape, planted.WIDTH)
  with jax.default_matmul_precision('highest'):
    logits = model.apply({'params': params}, *batch, operands).logits
  logits = np.asarray(logits, np.float64)
  log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  counted = next_token.targets(batch, None)
  for row, t in np.argwhere(counted):
    want = -log_probs[row, t, batch.tokens_BT[row, t + 1]]
    assert found['loss'][row, t] == pytest.approx(want, rel=1e-6, abs=1e-5)
    assert found['top'][row, t] == logits[row, t].argmax()


def test_what_is_predicted():
  bos = planted.BOS
  batch = batch_lib.Batch(
    np.array([[0, bos, 5, 6, bos, 7, 8, bos], [bos, 4, bos, 5, 6, 0, 0, 0]]),
    np.array([[0, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 0, 0, 0]]),
  )
  # Not the padding, not another text's first token, not BOS.
  want = [[0, 1, 1, 0, 1, 1, 0, 0], [1, 0, 1, 1, 0, 0, 0, 0]]
  np.testing.assert_array_equal(next_token.targets(batch, bos), want)
  want[1][1] = 1
  np.testing.assert_array_equal(next_token.targets(batch, None), want)
