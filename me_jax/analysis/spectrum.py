"""How evenly is the energy of a set of vectors spread over directions?

With sigma_j the singular values of X `[M, D]` and p_j = sigma_j² / sum sigma²:
matrix entropy -sum p log p (nats), effective rank exp(entropy) (Roy and
Vetterli 2007), stable rank |X|² / sigma_1² (Rudelson and Vershynin 2007),
participation ratio 1 / sum p², anisotropy p_1.

All come from the Gram matrix X Xᵀ, whose first vector is special: Householder
reflections that leave it alone make the matrix tridiagonal, and the same
numbers without the first row and column are the tridiagonal form of the Gram
matrix without that vector. One reduction therefore answers for X with and
without it. The spectrum's distribution is read off by counting eigenvalues
below a grid of bounds (Sturm's theorem), which vectorises where an eigenvalue
solver does not.

Letters: X sets, M vectors of a set, D their width, K variants (whole, without
the first), S bounds.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Eigenvalues within 1 % of each other share a bin, from the largest down to
# 1e-7 of it, below which float32 knows nothing.
_BOUNDS = 1600
_SMALLEST = 1e-7
# Three rounds of so many sections find the largest eigenvalue.
_SECTIONS = 128
# Rows of a Gram matrix that are computed at once, up to their own columns.
_GRAM_ROWS, _GRAM_PARTS = 64, 8


class Diversity(NamedTuple):
  """Statistics of a spectrum: whole, then without the first vector.

  Attributes:
    entropy: `[..., 2]`, matrix entropy in nats.
    stable_rank: `[..., 2]`, |X|² over the largest sigma².
    anisotropy: `[..., 2]`, share of the largest sigma².
    participation: `[..., 3]`, participation ratio; thirdly without the second
      vector instead of the first.
  """

  entropy: jax.Array
  stable_rank: jax.Array
  anisotropy: jax.Array
  participation: jax.Array


def diversity(vectors_XMD: jax.Array) -> Diversity:
  """Measures sets of vectors, with and without the first of each.

  Args:
    vectors_XMD: zero vectors count for nothing.

  Returns:
    `[X, ...]` each, float32. The entropy is good to 1e-3 nats: an eigenvalue
    is known to 0.5 %, and the largest and their sum exactly. A set without
    energy has entropy 0 and ranks 0.
  """
  return of_products(products(vectors_XMD))


def products(vectors_XMD: jax.Array) -> jax.Array:
  """Returns X Xᵀ, of which only the lower half is right: `[X, M, M]` float32.

  M is 3 at least.
  """
  # Zero vectors change nothing, and make the smallest sets like all others.
  x_XMD = jnp.pad(
    vectors_XMD, ((0, 0), (0, max(0, 3 - vectors_XMD.shape[1])), (0, 0))
  )
  count = x_XMD.shape[1]
  step = max(_GRAM_ROWS, -(-count // _GRAM_PARTS))
  parts = []
  for start in range(0, count, step):
    stop = min(start + step, count)
    part_XRC = jnp.einsum(
      'XRD,XCD->XRC',
      x_XMD[:, start:stop],
      x_XMD[:, :stop],
      preferred_element_type=jnp.float32,
    )
    parts.append(jnp.pad(part_XRC, ((0, 0), (0, 0), (0, count - stop))))
  return jnp.concatenate(parts, axis=1)


def of_products(gram_XMM: jax.Array) -> Diversity:
  """Returns what `diversity` does, from `products`."""
  diagonal_XM, off_XM = _tridiagonal(gram_XMM)
  # Cutting the first row off is cutting its coupling, and not counting it.
  first = jnp.zeros_like(diagonal_XM).at[:, 0].set(1.0)
  diagonal_XKM = jnp.stack([diagonal_XM, diagonal_XM * (1 - first)], axis=1)
  off_XKM = jnp.stack([off_XM, off_XM.at[:, 0].set(0.0)], axis=1)
  total_XK = jnp.sum(diagonal_XKM, axis=-1)
  square_XK = jnp.sum(diagonal_XKM**2, axis=-1) + 2 * jnp.sum(off_XKM**2, -1)
  square_XK = jnp.where(total_XK > 0, square_XK, 1.0)
  safe_XK = jnp.where(total_XK > 0, total_XK, 1.0)
  largest_XK = _largest(diagonal_XKM, off_XKM)
  largest_XK = jnp.where(total_XK > 0, largest_XK, 1.0)
  entropy_XK = _entropy(
    diagonal_XKM / largest_XK[..., None],
    off_XKM / largest_XK[..., None],
    total_XK / largest_XK,
  )
  return Diversity(
    entropy=jnp.where(total_XK > 0, entropy_XK, 0.0),
    stable_rank=total_XK / largest_XK,
    anisotropy=jnp.where(total_XK > 0, largest_XK / safe_XK, 0.0),
    participation=jnp.concatenate(
      [
        total_XK**2 / square_XK,
        _without_second(gram_XMM, total_XK[:, 0], square_XK[:, 0]),
      ],
      axis=-1,
    ),
  )


def _without_second(
  gram_XMM: jax.Array, total_X: jax.Array, square_X: jax.Array
) -> jax.Array:
  """Returns the participation ratio without a vector, `[X, 1]`.

  It is tr(G)² / |G|², and both lose what stands in the vector's row and column.

  Args:
    gram_XMM: their Gram matrix; its lower half is read.
    total_X: its trace.
    square_X: its squared norm.
  """
  row_XM = gram_XMM[:, :, 1].at[:, 0].set(gram_XMM[:, 1, 0])
  energy_X = row_XM[:, 1]
  total_X = total_X - energy_X
  square_X = square_X - 2 * jnp.sum(row_XM**2, axis=-1) + energy_X**2
  some_X = (total_X > 0) & (square_X > 0)
  return jnp.where(some_X, total_X**2 / jnp.where(some_X, square_X, 1), 0)[
    :, None
  ]


def _tridiagonal(gram_XMM: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns diagonal `[X, M]` and subdiagonal `[X, M - 1]` of a similar matrix.

  Reads the lower half. The first coordinate stays what it is.
  """

  def lapack(gram_XMM: jax.Array) -> tuple[jax.Array, jax.Array]:
    return tuple(jax.lax.linalg.tridiagonal(gram_XMM, lower=True)[1:3])

  return jax.lax.platform_dependent(
    gram_XMM, cpu=lapack, cuda=lapack, rocm=lapack, default=_householder
  )


