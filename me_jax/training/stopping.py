"""How does a run learn that it must end, in time to save?

A first SIGTERM or SIGINT is noted, and the loop asks for it after each step; a
second one acts as it would without us. Several processes must end after the
same step. JAX's coordination service sees to that: it waits for SIGTERM in any
process and gives all of them a step that none has done yet. That handler cannot
be put back once it is replaced, so SIGTERM is left to it, and SIGINT passed on.
"""

from __future__ import annotations

import signal
import threading
from typing import Any, cast

import jax
import numpy as np

_ELSEWHERE = 'a signal to another process'


class Watch:
  """Notes signals while its block runs; outside the main thread, nothing.

  Only the main thread may have handlers.
  """

  def __init__(self):
    self._name: str | None = None
    self._stop = False
    self._before: dict[int, Any] = {}

  def __enter__(self) -> Watch:
    if threading.current_thread() is not threading.main_thread():
      return self
    numbers = [signal.SIGINT]
    if not _served():
      numbers.append(signal.SIGTERM)
    for number in numbers:
      # None is a handler that Python knows nothing of, and could not restore.
      if signal.getsignal(number) is not None:
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_: Any) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def requested(self, step: int) -> str | None:
    """Says whether the run shall end after this step, alike in all processes.

    Args:
      step: how many steps were done. With several processes, all of them ask
        after every step.

    Returns:
      What has asked for it, such as `SIGTERM`; None to go on.
    """
    # Once it has said yes, JAX says no to the steps after.
    self._stop = self._stop or self._agree(step)
    return (self._name or _ELSEWHERE) if self._stop else None

  def _agree(self, step: int) -> bool:
    here = self._name is not None
    if _served():
      from jax.experimental import multihost_utils

      return bool(multihost_utils.reached_preemption_sync_point(step))
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      return bool(multihost_utils.process_allgather(np.array(here)).any())
    return here

  def _note(self, number: int, _: Any) -> None:
    if self._name is not None:
      self.__exit__()
      signal.raise_signal(number)
      return
    self._name = signal.Signals(number).name
    if number == signal.SIGINT and _served():
      signal.raise_signal(signal.SIGTERM)


def _served() -> bool:
  """Says whether JAX itself waits for SIGTERM, as it does once it is joined."""
  return (
    jax.distributed.is_initialized()
    and cast(Any, jax.config).jax_enable_preemption_service
  )
