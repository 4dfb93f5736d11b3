"""Processes find each other, and hold parts of the same arrays."""

from __future__ import annotations

import os

import jax
import pytest

from me_jax import errors
from me_jax.training import distributed
from tests.support import processes

PROGRAM = """
    import sys

    from me_jax import errors
    from me_jax.training import distributed

    index, address = int(sys.argv[1]), sys.argv[2]
    # One says it by arguments, the other by its environment.
    explicit = dict(coordinator=address, num_processes=2, process_id=index)
    distributed.start('auto', **(explicit if index else {}))

    import jax
    import jax.numpy as jnp
    import numpy as np

    from me_jax.training import logprobs
    from me_jax.training import placement
    from me_jax.training import sharding
    from tests.support import planted

    assert jax.process_count() == 2 and len(jax.devices()) == 4
    assert jax.process_index() == index
    assert distributed.is_writer() == (index == 0)
    distributed.start('on')
    try:
      distributed.start('on', num_processes=3)
      raise AssertionError('another run was joined')
    except errors.MeJaxError as error:
      assert 'joined a run before' in str(error)

    try:
      placement.row_share(sharding.mesh(devices=jax.devices()[:3]))
      raise AssertionError('unequal rows were shared')
    except errors.MeJaxError as error:
      assert 'unequal or overlapping' in str(error)

    model, params = planted.build([planted.Plant(4, 7, 9, 50.0)])
    whole = dict(zip(('tokens', 'segments'), planted.batch(count=8, length=15)))
    whole['weights'] = np.arange(8.0, dtype=np.float32)

    def loss(params, batch):
      scores, _ = logprobs.answer_logprobs(
        model, params, batch['tokens'], batch['segments'], chunk=20
      )
      return jnp.sum(jnp.mean(scores.logp_BT, axis=1) * batch['weights'])

    # On a device of one's own.
    alone = float(jax.jit(loss)(params, whole))
    for sizes, shares in (
      (dict(data=2, tensor=2), 2),
      # Both processes hold every row.
      (dict(sequence=2, tensor=2), 1),
    ):
      mesh = sharding.mesh(**sizes)
      rules = sharding.fit(model.config, mesh, rows=8, length=16)
      hosts, host = placement.row_share(mesh, rules)
      assert (hosts, host) == (shares, index if shares == 2 else 0)
      rows = slice(host * 8 // hosts, (host + 1) * 8 // hosts)
      mine = {name: value[rows] for name, value in whole.items()}
      batch = placement.to_global(mine, mesh, rules)
      for name, value in batch.items():
        assert value.shape == whole[name].shape
        for shard in value.addressable_shards:
          np.testing.assert_array_equal(shard.data, whole[name][shard.index])
      total = jax.shard_map(
        lambda x: jax.lax.psum(jnp.sum(x), ('data', 'fsdp')),
        mesh=mesh, in_specs=rules.spec(('batch',)), out_specs=jax.P(),
      )(batch['weights'])
      assert float(total) == 28.0
      places = sharding.shardings(model.config, mesh, rules)
      placed = jax.tree.map(
        lambda x, place: jax.make_array_from_callback(
          x.shape, place, lambda at, x=np.asarray(x): x[at]
        ),
        params, places,
      )
      with sharding.use(mesh, rules):
        together = float(jax.jit(loss)(placed, batch))
      np.testing.assert_allclose(together, alone, rtol=1e-5)
    print('done', together)
"""


def test_two_processes_hold_parts_of_the_same_arrays():
  address = processes.free_address()
  variables = {
    'JAX_COORDINATOR_ADDRESS': address,
    'JAX_NUM_PROCESSES': '2',
    'JAX_PROCESS_ID': '0',
  }
  runs = [
    processes.start(
      PROGRAM,
      index,
      address,
      **processes.JOINED,
      **({} if index else variables),
    )
    for index in range(2)
  ]
  last = processes.together(runs, 300)
  assert last[0] == last[1]
  assert last[0].startswith('done')


