"""Memory for parameters: aligned, zeroed, and the same after populating."""

from __future__ import annotations

import mmap
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest

from me_jax.checkpoints import memory


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize('shape', [(3,), (5, 7), (4, 300, 40), (0, 8)])
def test_arrays_are_zero_writable_and_aligned(shape, dtype):
  array = memory.allocate(shape, np.dtype(dtype))
  assert array.shape == shape and array.dtype == dtype
  assert not array.astype(np.float32).any()
  assert array.ctypes.data % 64 == 0 or not array.size
  array[...] = 1
  assert (array == 1).all()


def test_jax_takes_the_memory_over():
  array = memory.allocate((64, 1024), np.dtype(np.float32))
  taken = jax.device_put(array, may_alias=True)
  array[3, 4] = 5.0
  assert taken[3, 4] == 5.0


def test_populating_a_part_changes_nothing():
  array = memory.allocate((4, 300, 40), np.dtype(np.float32))
  array[...] = np.arange(array.size).reshape(array.shape)
  for part in (array, array[1], array[3, 7:9], np.ones(5, np.float32)):
    memory.populate(part)
  np.testing.assert_array_equal(array.reshape(-1), np.arange(array.size))


@pytest.mark.skipif(
  not pathlib.Path('/proc/self/statm').exists(), reason='Linux counts pages'
)
@pytest.mark.parametrize('quick', [False, True])
def test_populating_brings_in_small_pages(monkeypatch, quick):
  monkeypatch.setattr(memory, '_huge_pages_are_quick', lambda: quick)
  array = memory.allocate((16, 1024, 1024), np.dtype(np.float32))

  def resident() -> int:
    pages = pathlib.Path('/proc/self/statm').read_text().split()[1]
    return int(pages) * mmap.PAGESIZE

  before = resident()
  memory.populate(array[4:12])
  brought = resident() - before
  assert brought == pytest.approx(0 if quick else 8 << 22, abs=1 << 22)
