"""A run on many devices, or in many processes, is the run on one."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from me_jax.mitigation import gates
from me_jax.training import lora
from me_jax.training import settings
from me_jax.training import trained
from tests.support import processes
from tests.support import small_run

pytestmark = pytest.mark.usefixtures('compiled_once')

STEPS = 20
# Sums over devices are made in another order: 1e-7 of each, which twenty steps
# of an optimiser carry on.
CLOSE = dict(atol=1e-5, rtol=1e-5)


def runs(small: pathlib.Path, many: bool) -> dict[str, settings.Run]:
  """Returns runs by name, on eight devices, or on one and in one part."""

  def run(parts, sizes, compute=1, **fields):
    made = small_run.run(
      small,
      train=trained.Trained(
        parts=parts, gates=small_run.GATES, lora=small_run.LORA
      ),
      mesh=settings.Mesh(**sizes) if many else settings.Mesh(),
      monitor_every=0,
      checkpoint=settings.Checkpoint(every=0),
      steps=STEPS,
      **fields,
    )
    return dataclasses.replace(
      made,
      data=dataclasses.replace(made.data, batch=8),
      compute=dataclasses.replace(made.compute, parts=compute if many else 1),
    )

  cube = dict(data=2, fsdp=2, tensor=2)
  return {
    'full': run(('full',), cube, optim=settings.Optimizer(lr=3e-3, eps=1e-3)),
    'gates': run(('gates',), cube, held_out=()),
    # Rows in parts, and time in pieces.
    'sequence': run(
      ('gates', 'lora'),
      dict(data=2, sequence=2, tensor=2, fsdp=1),
      2,
      held_out=(),
    ),
  }


def assert_close(one: pathlib.Path, other: pathlib.Path, steps: int) -> None:
  """Raises where the losses of two runs are not near."""
  a, b = (
    [line for line in small_run.numbers(out) if line['kind'] == 'train']
    for out in (one, other)
  )
  assert [line['step'] for line in a] == [line['step'] for line in b]
  assert len(a) == steps
  for name in ('loss', 'counted', 'tokens'):
    np.testing.assert_allclose(
      [line[name] for line in a], [line[name] for line in b], **CLOSE
    )


def assert_near(one: dict[str, np.ndarray], other: dict[str, np.ndarray]):
  assert one.keys() == other.keys()
  for name, value in one.items():
    np.testing.assert_allclose(value, other[name], err_msg=name, **CLOSE)


def held_out(out: pathlib.Path) -> list[float]:
  return [
    one['loss']
    for line in small_run.numbers(out)
    if line['kind'] == 'held_out'
    for one in line['sets'].values()
  ]


DEVICES = """
    import pathlib, sys

    import jax
    import numpy as np

    from me_jax.cli import session
    from tests.support import small_run
    from tests.training import test_loop_devices as here

    session.keep_compiled()
    assert len(jax.devices()) == 8
    small, out = map(pathlib.Path, sys.argv[1:])
    for name, run in here.runs(small, True).items():
      result = small_run.train(run, out / name)
      leaves = jax.tree.leaves(result.tree)
      if name == 'full':
        cut = [x for x in leaves if not x.sharding.is_fully_replicated]
        assert len(cut) > 5
      np.savez(out / f'{name}.npz', **small_run.flat(result.tree))
    print('done')
"""


def test_eight_devices_train_as_one_does(small, tmp_path):
  many, one = tmp_path / 'many', tmp_path / 'one'
  many.mkdir()
  done = processes.run(DEVICES, small, many, devices=8)
  assert done.returncode == 0, done.stderr[-3000:]
  for name, run in runs(small, False).items():
    result = small_run.train(run, one / name)
    assert_close(many / name, one / name, STEPS)
    np.testing.assert_allclose(
      held_out(many / name), held_out(one / name), **CLOSE
    )
    with np.load(many / f'{name}.npz') as found:
      assert_near(dict(found), small_run.flat(result.tree))
    # There was something to compare.
    if name == 'full':
      losses = held_out(one / name)
      assert losses[-1] < losses[0] - 0.1
    else:
      assert np.ptp(result.tree['gates']) > 0.01


def together(small: pathlib.Path, mesh: settings.Mesh) -> settings.Run:
  """Returns a run whose layers are found, and which measures all there is."""
  after = gates.Gates(layers='after')
  return small_run.run(
    small,
    train=trained.Trained(
      parts=('gates', 'lora'), gates=after, lora=lora.Lora(rank=2)
    ),
    mesh=mesh,
    steps=10,
    checkpoint=settings.Checkpoint(every=3),
  )


PROCESSES = """
    import os, pathlib, signal, sys, time

    from me_jax.training import distributed

    index, address, small, out = sys.argv[1:]
    index, small, out = int(index), pathlib.Path(small), pathlib.Path(out)
    distributed.start(coordinator=address, num_processes=2, process_id=index)

    from me_jax.training import loop, prepare, settings
    from me_jax.cli import session
    from tests.support import small_run
    from tests.training import test_loop_devices as here

    session.keep_compiled()
    mesh = settings.Mesh(fsdp=2, tensor=2)

    def stop(line):
      # Process 1 alone is told, in the middle of the run.
      if index == 1 and line.step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
        # Or a quick machine has done all steps before everybody is told.
        time.sleep(2)

    run = here.together(small, mesh)
    plan = prepare.plan(run)
    placed = prepare.place(plan)
    assert placed.report.layer == 4
    assert placed.frozen.gate_layers == (5, 6, 7)
    result = loop.train(plan, placed, out / 'texts', tell=stop)
    assert not result.ended and 5 <= result.step < 10

    drawn = small_run.sampled(small, 1, 0.0, mesh=mesh, steps=3)
    drawn = small_run.train(drawn, out / 'sampled')
    print('done', result.step, drawn.step)
"""


def test_two_processes_train_as_one_does(small, tmp_path):
  two, one = tmp_path / 'two', tmp_path / 'one'
  ends = processes.pair(PROCESSES, small, two, timeout=600)
  assert ends[0] == ends[1]
  stopped = int(ends[0].split()[1])

  # What they began one process ends, on one device.
  said = []
  run = together(small, settings.Mesh())
  last = small_run.train(run, two / 'texts', warn=said.append)
  assert last.resumed == stopped
  assert any('mesh.tensor: 2 there, 1 now' in line for line in said)
  whole = small_run.train(run, one / 'texts')
  assert_close(two / 'texts', one / 'texts', 10)
  np.testing.assert_allclose(
    held_out(two / 'texts'), held_out(one / 'texts'), **CLOSE
  )
  assert_near(small_run.flat(last.tree), small_run.flat(whole.tree))
  some, others = (
    [line for line in small_run.numbers(out / 'texts')
     if line['kind'] == 'monitor']
    for out in (two, one)
  )  # fmt: skip
  assert len(some) == len(others) == 3
  for a, b in zip(some, others):
    assert a['me_layer'] == b['me_layer']
    assert a['gates']['layers'] == [5, 6, 7]
    # Five digits are written.
    np.testing.assert_allclose(a['spike'], b['spike'], rtol=1e-4)
    np.testing.assert_allclose(
      a['gates']['mean_G'], b['gates']['mean_G'], rtol=1e-5
    )

  small_run.train(small_run.sampled(small, 1, 0.0, steps=3), one / 'sampled')
  assert_close(two / 'sampled', one / 'sampled', 3)
