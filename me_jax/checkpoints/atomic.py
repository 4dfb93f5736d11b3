"""How does a folder appear complete or not at all?

It is written under a hidden name beside its place and renamed when it is
complete. What is to be replaced stays until then. Who is killed leaves only
the hidden folder, which the next one who writes to the same place removes; a
lock that ends with its process tells it from one that is being written.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
import contextlib
import ctypes
import fcntl
import os
import shutil
import time
from typing import Any

from me_jax import errors

# From Linux's fs.h and fcntl.h: swap two names in one step.
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
# How often, and in which distance in seconds, a removal is tried.
_ATTEMPTS, _PAUSE = 20, 0.05


def check_target(
  folder: str | os.PathLike[str],
  *,
  overwrite: bool,
  ours: Callable[[str], Any],
  mark: str,
) -> str:
  """Finds out whether a folder can be written; leaves nothing behind.

  Args:
    folder: where it shall stand.
    overwrite: whether a folder of the same kind may stand there already.
    ours: whether a name is one that a folder of this kind holds. A folder that
      holds anything else is never replaced.
    mark: what it holds in any case.

  Returns:
    Its absolute path, symbolic links followed.

  Raises:
    MeJaxError: it cannot, or may not, be written.
  """
  target = absolute(folder)
  if os.path.lexists(target) and not os.path.isdir(target):
    raise errors.MeJaxError(f'{folder} is a file: name a folder to write')
  if os.path.isdir(target):
    _check_replaceable(target, overwrite, ours, mark)
  made = []
  try:
    path = staging(target)
    while not os.path.lexists(path):
      made.append(path)
      path = os.path.dirname(path)
    for path in reversed(made):
      os.mkdir(path)
  except OSError as error:
    raise errors.MeJaxError(
      f'cannot write {folder}: {error.strerror}'
    ) from error
  finally:
    for path in made:
      with contextlib.suppress(OSError):
        os.rmdir(path)
  return target


def absolute(folder: str | os.PathLike[str]) -> str:
  """Returns the path with symbolic links followed.

  Raises:
    MeJaxError: it is no path to a folder on this machine.
  """
  try:
    name = os.fspath(folder)
  except TypeError:
    name = None
  if not isinstance(name, str) or not name or '\0' in name:
    raise errors.MeJaxError(
      f'a folder to write is named by a path, not by {folder!r:.80}'
    )
  if '://' in name:
    raise errors.MeJaxError(
      f'{name:.200} is no local path: mount the storage and name its folder'
    )
  target = os.path.realpath(os.path.expanduser(name))
  if not os.path.basename(target):
    raise errors.MeJaxError(f'{name} cannot be written: name a folder in it')
  return target


def check_space(target: str, nbytes: int) -> None:
  """Raises MeJaxError if `nbytes` have no room where `target` shall stand."""
  parent = os.path.dirname(target)
  while not os.path.isdir(parent):
    parent = os.path.dirname(parent)
  free = shutil.disk_usage(parent).free
  if nbytes > free:
    raise errors.MeJaxError(
      f'{target} needs {nbytes / 1e9:.1f} GB, there are {free / 1e9:.1f} GB:'
      ' free some space, or name another disk'
    )


def staging(target: str) -> str:
  """Returns the hidden name under which `target` is written."""
  return os.path.join(
    os.path.dirname(target), f'.{os.path.basename(target)}.partial'
  )


@contextlib.contextmanager
def writing(target: str) -> Generator[str]:
  """Yields a folder to fill, which becomes `target` if nothing is raised.

  Args:
    target: as `check_target` returns it.

  Raises:
    MeJaxError: the file system refuses, or another process writes the same.
  """
  partial = staging(target)
  try:
    remove_stale(partial)
    os.makedirs(partial)
    with lock(partial):
      try:
        yield partial
        _flush(partial)
        replace(partial, target)
      except BaseException:
        remove(partial)
        raise
  except OSError as error:
    raise errors.MeJaxError(
      f'cannot write {target}: {error.strerror or error}'
    ) from error


def remove_stale(partial: str) -> None:
  """Removes what a process that was killed has left behind.

  Raises:
    MeJaxError: the folder is still being written.
  """
  if os.path.isdir(partial):
    with lock(partial):
      shutil.rmtree(partial)


def remove(folder: str) -> None:
  """Removes a folder, also while a last thread still writes to it."""
  for _ in range(_ATTEMPTS):
    shutil.rmtree(folder, ignore_errors=True)
    if not os.path.lexists(folder):
      return
    time.sleep(_PAUSE)


@contextlib.contextmanager
def lock(partial: str) -> Generator[None]:
  """Marks a folder as being written, until the block or the process ends.

  Raises:
    MeJaxError: somebody else has marked it.
  """
  handle = os.open(partial, os.O_RDONLY)
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    os.close(handle)
    raise errors.MeJaxError(
      f'{partial} is being written by another process, or by a save in the'
      ' background: wait for it'
    ) from error
  except OSError:
    # Some network file systems have no locks.
    pass
  if not _is_still_there(handle, partial):
    os.close(handle)
    raise errors.MeJaxError(
      f'{partial} is being written by another process: wait for it'
    )
  try:
    yield
  finally:
    os.close(handle)


def _is_still_there(handle: int, path: str) -> bool:
  """Whether a name still stands for the folder that was opened.

  Between opening and locking, another process may have taken it for a stale
  one and made a new one.
  """
  try:
    return os.path.samestat(os.fstat(handle), os.stat(path))
  except FileNotFoundError:
    return False


def replace(complete: str, target: str) -> None:
  """Puts a complete folder in its place; what stood there is removed.

  Both names change hands in one step where the system can do that. Elsewhere
  the old folder is moved aside for a moment.

  Args:
    complete: a folder beside `target`.
    target: where it shall stand.
  """
  try:
    os.rename(complete, target)
  except OSError:
    if not os.path.isdir(target):
      raise
  else:
    return
  if _exchange(complete, target):
    remove(complete)
    return
  aside = f'{complete}.old'
  remove(aside)
  os.rename(target, aside)
  try:
    os.rename(complete, target)
  except OSError:
    os.rename(aside, target)
    raise
  remove(aside)


def _flush(folder: str) -> None:
  """Sends files to the disk: a new name must not arrive there before them."""
  for parent, _, names in os.walk(folder):
    for path in (*(os.path.join(parent, name) for name in names), parent):
      handle = os.open(path, os.O_RDONLY)
      try:
        os.fsync(handle)
      finally:
        os.close(handle)


def _exchange(one: str, other: str) -> bool:
  """Swaps two names in one step; False where the system cannot."""
  function = getattr(ctypes.CDLL(None), 'renameat2', None)
  if function is None:
    return False
  names = os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE
  return function(_AT_FDCWD, *names) == 0


def _check_replaceable(
  target: str, overwrite: bool, ours: Callable[[str], Any], mark: str
) -> None:
  """Raises MeJaxError unless a folder that exists may be replaced."""
  try:
    present = sorted(os.listdir(target))
    here = os.path.samefile(target, os.curdir)
  except OSError as error:
    raise errors.MeJaxError(
      f'cannot read {target}: {error.strerror}'
    ) from error
  if here or os.path.ismount(target):
    kind = 'the current folder' if here else 'a mount point'
    raise errors.MeJaxError(
      f'{target} is {kind}, which cannot be replaced: name a folder in it'
    )
  if present and not overwrite:
    raise errors.MeJaxError(
      f'{target} exists and is not empty: name another folder, or overwrite it'
      ' (overwrite=True, --overwrite)'
    )
  strangers = [name for name in present if not ours(name)]
  if strangers:
    raise errors.MeJaxError(
      f'{target} holds {strangers[0]:.80}, which is no part of what would'
      ' replace it: name another folder'
    )
  if present and mark not in present:
    raise errors.MeJaxError(
      f'{target} has no {mark}, so it is nothing that may be replaced: name'
      ' another folder'
    )