@pytest.fixture
def calls(monkeypatch):
  """No cluster, and what `jax.distributed.initialize` would be called with."""
  for name in list(os.environ):
    if name.startswith(('SLURM_', 'OMPI_', 'KUBERNETES_')):
      monkeypatch.delenv(name)
  for name in ('COORDINATOR_ADDRESS', 'NUM_PROCESSES', 'PROCESS_ID'):
    monkeypatch.delenv(f'JAX_{name}', raising=False)
  found = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *args, **_: found.append(args)
  )
  return found


def slurm(monkeypatch, tasks):
  for name, value in {
    'JOB_ID': 7,
    'STEP_NODELIST': 'node[1-2]',
    'NTASKS': tasks,
    'PROCID': 0,
    'LOCALID': 0,
  }.items():
    monkeypatch.setenv(f'SLURM_{name}', str(value))


def refusal(*args, **kwargs):
  with pytest.raises(errors.MeJaxError) as caught:
    distributed.start(*args, **kwargs)
  message = str(caught.value)
  assert '\n' not in message
  return message


def test_one_process_joins_nothing(calls):
  jax.devices()  # too late to join, and no matter
  distributed.start()
  distributed.start('off')
  assert calls == []
  message = refusal('on')
  assert 'no TPU pod, Slurm' in message
  assert 'JAX_PROCESS_ID' in message
  assert distributed.is_writer()


def test_a_scheduler_is_asked(calls, monkeypatch):
  slurm(monkeypatch, 1)
  distributed.start('auto')
  assert calls == []
  distributed.start('on')
  assert calls == [(None, None, None)]
  slurm(monkeypatch, 2)
  distributed.start('auto')
  assert len(calls) == 2
  distributed.start('off')
  assert len(calls) == 2
  # What is said comes before what is found.
  distributed.start('auto', process_id=1)
  assert calls[2] == (None, None, 1)


def test_a_cluster_that_cannot_be_joined_is_not_passed_over(calls, monkeypatch):
  slurm(monkeypatch, 'two')
  assert 'SlurmCluster does not say' in refusal('auto')
  monkeypatch.undo()
  slurm(monkeypatch, 2)
  jax.devices()
  assert 'must be called before' in refusal('auto', timeout=1)


@pytest.mark.parametrize(
  ('kwargs', 'words'),
  [
    (dict(coordinator='a:1'), 'without num_processes and process_id'),
    (dict(num_processes=2), 'without coordinator and process_id'),
    (dict(coordinator='a', num_processes=2, process_id=0), 'host:port'),
    (dict(coordinator='a:b', num_processes=2, process_id=0), 'host:port'),
    (dict(coordinator='a:99999', num_processes=2, process_id=0), 'host:port'),
    (dict(coordinator='a:1', num_processes=0, process_id=0), '1 or more'),
    (dict(coordinator='a:1', num_processes=2, process_id=2), 'below 2'),
    (dict(coordinator='a:1', num_processes=2, process_id=-1), 'process_id'),
  ],
)
def test_wrong_arguments(calls, kwargs, words):
  assert words in refusal('on', **kwargs)
  assert words in refusal('auto', **kwargs)
  assert calls == []


def test_wrong_modes_and_variables(calls, monkeypatch):
  assert "'ato'" in refusal('ato')
  assert "did you mean 'auto'?" in refusal('ato')
  assert 'must be one of' in refusal(None)
  monkeypatch.setenv('JAX_PROCESS_ID', 'one')
  assert "JAX_PROCESS_ID is 'one'" in refusal('auto')


def test_nobody_at_the_address(calls):
  address = processes.free_address()
  message = refusal(
    'on', coordinator=address, num_processes=2, process_id=1, timeout=0
  )
  assert f'no process 0 answers at {address}' in message
  assert calls == []
