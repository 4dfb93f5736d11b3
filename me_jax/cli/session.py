"""What every verb does around its work: caches, memory, progress."""

from __future__ import annotations

from collections.abc import Generator
import contextlib
import ctypes
import os
import pathlib
import sys
import time
from typing import Any, cast

_M_MMAP_THRESHOLD = -3
_EVERY = 30.0  # seconds between lines of a step where there is no terminal


def cache_dir() -> pathlib.Path | None:
  """Returns the user's cache folder for me_jax, None if it cannot be made."""
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  path = os.environ.get('ME_JAX_CACHE') or pathlib.Path(home) / 'me_jax'
  path = pathlib.Path(path)
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError:
    return None
  return path if os.access(path, os.W_OK) else None


def keep_compiled() -> None:
  """Makes JAX keep compiled programs across processes."""
  import jax

  # Who has set up JAX's own cache keeps it.
  folder = cache_dir()
  if (
    folder is not None
    and cast(Any, jax.config).jax_compilation_cache_dir is None
  ):
    jax.config.update('jax_compilation_cache_dir', str(folder / 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def return_freed_memory() -> None:
  """Gives the system what was freed, and from now on large buffers at once.

  glibc would keep them and fill the gaps with small things: tens of megabytes
  in a short run. No effect where there is no glibc.
  """
  with contextlib.suppress(AttributeError, OSError, TypeError):
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    libc.malloc_trim(0)


class Progress:
  """Steps of a verb, shown on stderr while they run."""

  def __init__(self, bars: Any = None):
    self._bars = bars
    self._tasks: dict[str, Any] = {}

  @property
  def has_bars(self) -> bool:
    """Whether steps are bars, on a terminal, rather than lines."""
    return self._bars is not None

  def step(self, what: str, done: int, total: int) -> None:
    """Shows that `done` of `total` of a step are through."""
    if self._bars is None:
      self._tell(what, done, total)
      return
    if what not in self._tasks:
      self._tasks[what] = self._bars.add_task(what, total=total)
    self._bars.update(self._tasks[what], completed=done, total=total)

  def _tell(self, what: str, done: int, total: int) -> None:
    """Writes a line at first, and now and then while a step takes long."""
    now = time.monotonic()
    if what in self._tasks and now - self._tasks[what] < _EVERY:
      return
    far = f': {done} of {total}' if what in self._tasks else ''
    self._tasks[what] = now
    print(f'me-jax: {what}{far}', file=sys.stderr, flush=True)


class Silent(Progress):
  """Shows nothing."""

  def step(self, what: str, done: int, total: int) -> None:
    """Does nothing."""


@contextlib.contextmanager
def progress(show: bool = True) -> Generator[Progress]:
  """Yields bars on a terminal, and a line a step elsewhere.

  Args:
    show: False shows nothing, as processes do whose work another one shows.
  """
  if not show:
    yield Silent()
    return
  if not sys.stderr.isatty():
    yield Progress()
    return
  from rich import console as console_lib
  from rich import progress as progress_lib

  console = console_lib.Console(stderr=True)
  with progress_lib.Progress(console=console, transient=True) as bars:
    yield Progress(bars)
