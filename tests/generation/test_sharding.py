"""Eight CPU devices generate what one does, each with its part of the cache."""

from __future__ import annotations

import pytest

from tests.support import processes

PROGRAM = """
    import sys

    import jax
    import jax.numpy as jnp
    import numpy as np

    from me_jax.generation import generate
    from me_jax.generation import sampler
    from me_jax.generation import steps
    from me_jax.models import params as params_lib
    from me_jax.training import sharding
    from tests.support import planted

    assert len(jax.devices()) == 8
    scanned = eval(sys.argv[1])
    model, params = planted.build([], bos_channel=2.0)
    model, params = params_lib.first_layers(model, params, 2)
    params = jax.tree.map(lambda x: x * 10 if x.ndim == 3 else x, params)
    model = model.clone(scanned=scanned)
    mesh = sharding.mesh(fsdp=4, tensor=2)
    rules = sharding.fit(model.config, mesh)
    shardings = sharding.shardings(model.config, mesh, rules)
    placed = jax.tree.map(jax.device_put, params, shardings)
    batch = planted.batch(count=12, length=15)

    def answers(params, **kwargs):
      mask_LD = np.random.default_rng(0).integers(0, 2, (2, 64)).astype('f4')
      params = params | {'layers': params['layers'] | {'sink_scale': mask_LD}}
      return generate.generate(
        model, params, batch, max_new_tokens=20, stop_tokens=(), rows=8, **kwargs
      ).ids()

    sampled = dict(temperature=0.8, top_p=0.9, repetition_penalty=1.2, seed=3)
    how = {} if scanned else sampled
    alone = answers(params, **how)
    assert len({tuple(text) for text in alone}) > 6
    kept = []
    real = steps.decode

    def keeping(*args):
      state, out_BC = real(*args)
      kept.append(jax.tree.map(lambda leaf: leaf.sharding, state.cache.slots))
      return state, out_BC

    steps.decode = keeping
    with sharding.use(mesh, rules):
      together = answers(placed, **how)
      # From the beginning: a cache may be too large for one device.
      begun = steps.start(model, 8, 64, jnp.dtype('float32'), False)
      kept.append(jax.tree.map(lambda leaf: leaf.sharding, begun.cache.slots))
    assert together == alone
    # Two of eight rows, and one of two key-value heads, on each device.
    rows_axis = 1 if scanned else 0
    for slots in (*kept[0], *kept[-1]):
      shape = (8,) * rows_axis + (8, 2, 64, 16)
      expected = (8,) * rows_axis + (2, 1, 64, 16)
      assert slots.k.shard_shape(shape) == expected, slots.k
      assert slots.v.shard_shape(shape) == expected, slots.v
"""


@pytest.mark.parametrize('scanned', [True, False])
def test_eight_devices_generate_what_one_does(scanned):
  done = processes.run(PROGRAM, repr(scanned), devices=8)
  assert done.returncode == 0, done.stderr[-2000:]
