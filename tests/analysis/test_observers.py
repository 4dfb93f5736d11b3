"""Reductions against plain NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.analysis import observers
from me_jax.models import sites

SEGMENTS = np.array([[0, 1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])


def context(**operands):
  return sites.SiteContext(jnp.int32(0), jnp.asarray(SEGMENTS), operands)


def entries(kind):
  random = np.random.default_rng(0)
  x = random.normal(0, 1, (2, 8, 600)).astype(np.float32)
  if kind == 'spike':
    x[:, 1, 3] = 20_000
  elif kind == 'heavy':
    x = x**3 * random.lognormal(0, 1, (1, 1, 600)).astype(np.float32)
  elif kind == 'scales':
    x *= np.array([1, 1, 1, 1, 30, 30, 1, 1], np.float32)[None, :, None]
  elif kind == 'small':
    x *= 1e-6
  return x


@pytest.mark.parametrize(
  'kind', ['normal', 'spike', 'heavy', 'scales', 'small']
)
def test_text_median_is_close_to_the_sorted_one(kind):
  x = entries(kind)
  members = np.zeros((2, 2, 8), bool)
  members[0, 0], members[0, 1] = SEGMENTS[0] == 1, SEGMENTS[0] == 2
  members[1, 0] = True
  found = observers.TextMedian()(
    jnp.asarray(x),
    context(members=members, positions=np.array([[1, 5], [0, 7]])),
  )
  for row, slot in ((0, 0), (0, 1), (1, 0)):
    exact = np.median(np.abs(x[row][members[row, slot]]))
    assert found[row, slot] == pytest.approx(exact, rel=0.01)


def test_of_a_long_text_the_median_is_of_evenly_spaced_tokens():
  x = entries('scales')
  members = np.zeros((2, 2, 8), bool)
  members[0, 0], members[0, 1] = SEGMENTS[0] == 1, SEGMENTS[0] == 2
  members[1, 0] = True
  found = observers.TextMedian(tokens=3)(
    jnp.asarray(x),
    context(members=members, positions=np.array([[1, 5], [0, 7]])),
  )
  # Texts of three and two tokens are looked at whole, one of eight is not.
  for row, slot, tokens in (
    (0, 0, [1, 2, 3]),
    (0, 1, [4, 5]),
    (1, 0, [0, 2, 5]),
  ):
    exact = np.median(np.abs(x[row, tokens]))
    assert found[row, slot] == pytest.approx(exact, rel=0.01)


def test_norm_and_peak_leave_padding_out():
  x = entries('normal')
  norm = observers.TokenNorm()(jnp.asarray(x), context())
  peak = observers.TokenPeak()(jnp.asarray(x), context())
  real = SEGMENTS > 0
  np.testing.assert_allclose(
    norm[real], np.linalg.norm(x, axis=-1)[real], rtol=1e-5
  )
  np.testing.assert_array_equal(peak[real], np.abs(x).max(-1)[real])
  assert (norm[~real] == 0).all() and (peak[~real] == 0).all()


def test_slices_and_gather_take_the_same():
  x = jnp.asarray(entries('normal'))
  positions = jnp.array([[7, 0, 3], [2, 2, 5]])
  np.testing.assert_array_equal(
    observers._slices(x, positions), observers._gather(x, positions)
  )
