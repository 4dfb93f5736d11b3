"""Our dequantisers give the bits that the gguf package gives."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from me_jax.checkpoints import dequantise

# First and last byte of the float16 scales in a block.
SCALES = {'Q4_K': (0, 4), 'Q5_K': (0, 4), 'Q6_K': (208, 210)}


@pytest.mark.parametrize('name', dequantise.FAST)
@pytest.mark.parametrize('finite', [True, False])
def test_any_bytes_stand_for_the_packages_values(name, finite):
  kind = gguf.GGMLQuantizationType[name]
  rng = np.random.default_rng(0)
  raw = rng.integers(0, 256, (500, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
  if finite:
    start, stop = SCALES[name]
    scales = rng.standard_normal((500, (stop - start) // 2))
    raw[:, start:stop] = scales.astype(np.float16).view(np.uint8)
  with np.errstate(all='ignore'):
    expected = gguf.quants.dequantize(raw, kind).reshape(-1)
  found = dequantise.FAST[name](raw.reshape(-1))
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
  assert np.isfinite(found).all() == finite
