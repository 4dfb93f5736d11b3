"""A run goes on from its newest whole checkpoint, bit for bit."""

from __future__ import annotations

import os
import pathlib
import resource
import shutil
import signal
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from me_jax import errors
from me_jax.training import checkpoint_card
from me_jax.training import checkpoints as checkpoints_lib
from tests.support import processes


@struct.dataclass
class State:
  step: Any
  tree: Any
  optimiser: Any


def make(seed: int = 0, width: int = 4) -> State:
  """Returns a state with all that a state may have in it."""
  shape = jax.ShapeDtypeStruct((width, 8), jnp.float32)
  half = jax.ShapeDtypeStruct((2, 8), jnp.bfloat16)
  tree = {'gates': shape, 'lora': {'q': half}, 'none': None}
  optimiser = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.masked(
      optax.adamw(1e-3), {'gates': True, 'lora': {'q': False}, 'none': False}
    ),
  )
  shapes = State(
    jax.ShapeDtypeStruct((), jnp.int32),
    tree,
    jax.eval_shape(optimiser.init, tree),
  )
  random = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(9 * random.normal(size=x.shape), x.dtype), shapes
  )


def assert_same(one: Any, other: Any) -> None:
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(*map(jax.tree.leaves, (one, other))):
    assert a.dtype == b.dtype and a.shape == b.shape
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


class Said(list):
  """Warnings."""

  __call__ = list.append


@pytest.fixture(name='folder')
def _folder(tmp_path):
  return tmp_path / 'checkpoints'


def saved(folder: pathlib.Path, steps: int = 3, **options: Any) -> None:
  with checkpoints_lib.Checkpoints(folder, **options) as checkpoints:
    for step in range(1, steps + 1):
      checkpoints.save(step, make(step), {'n': step})


def refused(call: Any, *words: str) -> None:
  with pytest.raises(errors.MeJaxError) as caught:
    call()
  for word in words:
    assert word in str(caught.value)


def test_a_state_comes_back_bit_for_bit(folder):
  like = jax.eval_shape(lambda: make(0))
  with checkpoints_lib.Checkpoints(folder) as checkpoints:
    assert checkpoints.restore(like) is None
    assert checkpoints.restore_best(like) is None
    extra = {'data': {'order': 7}, 'list': [1.5, None, 'ä']}
    checkpoints.save(7, make(7), extra, metric=0.5)
    for back in (checkpoints.restore(like), checkpoints.restore_best(make(1))):
      assert (back.step, back.extra, back.metric) == (7, extra, 0.5)
      assert_same(back.state, make(7))


def test_a_state_may_be_donated_at_once(folder):
  overwrite = jax.jit(
    lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0
  )
  state = {'a': jnp.arange(500_000.0), 'b': jnp.arange(3)}
  with checkpoints_lib.Checkpoints(folder) as checkpoints:
    for step in range(3):
      expected = jax.tree.map(np.array, state)
      checkpoints.save(step, state, {})
      state = jax.block_until_ready(overwrite(overwrite(state)))
      back = checkpoints.restore(state)
      assert back.step == step
      assert_same(back.state, expected)
      # What was read can be donated, too, and is not what is on the disk.
      jax.block_until_ready(overwrite(back.state))
      assert_same(checkpoints.restore(state).state, expected)


def test_the_newest_and_the_best_are_kept(folder):
  metrics = {1: float('nan'), 2: 0.5, 3: 0.7, 4: 0.6, 5: None, 6: None}
  with checkpoints_lib.Checkpoints(folder) as checkpoints:
    for step, metric in metrics.items():
      checkpoints.save(step, make(step), {}, metric=metric)
  assert sorted(os.listdir(folder)) == ['2', '5', '6']
  # The rule goes on where it was.
  with checkpoints_lib.Checkpoints(folder, keep=1) as checkpoints:
    assert checkpoints.restore_best(make()).step == 2
    assert checkpoints.restore(make()).step == 6
    checkpoints.save(7, make(7), {}, metric=0.5001)
    checkpoints.wait()
    assert sorted(os.listdir(folder)) == ['2', '7']
    checkpoints.save(8, make(8), {}, metric=-1.0)
    checkpoints.wait()
    assert sorted(os.listdir(folder)) == ['8']
  with checkpoints_lib.Checkpoints(folder, keep=1, best=False) as checkpoints:
    checkpoints.save(9, make(9), {})
  assert os.listdir(folder) == ['9']


