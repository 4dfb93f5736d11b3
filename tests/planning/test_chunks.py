"""Chunks of queries: as few as memory allows, and no fewer than four a row."""

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
    # 32 heads × 1,024 queries × 4,096 keys × 4 bytes are 512 MiB.
    (256, 4096, 1024),
    (512, 4096, 512),
    # A quarter of the row.
    (256, 1024, 256),
    (256, 100, 64),
    # 7 rows are not divided by 256 devices, so each has all of them.
    (7, 4096, 128),
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
