"""How does Orbax write the checkpoints of a run, and which does it keep?

Its CheckpointManager, told where we know better: which steps are kept, and what
else a folder holds when it is renamed. Imported only when something is saved:
orbax takes half a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
import logging
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import path as path_lib

from me_jax.training import checkpoint_read

_Base = path_lib.atomicity.AtomicRenameTemporaryPath


class _Manager(ocp.CheckpointManager):
  """Orbax's own, which leaves signals to us."""

  def reached_preemption(self, step: int) -> bool:
    """Says no: asked in the background, it would set JAX's step back."""
    return False


def _not_of_orbax(record: logging.LogRecord) -> bool:
  """Drops what Orbax logs, tracebacks of its threads too: it raises as well."""
  return '/orbax/' not in record.pathname


class _Kept:
  """A preservation policy of Orbax, by step alone."""

  def __init__(self, chosen: Callable[[list[int]], list[bool]]):
    self._chosen = chosen

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> Sequence[bool]:
    """Returns what `chosen` says."""
    return self._chosen([one.step for one in checkpoints])


def make(
  folder: str,
  chosen: Callable[[list[int]], list[bool]],
  complete: Callable[[str], None],
  largest: int,
) -> ocp.CheckpointManager:
  """Returns a manager; removes what a killed process has left.

  Args:
    folder: of the checkpoints; made if need be.
    chosen: says which of some steps, in order, are kept.
    complete: called on process 0, in the background, with each folder that is
      about to be renamed.
    largest: bytes of the largest array.
  """
  # Once, however often it is added.
  logging.getLogger('absl').addFilter(_not_of_orbax)

  class TemporaryPath(_Base):
    """Orbax's own, with a little more at its end."""

    async def finalize(self) -> None:
      if str(self.get_final().parent) == folder:
        await asyncio.to_thread(complete, str(self.get()))
      await super().finalize()

  handler = ocp.PyTreeCheckpointHandler(
    # Trained weights hardly compress: it would cost ten times the time.
    use_compression=False,
    # What is being written exists twice; Orbax refuses a leaf above the bound.
    save_concurrent_gb=1 + largest // 10**9,
  )
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  registry.add(checkpoint_read.STATE, ocp.args.PyTreeSave, handler)
  options = ocp.CheckpointManagerOptions(
    preservation_policy=_Kept(chosen),
    cleanup_tmp_directories=True,
    temporary_path_class=TemporaryPath,
    # Who restores has looked at them, and removed what is damaged.
    lightweight_initialize=True,
    save_root_metadata=False,
    # What can go wrong with folders shall go wrong at once.
    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
  )
  return _Manager(folder, options=options, handler_registry=registry)
