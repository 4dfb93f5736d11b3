"""How does an Orbax save become visible? Whole, and with its other files.

Orbax writes to a temporary folder. When all processes have written their
shards it calls a `TemporaryPath` on the primary one to finalise it. Ours adds
files of its own, and lets the finished folder take the place of an older one.
Imported only when something is saved: orbax takes half a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
import contextlib
import os
from typing import Any

from orbax.checkpoint import path as path_lib

from me_jax.checkpoints import atomic

_Base = path_lib.atomicity.AtomicRenameTemporaryPath


class Commit:
  """What happens to the folders of one save, on the primary process.

  Attributes:
    staging: the folder that Orbax must be told to save to. It insists that its
      destination does not exist, so this is not yet the final name.
    temporary_path_class: what Orbax shall finalise with.
  """

  def __init__(self, target: str, files: Mapping[str, bytes]):
    """Prepares a save.

    Args:
      target: where the folder shall stand in the end.
      files: what else it shall hold, by relative path.
    """
    self.staging = atomic.staging(target)
    self._temporary = self.staging + path_lib.atomicity.TMP_DIR_SUFFIX
    self._lock = contextlib.ExitStack()
    commit = self

    class TemporaryPath(_Base):
      """Orbax's own, with a little more at both ends."""

      async def create(self) -> Any:
        result = await super().create()
        commit._fill(str(self.get()), files)
        return result

      async def finalize(self) -> None:
        await super().finalize()
        await asyncio.to_thread(atomic.replace, commit.staging, target)

    self.temporary_path_class = TemporaryPath

  def remove_stale(self) -> None:
    """Removes what an interrupted save has left; raises if one is running."""
    for folder in (self._temporary, self.staging):
      atomic.remove_stale(folder)

  def end(self, succeeded: bool) -> None:
    """Lets go of the folders, and removes those of a save that failed."""
    if not succeeded:
      for folder in (self._temporary, self.staging):
        atomic.remove(folder)
    self._lock.close()

  def _fill(self, folder: str, files: Mapping[str, bytes]) -> None:
    self._lock.enter_context(atomic.lock(folder))
    for name, data in files.items():
      path = os.path.join(folder, name)
      os.makedirs(os.path.dirname(path), exist_ok=True)
      with open(path, 'wb') as file:
        file.write(data)
