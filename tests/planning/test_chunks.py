"""Chunks of queries: four to sixteen a row, by what stays on the chip."""

from __future__ import annotations

import types

import pytest

from me_jax.planning import chunks
from me_jax.planning import known_models
from me_jax.training import sharding

CONFIG = known_models.config_of('meta-llama/Llama-3.1-8B')


@pytest.mark.parametrize(
  ('rows', 'length', 'chunk'),
  [
    # 32 heads × 256 queries × 4,096 keys × 4 bytes are 128 MiB: too many, but
    # more than sixteen chunks are not compiled.
    (256, 4096, 256),
    (512, 4096, 256),
    # 32 × 256 × 1,024 × 4 bytes are 32 MiB.
    (256, 1024, 256),
    (256, 100, 64),
  ],
)
def test_scores_of_a_chunk_fit(rows, length, chunk):
  mesh = types.SimpleNamespace(
    shape={'data': 1, 'fsdp': 256, 'sequence': 1, 'tensor': 1}
  )
  found = chunks.attention_chunk(
    CONFIG, mesh, sharding.DEFAULT, rows=rows, length=length
  )
  assert found == chunk
