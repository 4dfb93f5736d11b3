"""States lie as their parameters do, batches by rows and time.

What eight devices and two processes hold is in `test_sharding` and
`test_distributed`; here one device is enough to read how an array is cut.
"""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from me_jax import errors
from me_jax.training import placement
from me_jax.training import sharding
from tests.support import planted

ROWS, TIME = ('data', 'fsdp'), ('sequence',)


def one_device():
  return sharding.mesh(devices=jax.devices()[:1])


def labels(params):
  return jax.tree.map_with_path(
    lambda path, _: 'few' if 'norm' in str(path) else 'many', params
  )


@pytest.mark.parametrize(
  ('optimiser', 'owned'),
  [
    (lambda: optax.adamw(1e-3), 2),
    (lambda: optax.sgd(1e-3, momentum=0.9), 1),
    # Moments and gradients that wait.
    (lambda: optax.MultiSteps(optax.adamw(1e-3), 2), 3),
    (
      lambda: optax.partition(
        {'few': optax.adamw(1e-3), 'many': optax.lion(1e-3)}, labels
      ),
      None,
    ),
  ],
  ids=['adamw', 'momentum', 'waiting', 'two kinds'],
)
def test_moments_lie_as_their_parameters(optimiser, owned):
  model, params = planted.build([])
  places = sharding.shardings(model.config, one_device())
  state = jax.eval_shape(optimiser().init, params)
  found = placement.state_shardings(state, params, places)
  assert jax.tree.structure(found) == jax.tree.structure(state)
  known = {
    sharding.names(path): place
    for path, place in jax.tree.leaves_with_path(places)
  }
  count = 0
  for path, place in jax.tree.leaves_with_path(found):
    keys = sharding.names(path)
    ends = [keys[i:] for i in range(len(keys)) if keys[i:] in known]
    if ends:
      count += 1
      assert place == known[max(ends, key=len)]
    else:
      assert place.spec == jax.P()
  if owned:
    assert count == owned * len(known)
  else:
    norms = sum('norm' in str(path) for path in known)
    assert count == len(known) + norms


def test_a_factored_moment_is_on_every_device():
  model, params = planted.build([])
  places = sharding.shardings(model.config, one_device())
  optimiser = optax.adafactor(1e-3, min_dim_size_to_factor=16)
  state = jax.eval_shape(optimiser.init, params)
  found = placement.state_shardings(state, params, places)
  for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(found)):
    if leaf.ndim < 3 and leaf.shape not in ((50, 64), (64, 50)):
      assert place.is_fully_replicated


def test_rows_and_time_are_cut():
  batch = {
    'advantages_BX': np.zeros((4, 3)),
    'rewards_B': np.zeros(4),
    'step': np.zeros(()),
    'tokens_BT': np.zeros((4, 16)),
    'wide_BTD': np.zeros((4, 16, 2)),
  }
  found = placement.batch_shardings(batch, one_device())
  assert {name: place.spec for name, place in found.items()} == {
    'advantages_BX': jax.P(ROWS, None),
    'rewards_B': jax.P(ROWS),
    'step': jax.P(),
    'tokens_BT': jax.P(ROWS, TIME),
    'wide_BTD': jax.P(ROWS, TIME, None),
  }


def test_a_process_outside_the_mesh_has_no_rows():
  assert placement.row_share(one_device()) == (1, 0)
  with pytest.raises(errors.MeJaxError, match='process 5 has no device'):
    placement.row_share(one_device(), process=5)
