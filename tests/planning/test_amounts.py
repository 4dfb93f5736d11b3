"""Amounts are short, and never in powers of ten."""

from __future__ import annotations

import pytest

from me_jax.planning import amounts


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (0, '0 B'),
    (999, '999 B'),
    (1000, '0.977 KiB'),
    (121.4 * 2**20, '121 MiB'),
    (1020 * 2**20, '1.00 GiB'),
    (7.131 * 2**30, '7.13 GiB'),
    (-3 * 2**30, '-3.00 GiB'),
  ],
)
def test_bytes(value, text):
  assert amounts.size(value) == text


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (3.5e-6, '3.5 µs'),
    (0.99996e-3, '1 ms'),
    (0.3281, '328 ms'),
    (0.9997, '1.00 s'),
    (12.345, '12.35 s'),
  ],
)
def test_times(value, text):
  assert amounts.seconds(value) == text


def test_counts():
  assert amounts.count(816_160.4) == '816,160'
  assert amounts.count(12_345_678) == '12.35 million'
