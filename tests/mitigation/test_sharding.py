"""A masked model on eight CPU devices gives what it gives on one."""

from __future__ import annotations

from tests.support import processes

PROGRAM = """
    import jax
    import numpy as np

    from me_jax.mitigation import wemask
    from me_jax.training import sharding
    from tests.support import planted

    assert len(jax.devices()) == 8
    model, params = planted.build([planted.Plant(4, 7, 9, 5000.0)])
    value = params['layers']['self_attn']['v_proj']
    value['kernel'] = value['kernel'] * 8
    tokens_BT, segments_BT = planted.batch(count=4, length=15)
    mesh = sharding.mesh(fsdp=4, tensor=2)
    rules = sharding.fit(model.config, mesh)
    shardings = sharding.shardings(model.config, mesh, rules)
    placed = jax.tree.map(jax.device_put, params, shardings)

    def logits(params):
      return model.apply({'params': params}, tokens_BT, segments_BT).logits

    def masked(params):
      return wemask.wemask(
        model, params, planted.report(), tokens='massive', strength=0.8
      )

    alone = jax.jit(logits)(masked(params))
    # The mask is made from parameters that lie on all devices.
    with sharding.use(mesh, rules):
      tree = masked(placed)
      kernel = tree['layers']['mlp']['up_proj']['kernel']
      assert kernel.addressable_shards[0].data.shape == (8, 16, 12)
      together = jax.jit(logits)(tree)
    np.testing.assert_array_equal(
      tree['layers']['sink_scale'], masked(params)['layers']['sink_scale']
    )
    assert len(together.sharding.device_set) == 8
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(alone - jax.jit(logits)(params)).max() > 1e-3
"""


def test_eight_devices_give_what_one_gives():
  done = processes.run(PROGRAM, devices=8)
  assert done.returncode == 0, done.stderr[-2000:]
