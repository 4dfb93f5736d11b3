"""Cosines across inputs and layers, and the sample they are taken of."""

from __future__ import annotations

import numpy as np
import pytest

from me_jax.analysis import rigidity


def states(count, layers=3, width=5, seed=0):
  random = np.random.default_rng(seed)
  return random.normal(size=(count, layers, width)).astype(np.float32)


def test_cosines_of_all_pairs():
  values_KLD = states(6)
  found = rigidity.cosines(values_KLD)
  for layer in range(3):
    pairs = [
      np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
      for i, a in enumerate(values_KLD[:, layer])
      for b in values_KLD[i + 1 :, layer]
    ]
    assert found.mean_L[layer] == pytest.approx(np.mean(pairs), abs=1e-6)
    expected = np.quantile(pairs, rigidity.QUANTILES)
    np.testing.assert_allclose(
      found.quantiles_QL[:, layer], expected, atol=1e-6
    )
  assert found.inputs == 6


def test_one_input_has_no_pair():
  found = rigidity.cosines(states(1))
  assert found.inputs == 1 and np.isnan(found.mean_L).all()


def test_cosines_between_layers():
  state_XLD = states(2)
  found = rigidity.between_layers(state_XLD)
  a, b = state_XLD[1, 0], state_XLD[1, 2]
  expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  assert found[1, 0, 2] == pytest.approx(expected, abs=1e-6)
  np.testing.assert_allclose(found[:, range(3), range(3)], 1, atol=1e-9)


@pytest.mark.parametrize('parts', [1, 3, 10])
def test_the_sample_depends_on_neither_order_nor_batches(parts):
  """Twenty texts, ten of them different; the seven smallest hashes stay."""
  ids = [[i % 10, 7] for i in range(20)]
  value_KLD = states(10)[[i % 10 for i in range(20)]]
  order = np.random.default_rng(parts).permutation(20)
  sample = None
  for part in np.array_split(order, parts):
    keys = [rigidity.key(ids[i]) for i in part]
    values = value_KLD[part]
    sample = rigidity.add(sample, keys, values, 2 * values, 7)
  expected = sorted(
    {rigidity.key(i): n for n, i in enumerate(ids[:10])}.items()
  )
  assert sample.keys == tuple(k for k, _ in expected[:7])
  numbers = [n for _, n in expected[:7]]
  np.testing.assert_array_equal(sample.state_KLD, value_KLD[numbers])
  np.testing.assert_array_equal(sample.attn_in_KLD, 2 * value_KLD[numbers])


def test_an_input_is_its_ids():
  assert rigidity.key([1, 2]) == rigidity.key(np.array([1, 2], np.int64))
  assert len({rigidity.key(x) for x in ([1], [1, 2], [2, 1], [258])}) == 4