def _diagonals(matrix_XMM: jax.Array) -> tuple[jax.Array, jax.Array]:
  diagonal_XM = jnp.diagonal(matrix_XMM, axis1=-2, axis2=-1)
  return diagonal_XM, jnp.diagonal(matrix_XMM, -1, axis1=-2, axis2=-1)


def _householder(gram_XMM: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The same in plain JAX, for where there is no LAPACK (TPU)."""
  index_1M = jnp.arange(gram_XMM.shape[-1])[None]
  lower_XMM = jnp.tril(gram_XMM, -1)
  gram_XMM = jnp.tril(gram_XMM) + lower_XMM.swapaxes(1, 2)

  def reflect(k: jax.Array, a_XMM: jax.Array) -> jax.Array:
    column_XM = jax.lax.dynamic_index_in_dim(a_XMM, k, axis=2, keepdims=False)
    x_XM = jnp.where(index_1M > k, column_XM, 0.0)
    next_1M = index_1M == k + 1
    length_X1 = jnp.linalg.norm(x_XM, axis=-1, keepdims=True)
    sign_X1 = jnp.sum(jnp.where(next_1M, x_XM, 0.0), axis=-1, keepdims=True)
    v_XM = x_XM + jnp.where(sign_X1 < 0, -length_X1, length_X1) * next_1M
    norm_X1 = jnp.linalg.norm(v_XM, axis=-1, keepdims=True)
    # A column that is done already needs no reflection.
    v_XM = jnp.where(norm_X1 > 0, v_XM / jnp.where(norm_X1 > 0, norm_X1, 1), 0)
    p_XM = jnp.einsum('XMN,XN->XM', a_XMM, v_XM)
    w_XM = p_XM - jnp.sum(p_XM * v_XM, axis=-1, keepdims=True) * v_XM
    outer_XMM = v_XM[:, :, None] * w_XM[:, None, :]
    return a_XMM - 2 * (outer_XMM + outer_XMM.swapaxes(1, 2))

  done_XMM = jax.lax.fori_loop(0, gram_XMM.shape[-1] - 2, reflect, gram_XMM)
  return _diagonals(done_XMM)


def _count_below(
  diagonal_XKM: jax.Array, off_XKM: jax.Array, bounds_XKS: jax.Array
) -> jax.Array:
  """Counts eigenvalues below bounds: the negative pivots of T - bound."""
  square_XKM = jnp.pad(off_XKM**2, ((0, 0), (0, 0), (1, 0)))
  tiny = jnp.finfo(jnp.float32).tiny

  def pivot(carry, entry):
    last_XKS, count_XKS = carry
    diagonal_XK, square_XK = entry
    # A pivot of zero counts as barely negative.
    last_XKS = jnp.where(jnp.abs(last_XKS) < tiny, -tiny, last_XKS)
    coupling_XKS = square_XK[..., None] / last_XKS
    next_XKS = diagonal_XK[..., None] - bounds_XKS - coupling_XKS
    return (next_XKS, count_XKS + (next_XKS < 0)), None

  start = (jnp.ones_like(bounds_XKS), jnp.zeros(bounds_XKS.shape, jnp.int32))
  entries = (jnp.moveaxis(diagonal_XKM, -1, 0), jnp.moveaxis(square_XKM, -1, 0))
  return jax.lax.scan(pivot, start, entries)[0][1]


def _largest(diagonal_XKM: jax.Array, off_XKM: jax.Array) -> jax.Array:
  """Returns the largest eigenvalue `[X, K]`, to 1e-6 of itself."""
  pads = ((0, 0), (0, 0))
  off_XKM = jnp.abs(off_XKM)
  reach_XKM = jnp.pad(off_XKM, (*pads, (1, 0))) + jnp.pad(
    off_XKM, (*pads, (0, 1))
  )
  high_XK = jnp.max(diagonal_XKM + reach_XKM, axis=-1) * (1 + 1e-6)
  low_XK = jnp.max(diagonal_XKM, axis=-1) * (1 - 1e-6)
  parts_11S = jnp.linspace(0.0, 1.0, _SECTIONS + 1)[None, None]

  def narrow(_, bracket):
    low_XK, high_XK = bracket
    width_XK = high_XK - low_XK
    bounds_XKS = low_XK[..., None] + parts_11S * width_XK[..., None]
    count_XKS = _count_below(diagonal_XKM, off_XKM, bounds_XKS)
    # The first bound that has all eigenvalues below it ends the section.
    all_XKS = count_XKS >= diagonal_XKM.shape[-1]
    last_XK = jnp.argmax(all_XKS.at[..., -1].set(True), axis=-1)
    step_XK = width_XK / _SECTIONS
    return (
      low_XK + jnp.maximum(last_XK - 1, 0) * step_XK,
      low_XK + last_XK * step_XK,
    )

  low_XK, high_XK = jax.lax.fori_loop(0, 3, narrow, (low_XK, high_XK))
  return (low_XK + high_XK) / 2


def _entropy(
  diagonal_XKM: jax.Array, off_XKM: jax.Array, total_XK: jax.Array
) -> jax.Array:
  """Returns the entropy of a spectrum whose largest eigenvalue is one."""
  edges_S = jnp.asarray(np.geomspace(_SMALLEST, 1 - 1e-4, _BOUNDS), jnp.float32)
  bounds_XKS = jnp.broadcast_to(edges_S, (*total_XK.shape, _BOUNDS))
  below_XKS = _count_below(diagonal_XKM, off_XKM, bounds_XKS)
  count_XKS = jnp.diff(below_XKS, axis=-1).astype(jnp.float32)
  size_11S = jnp.sqrt(edges_S[1:] * edges_S[:-1])[None, None]
  # What the bins miss of the sum is spread over them; the rest stands at one.
  top_XK = diagonal_XKM.shape[-1] - below_XKS[..., -1].astype(jnp.float32)
  binned_XK = jnp.sum(count_XKS * size_11S, axis=-1)
  share_XK = jnp.maximum(total_XK - top_XK, 0.0) / jnp.maximum(binned_XK, 1e-30)
  p_XKS = size_11S * share_XK[..., None] / total_XK[..., None]
  p_top_XK = 1 / total_XK
  return -jnp.sum(
    count_XKS * p_XKS * jnp.log(jnp.maximum(p_XKS, 1e-30)), axis=-1
  ) - top_XK * p_top_XK * jnp.log(p_top_XK)
