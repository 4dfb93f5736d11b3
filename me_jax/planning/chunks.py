"""How many queries' scores should exist at a time?

More at a time are fewer products in the program, each of which is compiled
apart; but a chunk of queries meets all keys up to its last one, which the first
one may not see, and float32 scores that stay on the chip cost no bandwidth. The
TPU compiler keeps those there that are a half of its 128 MiB, and those that an
analysis reads several times if they are a quarter.
"""

from __future__ import annotations

import jax

from me_jax.models import config as config_lib
from me_jax.training import sharding as sharding_lib

_FEWEST, _MOST = 4, 16  # chunks of a long row
_LEAST = 64  # queries
_SCORES = 1 << 25  # bytes


def attention_chunk(
  config: config_lib.ModelConfig,
  mesh: jax.sharding.Mesh,
  rules: sharding_lib.Rules,
  *,
  rows: int,
  length: int,
) -> int:
  """Returns the queries of a chunk, a power of two.

  Args:
    config: of the model.
    mesh: the devices.
    rules: fitted to the model.
    rows: that are computed at a time, over all devices.
    length: tokens of each.
  """
  cut = rules.parts('batch', mesh)
  local = rows // cut if rows % cut == 0 else rows
  heads = config.num_attention_heads // rules.parts('act_heads', mesh)
  # Where time is cut, queries are; keys are gathered.
  each = 4 * local * heads * length // rules.parts('time', mesh)
  chunk = _LEAST
  while chunk * _MOST < length or (
    2 * chunk * _FEWEST <= length and 2 * chunk * each <= _SCORES
  ):
    chunk *= 2
  return chunk
