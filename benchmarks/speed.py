"""The worker that says how fast the machine is, whatever runs on it.

Virtual machines are not the same every day: one that multiplies matrices at
half the speed makes other ratios, too.
"""

from __future__ import annotations

import time

import numpy as np

_SIDE, _NUMBERS, _TIMES = 2048, 2**27, 9


def speed() -> dict[str, float]:
  """Returns GFLOP/s of a product of matrices, and GB/s of reading memory."""
  import jax
  import jax.numpy as jnp

  square = jnp.ones((_SIDE, _SIDE), jnp.float32)
  large = jnp.ones(_NUMBERS, jnp.float32)
  found = []
  for call, argument in ((lambda x: x @ x, square), (jnp.sum, large)):
    compiled = jax.jit(call).lower(argument).compile()
    times = []
    for _ in range(_TIMES + 1):
      start = time.perf_counter()
      compiled(argument).block_until_ready()
      times.append(time.perf_counter() - start)
    found.append(float(np.median(times[1:])))
  return {
    'gflops': 2e-9 * _SIDE**3 / found[0],
    'gbytes': 4e-9 * _NUMBERS / found[1],
  }


WORKERS = (speed,)
