"""NaN and infinities are seen, wherever they hide."""

from __future__ import annotations

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from me_jax.checkpoints import finite


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('shape', [(48, 32), (1000,), (3, 64, 33)])
@pytest.mark.parametrize('where', ['host', 'jax', 'device'])
def test_one_bad_value_is_seen_at_any_place(monkeypatch, dtype, shape, where):
  monkeypatch.setattr(finite, '_PIECE', 100)
  if where == 'device':
    monkeypatch.setattr(finite, '_host_pieces', lambda leaf: None)
  rng = np.random.default_rng(0)
  good = rng.standard_normal(shape).astype(dtype)
  place = (lambda x: x) if where == 'host' else jnp.asarray
  assert finite.offenders({'b': place(good), 'a': place(-good)}) == []
  for bad in (np.nan, np.inf, -np.inf):
    for index in (0, good.size - 1, rng.integers(good.size)):
      broken = good.copy()
      broken.reshape(-1)[index] = bad
      leaves = {'b': place(broken), 'a': place(good)}
      assert finite.offenders(leaves) == ['b']


def test_sixteen_bit_infinities_are_seen():
  for dtype in finite._EXPONENT:
    largest = np.full(3, np.finfo(np.float16).max, np.float32).astype(dtype)
    assert finite.all_finite(largest)
    assert finite.all_finite(-largest)
    assert finite.all_finite(largest[:0])
    for bad in (np.inf, -np.inf, np.nan):
      assert not finite.all_finite(np.append(largest, largest.dtype.type(bad)))
