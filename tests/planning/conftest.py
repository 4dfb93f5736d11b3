"""What tests of the TPU compiler need; it is not everywhere."""

from __future__ import annotations

import importlib.util

import pytest

from me_jax.planning import topology


@pytest.fixture
def tpu(monkeypatch):
  """Skips where there is no TPU compiler; sets what it reads when loaded."""
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip('libtpu is not installed here: pip install jax[tpu]')
  for name, value in topology.environment(topology.find('v5e-4')).items():
    monkeypatch.setenv(name, value)
