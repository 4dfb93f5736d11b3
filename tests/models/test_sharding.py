"""The logical axes at work: eight CPU devices give what one gives."""

from __future__ import annotations

import pytest

from me_jax.models import config as config_lib
from tests.support import processes

PROGRAM = """
    import sys

    import jax
    import numpy as np

    from me_jax.analysis import residual
    from me_jax.models.config import RopeConfig
    from me_jax.training import sharding
    from tests.support import planted

    assert len(jax.devices()) == 8
    plants = [planted.Plant(4, 7, 9, 5000.0)]
    model, params = planted.build(plants, **eval(sys.argv[1]))
    batch = planted.batch(count=4, length=15)
    operands = {
      'positions': np.zeros((4, 2), np.int32),
      'members': (batch.segments_BT == 1)[:, None],
    }
    alone = jax.device_get(residual.measure(model, params, *batch, operands))

    mesh = sharding.mesh(fsdp=4, tensor=2)
    rules = sharding.fit(model.config, mesh)
    shardings = sharding.shardings(model.config, mesh, rules)
    placed = jax.tree.map(jax.device_put, params, shardings)
    kernel = placed['layers']['mlp']['up_proj']['kernel']
    assert kernel.addressable_shards[0].data.shape == (8, 16, 12)
    with sharding.use(mesh, rules):
      compiled = residual.measure.lower(
        model, placed, *batch, operands
      ).compile()
      together = jax.device_get(compiled(placed, *batch, operands))
    # The FFN's activation exists only as halves, of a quarter of the batch.
    assert 'f32[1,16,12]' in compiled.as_text()
    assert 'f32[1,16,24]' not in compiled.as_text()
    for name, value in alone.items():
      np.testing.assert_allclose(
        together[name], value, rtol=1e-4, atol=1e-2, err_msg=name
      )
"""


# The norms and windows of other families add axes that must shard too.
FAMILIES = {
  'llama': {},
  'gemma3': dict(
    norm_placement='sandwich', norm_offset=1.0, qk_norm='head',
    sliding_window=4, layer_windowed=(True, False) * 4,
    rope_local=config_lib.RopeConfig(theta=100.0), attention_bias=True,
  ),
  'olmo2': dict(norm_placement='post', qk_norm='projection'),
}  # fmt: skip


@pytest.mark.parametrize('family', FAMILIES)
def test_eight_devices_give_what_one_gives(family):
  done = processes.run(PROGRAM, repr(FAMILIES[family]), devices=8)
  assert done.returncode == 0, done.stderr[-2000:]