def test_a_step_that_is_there_is_left_alone(folder):
  saved(folder)
  with checkpoints_lib.Checkpoints(folder) as checkpoints:
    checkpoints.save(3, make(9), {}, wait=True)
    assert_same(checkpoints.restore(make()).state, make(3))
    refused(lambda: checkpoints.save(1, make(), {}), 'step 3', 'another folder')


def truncate(path):
  with open(path, 'r+b') as file:
    file.truncate(path.stat().st_size // 2)


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize('damage', [truncate, flip, os.remove])
def test_a_damaged_checkpoint_is_passed_over(folder, damage):
  saved(folder)
  kept = folder.parent / 'kept'
  shutil.copytree(folder / '3', kept)
  names = checkpoint_card.read(str(kept)).files
  assert len(names) > 5
  said = Said()
  with checkpoints_lib.Checkpoints(folder, warn=said) as checkpoints:
    for name in ['me_jax.json', *names]:
      shutil.rmtree(folder / '3')
      shutil.copytree(kept, folder / '3')
      damage(folder / '3' / name)
      with checkpoints_lib.Checkpoints(folder, warn=said) as fresh:
        assert fresh.restore(make()).step == 2
      assert len(said) == 1 and os.path.basename(name) in said[0]
      assert 'checkpoints/3 is passed over' in said.pop()
    # Orbax's own two say nothing that matters.
    shutil.rmtree(folder / '3')
    shutil.copytree(kept, folder / '3')
    damage(folder / '3' / '_CHECKPOINT_METADATA')
    assert checkpoints.restore(make()).step == 3
    assert not said


def test_what_is_damaged_goes_with_the_next_save(folder):
  saved(folder)
  shutil.rmtree(folder / '3' / 'state')
  said = Said()
  with checkpoints_lib.Checkpoints(folder, warn=said) as checkpoints:
    back = checkpoints.restore(make())
    assert back.step == 2 and len(said) == 1
    assert sorted(os.listdir(folder)) == ['2', '3']
    # It neither counts among the newest nor is in the way.
    checkpoints.save(3, back.state, {}, wait=True)
    assert sorted(os.listdir(folder)) == ['2', '3']
    assert_same(checkpoints.restore(make()).state, make(2))
  assert len(said) == 1


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew(folder):
  saved(folder)
  for step in '23':
    truncate(folder / step / 'me_jax.json')
  checkpoints = checkpoints_lib.Checkpoints(folder, warn=Said())
  refused(lambda: checkpoints.restore(make()), 'no checkpoint', 'is whole')
  assert checkpoints.restore_best(make()) is None
  assert sorted(os.listdir(folder)) == ['2', '3']


def test_another_runs_checkpoint_is_refused_by_leaf(folder):
  saved(folder)
  checkpoints = checkpoints_lib.Checkpoints(folder)
  refused(
    lambda: checkpoints.restore(make(width=5)),
    'another run',
    'optimiser.1.inner_state.0.mu.gates is float32[4, 8] there, float32[5, 8]',
  )
  smaller = make().replace(optimiser=())
  refused(
    lambda: checkpoints.restore(smaller), 'count is int32[] there, nothing'
  )
  more = make().replace(step={'a': jnp.int32(0)})
  refused(lambda: checkpoints.restore(more), 'step is int32[] there, nothing')
  other = make().replace(step=jnp.float32(0))
  refused(
    lambda: checkpoints.restore(other), 'step is int32[] there, float32[]'
  )


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_full_disk_leaves_the_checkpoints_before(folder, monkeypatch):
  state = {'a': jnp.arange(300_000.0)}
  checkpoints = checkpoints_lib.Checkpoints(folder)
  checkpoints.save(1, state, {}, wait=True)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
  try:
    refused(lambda: checkpoints.save(2, state, {}, wait=True), 'File too large')
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert os.listdir(folder) == ['1']
  with monkeypatch.context() as patch:
    usage = shutil.disk_usage(folder)._replace(free=1_199_999)
    patch.setattr(shutil, 'disk_usage', lambda path: usage)
    refused(lambda: checkpoints.save(2, state, {}), 'free some space')
  assert checkpoints.restore(state).step == 1
  checkpoints.save(2, state, {})
  checkpoints.close()
  assert sorted(os.listdir(folder)) == ['1', '2']


def test_a_failure_in_the_background_comes_with_the_next_save(
  folder, monkeypatch
):
  checkpoints = checkpoints_lib.Checkpoints(folder)
  checkpoints.save(1, make(1), {}, wait=True)

  def fail(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint_card, 'write', fail)
    checkpoints.save(2, make(2), {})
    refused(lambda: checkpoints.save(3, make(3), {}), 'No space left')
  assert os.listdir(folder) == ['1']
  # One that leaves its block by another exception does not hide it.
  said = Said()
  with pytest.raises(ZeroDivisionError), monkeypatch.context() as patch:
    patch.setattr(checkpoint_card, 'write', fail)
    with checkpoints_lib.Checkpoints(folder, warn=said) as others:
      others.save(2, make(2), {})
      raise ZeroDivisionError
  assert 'No space left' in said[0]


KILLED = """
    import os, signal, sys
    import jax.numpy as jnp
    from me_jax.training import checkpoint_card, checkpoints

    state = {'a': jnp.arange(9.0)}
    folder, when = sys.argv[1:]
    checkpoints = checkpoints.Checkpoints(folder)
    checkpoints.save(1, state, {}, wait=True)
    write = checkpoint_card.write

    def die(*args, **kwargs):
      if when == 'after':
        write(*args, **kwargs)
      os.kill(os.getpid(), signal.SIGKILL)

    checkpoint_card.write = die
    checkpoints.save(2, state, {}, wait=True)
"""


@pytest.mark.parametrize('when', ['before', 'after'])
def test_what_a_killed_process_has_begun_is_no_checkpoint(folder, when):
  done = processes.run(KILLED, folder, when, timeout=60)
  assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
  assert len(os.listdir(folder)) == 2
  said = Said()
  with checkpoints_lib.Checkpoints(folder, warn=said) as checkpoints:
    state = {'a': jnp.arange(9.0)}
    back = checkpoints.restore(state)
    assert back.step == 1 and not said
    assert_same(back.state, state)
    checkpoints.save(3, state, {})
  assert sorted(os.listdir(folder)) == ['1', '3']


PROCESSES = """
    import sys
    from me_jax import errors
    from me_jax.training import checkpoints, distributed

    index, address, folder = sys.argv[1:]
    index = int(index)
    distributed.start(coordinator=address, num_processes=2, process_id=index)

    import os, jax, numpy as np
    from me_jax.training import sharding
    from tests.training import test_checkpoints

    mesh = sharding.mesh(fsdp=4)

    def place(leaf):
      cut = jax.P(None, 'fsdp') if leaf.ndim == 2 else jax.P()
      return jax.NamedSharding(mesh, cut)

    def spread(state):
      return jax.tree.map(
        lambda x: jax.make_array_from_callback(
          x.shape, place(x), lambda at: np.asarray(x)[at]
        ),
        state,
      )

    def check(state, seed):
      expected = test_checkpoints.make(seed)
      for a, b in zip(*map(jax.tree.leaves, (state, expected))):
        for shard in a.addressable_shards:
          assert np.array_equal(shard.data, np.asarray(b)[shard.index])

    like = spread(test_checkpoints.make(0))
    said = []
    with checkpoints.Checkpoints(folder, warn=said.append) as both:
      # Of one process and one device.
      back = both.restore(like)
      assert back.step == 3
      check(back.state, 3)
      for step in (4, 5):
        both.save(step, spread(test_checkpoints.make(step)), {'n': step})
      both.wait()
      if not index:
        os.remove(folder + '/5/state/manifest.ocdbt')
      back = both.restore(like)
      assert (back.step, back.extra) == (4, {'n': 4}) and len(said) == 1 - index
      check(back.state, 4)
      both.save(6, spread(test_checkpoints.make(6)), {}, metric=1.0)
      both.wait()
      if not index:
        for step in (4, 6):
          os.remove(f'{folder}/{step}/me_jax.json')
      try:
        both.restore(like)
        raise AssertionError
      except errors.MeJaxError as error:
        assert ('no checkpoint' if not index else 'process 0') in str(error)
      both.save(7, spread(test_checkpoints.make(7)), {'n': 7})
    print('done')
"""


def test_processes_and_meshes_may_change(folder):
  saved(folder)
  assert processes.pair(PROCESSES, folder) == ['done', 'done']
  with checkpoints_lib.Checkpoints(folder) as checkpoints:
    back = checkpoints.restore(make())
  assert (back.step, back.extra) == (7, {'n': 7})
  assert_same(back.state, make(7))


@pytest.mark.parametrize('keep', [0, -1, True, 1.5, None])
def test_something_must_be_kept(folder, keep):
  refused(lambda: checkpoints_lib.Checkpoints(folder, keep=keep), 'keep is')


def test_extra_must_be_json(folder):
  checkpoints = checkpoints_lib.Checkpoints(folder)
  refused(lambda: checkpoints.save(1, make(), {'a': float('nan')}), 'JSON')
  assert not folder.exists()
