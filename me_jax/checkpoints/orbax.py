"""How is a model kept between runs, whatever its size and sharding?

As an Orbax checkpoint of the parameter tree, written by all processes at once
and read onto any mesh, with our configuration, free metadata and the tokenizer
beside it:

  me_jax.json   format, configuration, metadata
  params/       the tree, by Orbax
  tokenizer/    as transformers writes it; absent when there is none

A folder is complete or absent: see `orbax_commit.py`. `orbax_open.py` reads it.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Generator, Mapping
import contextlib
import functools
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import jax

from me_jax import errors
from me_jax.checkpoints import atomic
from me_jax.checkpoints import finite
from me_jax.checkpoints import leaves as leaves_lib
from me_jax.checkpoints import metadata as metadata_lib
from me_jax.checkpoints import orbax_card
from me_jax.checkpoints import param_tree
from me_jax.checkpoints import processes
from me_jax.checkpoints import sink_leaves

if TYPE_CHECKING:
  from me_jax.checkpoints import load
  from me_jax.checkpoints import orbax_commit

# What a folder of ours holds.
_OURS = frozenset({
  orbax_card.FILE,
  orbax_card.ORBAX_FILE,
  orbax_card.TOKENIZER,
  orbax_card.PARAMS,
  'commit_success.txt',
})  # fmt: skip
# Saves that nobody has waited for.
_running: set[Save] = set()


class Save:
  """A save that may still be running.

  Attributes:
    folder: where the checkpoint stands when it is complete.
  """

  def __init__(self, folder: str, finish: Callable[[], None]):
    self.folder = folder
    self._finish: Callable[[], None] | None = finish
    self._error: BaseException | None = None
    self._lock = threading.Lock()

  def wait(self) -> None:
    """Returns when the folder is complete.

    Raises:
      MeJaxError: it could not be written; nothing was left behind, and what
        stood there before still does.
    """
    with self._lock:
      if self._finish is not None:
        finish, self._finish = self._finish, None
        _running.discard(self)
        try:
          finish()
        # An interrupted wait has removed the folder: the next one must say so.
        except BaseException as error:
          self._error = error
    if self._error is not None:
      raise self._error


def save(
  lm: load.LoadedModel,
  folder: str | os.PathLike[str],
  *,
  metadata: Mapping[str, Any] | None = None,
  overwrite: bool = False,
  asynchronous: bool = False,
) -> Save:
  """Writes a model as a folder that `me_jax.load` reads, on any mesh.

  The folder is complete or absent, whenever the process ends. With several
  processes all of them call this, and each writes its own shards.

  Args:
    lm: the model; parameters, configuration and tokenizer (or None) are
      written. The parameters may have the mitigation's leaves besides the
      model's own.
    folder: where, on a file system that all processes share.
    metadata: anything that JSON can hold, such as where the model comes from
      and what was done to it; `read_metadata` returns it.
    overwrite: replace an earlier save, which stays until the new one is
      complete.
    asynchronous: return when the parameters may change again. The folder
      stands when `wait` has returned; the end of the process waits, too.

  Returns:
    The save, complete unless `asynchronous`.

  Raises:
    MeJaxError: the folder exists or cannot be written, or the model cannot be
      loaded again: its parameters do not fit its configuration, are not
      finite or mean nothing. Nothing is left behind.

  Examples:
    >>> import me_jax
    >>> lm = me_jax.load('smollm2')
    >>> running = me_jax.save(lm, 'saved', overwrite=True, asynchronous=True)
    >>> running.wait()  # or go on; the process does not end before it stands
    >>> me_jax.load('saved', dtype='bfloat16').config == lm.config
    True
  """
  target, files = processes.together(
    functools.partial(_prepare, lm, folder, metadata, overwrite)
  )
  leaves = leaves_lib.flatten(lm.params)
  broken = finite.offenders(leaves)
  if broken:
    raise errors.MeJaxError(
      f'{broken[0]} holds NaN or infinite values: such a model is not saved'
    )
  sink_leaves.check_values(leaves, 'the parameters')
  import orbax.checkpoint as ocp

  from me_jax.checkpoints import orbax_commit

  commit = orbax_commit.Commit(target, files)
  processes.together(lambda: jax.process_index() or commit.remove_stale())
  checkpointer = _checkpointer(commit, leaves, asynchronous)
  arguments = ocp.args.Composite(**{orbax_card.PARAMS: _arguments(leaves)})
  with _ending(target, checkpointer, commit, succeeded=not asynchronous):
    checkpointer.save(commit.staging, args=arguments)

  def finish() -> None:
    with _ending(target, checkpointer, commit, succeeded=True):
      checkpointer.wait_until_finished()

  result = Save(target, finish if asynchronous else lambda: None)
  if asynchronous:
    _running.add(result)
    _wait_at_exit()
  return result


def check_target(folder: str | os.PathLike[str], *, overwrite: bool) -> str:
  """Returns the absolute path of a folder that may be written.

  Args:
    folder: where to save.
    overwrite: whether an earlier save may stand there.

  Raises:
    MeJaxError: it cannot, or may not, be written.
  """
  return atomic.check_target(
    folder, overwrite=overwrite, ours=_OURS.__contains__, mark=orbax_card.FILE
  )


def _arguments(leaves: Mapping[str, Any]) -> Any:
  """Returns what Orbax is told to save: a chunk for each layer's kernels.

  Chunks are read whole, so small ones cost less on another mesh.
  """
  import orbax.checkpoint as ocp

  chunks = {
    path: ocp.SaveArgs(shard_axes=(0,) if leaf.ndim == 3 else ())
    for path, leaf in leaves.items()
  }
  return ocp.args.PyTreeSave(
    leaves_lib.unflatten(leaves), leaves_lib.unflatten(chunks)
  )


def _checkpointer(
  commit: orbax_commit.Commit, leaves: Mapping[str, Any], asynchronous: bool
) -> Any:
  """Returns an Orbax checkpointer that finalises as `commit` says."""
  import orbax.checkpoint as ocp

  largest = max(leaf.nbytes for leaf in leaves.values())
  handler = ocp.PyTreeCheckpointHandler(
    # Trained weights hardly compress: it would cost ten times the time.
    use_compression=False,
    # What is being written exists twice; Orbax refuses a leaf above the bound.
    save_concurrent_gb=1 + largest // 10**9,
  )
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  registry.add(orbax_card.PARAMS, ocp.args.PyTreeSave, handler)
  # What can go wrong with folders shall go wrong at once.
  at_once = ocp.options.AsyncOptions(create_directories_asynchronously=False)
  composite = ocp.CompositeCheckpointHandler(
    handler_registry=registry,
    composite_options=ocp.CompositeOptions(async_options=at_once),
  )
  options = {'temporary_path_class': commit.temporary_path_class}
  if asynchronous:
    return ocp.AsyncCheckpointer(composite, async_options=at_once, **options)
  return ocp.Checkpointer(composite, **options)


@functools.cache
def _wait_at_exit() -> None:
  """Makes the end of the process wait for saves."""

  def wait() -> None:
    for running in tuple(_running):
      try:
        running.wait()
      except errors.MeJaxError as error:
        print(f'me_jax: {error}', file=sys.stderr)

  # `atexit` comes too late: Orbax needs thread pools, and Python has closed
  # them by then.
  getattr(threading, '_register_atexit', atexit.register)(wait)


@contextlib.contextmanager
def _ending(
  target: str, checkpointer: Any, commit: orbax_commit.Commit, succeeded: bool
) -> Generator[None]:
  """Ends a save that fails in this block, or succeeds when it is the last.

  Raises:
    MeJaxError: the block has raised.
  """
  try:
    yield
    if succeeded:
      commit.end(succeeded=True)
      checkpointer.close()
  except BaseException as error:
    # First: it may still be writing into the folder.
    with contextlib.suppress(Exception):
      checkpointer.close()
    commit.end(succeeded=False)
    if isinstance(error, Exception):
      raise orbax_card.failure(f'cannot save {target}', error) from error
    raise


def _prepare(
  lm: load.LoadedModel,
  folder: str | os.PathLike[str],
  metadata: Mapping[str, Any] | None,
  overwrite: bool,
) -> tuple[str, dict[str, bytes]]:
  """Checks everything that can be, and returns where and what to write."""
  param_tree.check(lm.config, lm.params, 'the parameters')
  if jax.process_index():
    return atomic.absolute(folder), {}
  target = check_target(folder, overwrite=overwrite)
  return target, orbax_card.files(
    lm.config, metadata_lib.check(metadata), lm.tokenizer
  )
