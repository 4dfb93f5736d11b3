"""The divergence of two trees, against float64 NumPy."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import me_jax
from me_jax.mitigation import fidelity
from me_jax.models import batch as batch_lib
from tests.support import planted

TEXTS = [*planted.texts(3, length=9), *planted.texts(3, length=4, seed=5)]


@pytest.fixture(scope='module', name='trees')
def _trees():
  model, params = planted.build([], final_logit_softcapping=30.0)
  scale = np.ones((planted.LAYERS, planted.WIDTH), np.float32)
  scale[2:] = 0.2
  # Larger logits, so that predictions differ visibly.
  params['lm_head']['kernel'] = params['lm_head']['kernel'] * 20
  layers = {**params['layers'], 'sink_scale': scale}
  return model, params, {**params, 'layers': layers}


def log_probs(model, params, text):
  out = jax.jit(model.apply)({'params': params}, np.array([text]))
  logits = np.asarray(out.logits[0], np.float64)
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize('rows', [None, 1, 2])
def test_equals_float64(trees, rows):
  model, a, b = trees
  batch = batch_lib.make_batch(TEXTS, pack=True, length=16, pad_side='left')
  found = fidelity.kl(model, a, b, batch, rows=rows)
  spans = batch_lib.text_spans(batch.segments_BT)
  assert len(found.kl_X) == len(TEXTS) == len(spans.row)
  for i, (row, start, length, _) in enumerate(zip(*spans)):
    text = batch.tokens_BT[row, start : start + length]
    log_a, log_b = (log_probs(model, x, text)[:-1] for x in (a, b))
    after = np.arange(length - 1), text[1:]
    assert found.tokens_X[i] == length - 1
    expected = (np.exp(log_a) * (log_a - log_b)).sum()
    assert expected > 1e-3
    assert found.kl_X[i] == pytest.approx(expected, rel=1e-3)
    assert found.loss_a_X[i] == pytest.approx(-log_a[after].sum(), rel=1e-5)
    assert found.loss_b_X[i] == pytest.approx(-log_b[after].sum(), rel=1e-5)
  assert found.kl == pytest.approx(found.kl_X.sum() / found.tokens_X.sum())


def test_a_tree_does_not_differ_from_itself(trees):
  model, _, b = trees
  found = fidelity.kl(model, b, b, batch_lib.make_batch(TEXTS))
  assert np.abs(found.kl_X).max() < 1e-6
  np.testing.assert_array_equal(found.loss_a_X, found.loss_b_X)


def test_refuses_texts_without_a_prediction(trees):
  model, a, b = trees
  with pytest.raises(me_jax.MeJaxError, match='two tokens'):
    fidelity.kl(model, a, b, batch_lib.make_batch([[5], [6]]))
