"""Scores of wanted columns alone against scores of all columns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.training import column_scan
from me_jax.training import vocabulary_scan

B, T, D, V = 3, 12, 8, 20
WANTED = {
  'none': np.zeros((B, T), bool),
  'all': np.ones((B, T), bool),
  'some': np.random.default_rng(1).random((B, T)) < 0.4,
  'one row': np.arange(B * T).reshape(B, T) >= (B - 1) * T,
}


def how(entropy=True):
  return vocabulary_scan.How(
    tied=True,
    size=V,
    width=6,  # the last chunk reaches back
    steps=4,
    softcap=0.0,
    temperature=0.7,
    entropy=entropy,
    precision=None,
  )


def inputs():
  random = np.random.default_rng(0)
  return (
    random.normal(0, 1, (1, V, D)).astype(np.float32),
    random.normal(0, 1, (B, T, D)).astype(np.float32),
    random.integers(0, V, (B, T)).astype(np.int32),
  )


@pytest.mark.parametrize('wanted', WANTED)
@pytest.mark.parametrize('entropy', [True, False])
def test_wanted_columns_are_scored_as_all_are(wanted, entropy):
  head, hidden_BTD, targets_BT = inputs()
  wanted_BT = WANTED[wanted]
  by_BT = np.random.default_rng(2).normal(0, 1, (2, B, T)).astype(np.float32)

  def of(score):
    def function(head, hidden_BTD):
      found = score(head, jnp.where(wanted_BT[..., None], hidden_BTD, 0))
      found = jax.tree.map(lambda x: jnp.where(wanted_BT, x, 0), found)
      return sum(jnp.sum(b * x) for b, x in zip(by_BT, jax.tree.leaves(found)))

    return jax.jit(jax.value_and_grad(function, (0, 1)))(head, hidden_BTD)

  want = of(
    lambda *args: vocabulary_scan.score(how(entropy), *args, targets_BT)
  )
  found = of(
    lambda *args: column_scan.score(
      how(entropy), 4, *args, targets_BT, wanted_BT
    )
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    found,
    want,
  )


@pytest.mark.parametrize(('most', 'blocks'), [(0, 0), (3, 1), (4, 2), (12, 4)])
def test_work_goes_by_the_row_with_the_most_wanted_columns(
  monkeypatch, most, blocks
):
  done = []

  def counted(name):
    original = getattr(vocabulary_scan, name)

    def call(*args):
      jax.debug.callback(lambda: done.append(name))
      return original(*args)

    monkeypatch.setattr(vocabulary_scan, name, call)

  counted('forward')
  counted('backward')
  head, hidden_BTD, targets_BT = inputs()
  wanted_BT = np.zeros((B, T), bool)
  wanted_BT[0, 1:3] = most > 2
  wanted_BT[1, T - most :] = True

  def total(hidden_BTD):
    scores = column_scan.score(
      how(), 4, head, hidden_BTD, targets_BT, wanted_BT
    )
    return jnp.sum(scores.logp_BT)

  jax.block_until_ready(jax.jit(jax.grad(total))(hidden_BTD))
  jax.effects_barrier()
  assert done.count('forward') == done.count('backward') == blocks
