"""Spectra against singular values in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.analysis import spectrum


def reference(x_MD):
  """Returns entropy, stable rank, anisotropy and participation."""
  energy = np.linalg.svd(x_MD.astype(np.float64), compute_uv=False) ** 2
  if not energy.sum():
    return 0.0, 0.0, 0.0, 0.0
  p = energy / energy.sum()
  entropy = -np.sum(p[p > 0] * np.log(p[p > 0]))
  return entropy, 1 / p.max(), p.max(), 1 / np.sum(p**2)


def measure(x_XMD):
  with jax.default_matmul_precision('highest'):
    found = jax.jit(spectrum.diversity)(x_XMD)
  return jax.tree.map(np.asarray, found)


def sets(count, width, decay=2.0, seed=0):
  """Returns vectors with decaying energy, the first of them huge."""
  random = np.random.default_rng(seed)
  x = random.normal(size=(4, count, width)) * np.logspace(0, -decay, width)
  x[:, 0, 0] *= 30
  x[1, count // 2 :] = 0
  return x.astype(np.float32)


@pytest.mark.parametrize('shape', [(1, 8), (2, 8), (3, 8), (40, 64), (70, 30)])
def test_equals_singular_values_with_and_without_the_first(shape):
  x_XMD = sets(*shape)
  found = measure(x_XMD)
  for i, x_MD in enumerate(x_XMD):
    for k, part in enumerate((x_MD, x_MD[1:])):
      entropy, stable, anisotropy, participation = reference(part)
      assert found.entropy[i, k] == pytest.approx(entropy, abs=1e-3)
      assert found.stable_rank[i, k] == pytest.approx(stable, rel=1e-5)
      assert found.anisotropy[i, k] == pytest.approx(anisotropy, rel=1e-5)
      assert found.participation[i, k] == pytest.approx(participation, rel=1e-4)
    rest = np.delete(x_MD, slice(1, 2), axis=0)
    expected = reference(rest)[3]
    assert found.participation[i, 2] == pytest.approx(expected, rel=1e-4)


def test_vectors_of_known_rank():
  """Five directions of equal energy: every rank is five."""
  x_XMD = np.eye(16, dtype=np.float32)[np.arange(20) % 5][None] * 7
  found = measure(x_XMD)
  assert found.entropy[0, 0] == pytest.approx(np.log(5), abs=1e-3)
  assert found.stable_rank[0, 0] == pytest.approx(5, rel=1e-4)
  assert found.participation[0, 0] == pytest.approx(5, rel=1e-4)
  # Without the first, one of the directions has three vectors and not four.
  p = np.array([3, 4, 4, 4, 4]) / 19
  assert found.entropy[0, 1] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-3)


def test_nothing_has_no_rank():
  found = measure(np.zeros((2, 6, 8), np.float32))
  for value in found:
    assert (value == 0).all()


@pytest.mark.parametrize('count', [3, 40])
def test_plain_jax_reduces_as_lapack_does(count):
  """What runs where there is no LAPACK."""
  x_XMD = jnp.asarray(sets(count, 64, decay=0.5))
  with jax.default_matmul_precision('highest'):
    gram = jnp.einsum('XMD,XND->XMN', x_XMD, x_XMD)
    ours = spectrum._householder(gram)
    theirs = spectrum._tridiagonal(gram)
  for i in range(len(gram)):
    for cut in (0, 1):
      spectra = []
      for diagonal, off in (ours, theirs):
        full = np.diag(np.asarray(diagonal[i], np.float64))
        full += np.diag(np.asarray(off[i], np.float64), -1)
        spectra.append(np.linalg.eigvalsh(full[cut:, cut:]))
      spectra.append(np.linalg.eigvalsh(np.asarray(gram[i])[cut:, cut:]))
      for other in spectra[1:]:
        np.testing.assert_allclose(
          spectra[0], other, atol=3e-6 * max(spectra[0][-1], 1e-6)
        )
