"""The scan over a vocabulary that is cut over eight CPU devices."""

from __future__ import annotations

import pytest

from tests.support import processes

PROGRAM = """
    import dataclasses
    import re
    import sys

    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np

    from me_jax.training import logprobs
    from tests.support import planted

    assert len(jax.devices()) == 8
    tied = eval(sys.argv[1])
    model, _ = planted.build([], tie_word_embeddings=tied)
    V, D, chunk = 104, 32, 24
    config = dataclasses.replace(model.config, vocab_size=V)
    random = np.random.default_rng(0)
    head = random.normal(size=(V, D) if tied else (D, V)).astype('f4')
    hidden = random.normal(size=(8, 6, D)).astype('f4')
    targets = random.integers(0, V, (8, 6)).astype('i4')

    def loss(head, hidden, targets):
      name = ('embed_tokens', 'embedding') if tied else ('lm_head', 'kernel')
      scores = logprobs.token_logprobs(
        config, {name[0]: {name[1]: head}}, hidden, targets, chunk=chunk
      )
      return jnp.sum(scores.logp_BT * targets), scores

    function = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    alone = jax.device_get(function(head, hidden, targets))
    mesh = jax.make_mesh(
      (4, 2), ('data', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    rules = [
      ('batch', 'data'), ('vocab', 'tensor'), ('embed', 'data'),
      ('act_vocab', 'tensor'),
    ]
    spec = ('tensor', 'data') if tied else ('data', 'tensor')
    shardings = [
      jax.NamedSharding(mesh, jax.P(*s)) for s in (spec, ('data',), ('data',))
    ]
    args = jax.tree.map(jax.device_put, [head, hidden, targets], shardings)
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
      compiled = function.lower(*args).compile()
    together = jax.device_get(compiled(*args))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
      together, alone,
    )
    text = compiled.as_text()
    # A quarter of the rows by half of a chunk.
    assert re.search(r'f32\\[2,6,(1,)?11\\]|f32\\[12,11\\]', text)
    gathered = re.findall(r'= \\S*?f32\\[([\\d,]+)\\]\\S* all-gather', text)
    assert gathered
    for shape in gathered:
      # Half of a chunk, whole in D.
      assert np.prod(list(map(int, shape.split(',')))) <= chunk // 2 * D, shape
    assert compiled.output_shardings[1][0].is_equivalent_to(shardings[0], 2)
"""


@pytest.mark.parametrize('tied', [True, False])
def test_eight_devices_give_what_one_gives_and_gather_a_chunk_at_a_time(tied):
  done = processes.run(PROGRAM, repr(tied), devices=8)
  assert done.returncode == 0, done.stderr[-3000:]
