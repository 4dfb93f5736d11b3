"""How does a run go on after it was stopped, whatever has stopped it?

From its newest whole checkpoint. Orbax writes them in the background, keeps the
newest ones and the best one, and renames a folder when it is complete:

  checkpoints/40/me_jax.json   see checkpoint_card.py
  checkpoints/40/state/        the arrays, by Orbax

What is damaged is passed over with a warning and removed by the next save, as
is what a killed process has left. With several processes all of them call all
of this, on a file system that they share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import contextlib
import functools
import math
import os
from typing import Any

from absl import logging
import jax
import numpy as np

from me_jax import errors
from me_jax.checkpoints import atomic
from me_jax.checkpoints import metadata as metadata_lib
from me_jax.checkpoints import orbax_card
from me_jax.checkpoints import processes
from me_jax.training import checkpoint_card
from me_jax.training import checkpoint_read

_TEMPORARY = '.orbax-checkpoint-tmp'
_NONE = -1


class Checkpoints:
  """The checkpoints of one run; a context manager that waits at its end."""

  def __init__(
    self,
    folder: str | os.PathLike[str],
    *,
    keep: int = 2,
    best: bool = True,
    warn: Callable[[str], None] = logging.warning,
  ):
    """Looks at nothing yet.

    Args:
      folder: of the checkpoints alone; made by the first save.
      keep: how many of the newest are kept.
      best: whether the one with the lowest metric is kept, too.
      warn: told of each checkpoint that is passed over, on process 0.

    Raises:
      MeJaxError: nothing would be kept, or the folder is no path.
    """
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
      raise errors.MeJaxError(
        f'keep is {keep!r}, must be 1 or more checkpoints'
      )
    self.folder = atomic.absolute(folder)
    self._keep, self._best, self._warn = keep, best, warn
    self._metrics: dict[int, float | None] = {}
    self._broken: list[int] = []
    self._manager: Any = None
    self._pending: dict[str, Any] = {}

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, kind: Any, *_: Any) -> None:
    if kind is None:
      self.close()
      return
    # What has been raised matters more than what closing might say.
    try:
      self.close()
    except errors.MeJaxError as error:
      self._warn(str(error))

  def save(
    self,
    step: int,
    state: Any,
    extra: Mapping[str, Any],
    *,
    metric: float | None = None,
    wait: bool = False,
  ) -> None:
    """Begins to write a checkpoint; a step that is there already is left alone.

    Waits for the save before. `state` may change, or be donated, as soon as this
    returns.

    Args:
      step: how many steps were done; more than at the saves before.
      state: a tree of jax.Arrays, which span all processes.
      extra: JSON, equal in all processes.
      metric: how good it is, lower is better. None or not finite: unknown.
      wait: return only when the checkpoint stands.

    Raises:
      MeJaxError: this save, or the one before, cannot be written. Those before
        it still stand.
    """
    if metric is not None and not math.isfinite(metric):
      metric = None
    self.wait()
    if self._manager is None:
      processes.together(self._clean)
      self._look()
    if step in self._metrics:
      return
    if step < max(self._metrics, default=step):
      raise errors.MeJaxError(
        f'{self.folder} holds a checkpoint of step {max(self._metrics)}, which'
        f' step {step} cannot follow: go on from there, or name another folder'
      )
    leaves = checkpoint_read.named(state)
    self._pending = {
      'step': int(step),
      'metric': None if metric is None else float(metric),
      'extra': metadata_lib.check(extra),
      'leaves': {
        name: checkpoint_read.kind(leaf) for name, leaf in leaves.items()
      },
    }
    processes.together(functools.partial(self._check_room, leaves))
    self._metrics[step] = self._pending['metric']
    self._guard(functools.partial(self._begin, step, leaves))
    if wait:
      self.wait()

  def restore(
    self, like: Any, shardings: Any = None
  ) -> checkpoint_read.Restored | None:
    """Returns the newest whole checkpoint.

    Args:
      like: a tree of arrays or ShapeDtypeStructs, as `save` was given.
      shardings: where each leaf shall lie, a tree like it; None for where the
        leaves of `like` say, or the first device.

    Returns:
      It, or None if none was ever completed.

    Raises:
      MeJaxError: all are damaged, or it is of other arrays than `like`.
    """
    return self._restore(
      lambda metrics: sorted(metrics, reverse=True), like, shardings, True
    )

  def restore_best(
    self, like: Any, shardings: Any = None
  ) -> checkpoint_read.Restored | None:
    """Returns the whole checkpoint with the lowest metric, None without any.

    Arguments and errors are those of `restore`.
    """
    return self._restore(_by_metric, like, shardings, False)

  def wait(self) -> None:
    """Returns when the last save stands.

    Raises:
      MeJaxError: it could not be written. Those before it still stand.
    """
    if self._manager is not None:
      self._guard(self._manager.wait_until_finished)

  def close(self) -> None:
    """Waits, and ends Orbax's threads; errors are those of `wait`."""
    if self._manager is not None:
      self._guard(self._manager.close)
      self._manager = None

  def _begin(self, step: int, leaves: dict[str, jax.Array]) -> None:
    """Copies the arrays, and has them written."""
    import orbax.checkpoint as ocp

    from me_jax.training import checkpoint_manager

    if self._manager is None:
      self._manager = checkpoint_manager.make(
        self.folder,
        self._kept,
        lambda folder: checkpoint_card.write(folder, **self._pending),
        max(leaf.nbytes for leaf in leaves.values()),
      )
    arguments = ocp.args.Composite(
      **{checkpoint_read.STATE: ocp.args.PyTreeSave(leaves)}
    )
    self._manager.save(step, args=arguments, force=True)

  def _clean(self) -> None:
    """Removes what is damaged, where Orbax would count it among the newest."""
    if not jax.process_index():
      self._look()
      for step in self._broken:
        atomic.remove(self._at(step))
    self._broken.clear()

  def _check_room(self, leaves: Mapping[str, jax.Array]) -> None:
    """Raises MeJaxError where the arrays have no room."""
    if not jax.process_index():
      total = sum(leaf.nbytes for leaf in leaves.values())
      atomic.check_space(self._at('new'), total)

  def _guard(self, part: Callable[[], Any]) -> None:
    """Runs a part of a save; one that fails leaves nothing behind.

    Raises:
      MeJaxError: it has failed.
    """
    try:
      part()
    except BaseException as error:
      failed, self._manager = self._manager, None
      with contextlib.suppress(Exception):
        failed.close()
      if not jax.process_index():
        for name in _entries(self.folder):
          if _TEMPORARY in name:
            atomic.remove(self._at(name))
      if isinstance(error, Exception):
        raise orbax_card.failure(
          f'cannot write a checkpoint to {self.folder}', error
        ) from error
      raise

  def _kept(self, steps: list[int]) -> list[bool]:
    """Says which of the steps, in order, are kept."""
    kept = set(steps[-self._keep :])
    if self._best:
      kept |= set(_by_metric({s: self._metrics.get(s) for s in steps})[:1])
    return [step in kept for step in steps]

  def _look(self) -> None:
    """Reads the cards of all checkpoints that are there."""
    self._metrics = {}
    for name in _entries(self.folder):
      if not name.isdecimal() or (step := int(name)) in self._broken:
        continue
      try:
        self._metrics[step] = checkpoint_card.read(self._at(step)).metric
      except errors.MeJaxError as error:
        self._pass_over(step, error)

  def _pass_over(self, step: int, error: errors.MeJaxError) -> None:
    self._broken.append(step)
    self._metrics.pop(step, None)
    if not jax.process_index():
      self._warn(f'checkpoint {self._at(step)} is passed over: {error}')

  def _restore(
    self,
    order: Callable[[dict[int, float | None]], list[int]],
    like: Any,
    shardings: Any,
    needed: bool,
  ) -> checkpoint_read.Restored | None:
    """Returns the first checkpoint in this order that is whole.

    Raises MeJaxError as `restore` does, if there are only damaged ones and one
    is needed.
    """
    # A new manager looks again at what is there.
    self.close()

    def pick() -> int:
      self._look()
      if jax.process_index():
        return _NONE
      for step in order(self._metrics):
        try:
          card = checkpoint_card.read(self._at(step))
          checkpoint_card.check_files(self._at(step), card)
        except errors.MeJaxError as error:
          self._pass_over(step, error)
        else:
          return step
      if needed and self._broken:
        raise errors.MeJaxError(
          f'no checkpoint in {self.folder} is whole: bring one back, or name'
          ' another folder to begin anew'
        )
      return _NONE

    step = processes.together(pick)
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    if step == _NONE:
      return None
    return processes.together(
      lambda: checkpoint_read.read(self._at(step), like, shardings)
    )

  def _at(self, name: int | str) -> str:
    return os.path.join(self.folder, str(name))


def _by_metric(metrics: Mapping[int, float | None]) -> list[int]:
  """Returns the steps that have a metric, the best one first."""
  measured = [step for step in metrics if metrics[step] is not None]
  return sorted(measured, key=lambda step: (metrics[step], step))


def _entries(folder: str) -> list[str]:
  """Returns the names in a folder that need not exist."""
  try:
    return sorted(os.listdir(folder))
  except FileNotFoundError:
    return []
  except OSError as error:
    raise errors.MeJaxError(
      f'cannot read {folder}: {error.strerror}'
    ) from error
