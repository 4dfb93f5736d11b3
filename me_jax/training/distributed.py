"""How do the processes of a run find each other?

JAX knows TPU pods, Slurm, Open MPI and Kubernetes jobs; elsewhere three numbers
say it, as arguments or in the environment: JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID. Under Slurm and Open MPI, JAX gives each
process one GPU; JAX_LOCAL_DEVICE_IDS says otherwise.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import jax

from me_jax import errors

MODES = ('auto', 'on', 'off')
_VARIABLES = {
  'coordinator': 'JAX_COORDINATOR_ADDRESS',
  'num_processes': 'JAX_NUM_PROCESSES',
  'process_id': 'JAX_PROCESS_ID',
}


def start(
  mode: str = 'auto',
  *,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: int = 300,
) -> None:
  """Joins the other processes of the run; called again, does nothing.

  Must come before anything is computed or a device is looked at. Once a process
  is connected, JAX itself ends it when others do not come or go missing.

  Args:
    mode: `auto` joins where a cluster, an argument or the environment says that
      there are several processes, and else does nothing; `on` raises where
      nothing says so; `off` never joins.
    coordinator: `host:port` of process 0, a free port.
    num_processes: how many there are.
    process_id: index of this one.
    timeout: seconds to wait for the others.

  Raises:
    MeJaxError: an argument is missing or wrong, JAX was used before, or the
      others were not reached.
  """
  if mode not in MODES:
    raise errors.MeJaxError(
      f'distributed mode is {mode!r}, must be one of {", ".join(MODES)}'
      f'{errors.nearest(str(mode), MODES)}.'
    )
  given = _given(coordinator, num_processes, process_id)
  if mode == 'off':
    return
  if jax.distributed.is_initialized():
    _check_running(given)
    return
  if given:
    _check(given)
    if given.get('process_id') and 'coordinator' in given:
      _wait(given['coordinator'], timeout)
  else:
    cluster = _cluster()
    if mode == 'auto' and (cluster is None or _count(cluster) == 1):
      return
    if cluster is None:
      raise errors.MeJaxError(
        'no TPU pod, Slurm, Open MPI or Kubernetes job was found: name'
        ' coordinator (host:port), num_processes and process_id, or set'
        f' {", ".join(_VARIABLES.values())}.'
      )
  try:
    jax.distributed.initialize(
      given.get('coordinator'),
      given.get('num_processes'),
      given.get('process_id'),
      initialization_timeout=timeout,
    )
  # Whatever a scheduler, a metadata server or a network may do.
  except Exception as error:
    raise errors.MeJaxError(
      f'the processes of the run could not be joined: {error}'
    ) from error


def is_writer() -> bool:
  """Says whether this process writes what only one may: process 0 does."""
  return jax.process_index() == 0


def _given(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> dict[str, Any]:
  """Returns what arguments say, or else the environment."""
  given = {
    'coordinator': coordinator,
    'num_processes': num_processes,
    'process_id': process_id,
  }
  for name, variable in _VARIABLES.items():
    if given[name] is None and os.environ.get(variable):
      value = os.environ[variable]
      if name != 'coordinator':
        if not value.isdecimal():
          raise errors.MeJaxError(f'{variable} is {value!r}, not a number.')
        value = int(value)
      given[name] = value
  return {name: value for name, value in given.items() if value is not None}


def _check(given: dict[str, Any]) -> None:
  """Raises MeJaxError for arguments that cannot be."""
  missing = [name for name in _VARIABLES if name not in given]
  if missing and _cluster() is None:
    raise errors.MeJaxError(
      f'{", ".join(given)} is given without {" and ".join(missing)}, and no'
      ' cluster was found that would say.'
    )
  address = given.get('coordinator', 'host:1')
  host, _, port = str(address).rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise errors.MeJaxError(
      f'the coordinator is {address!r}, must be host:port.'
    )
  count, index = given.get('num_processes'), given.get('process_id')
  if count is not None and count < 1:
    raise errors.MeJaxError(f'num_processes is {count}, must be 1 or more.')
  if index is not None and not 0 <= index < (count or index + 1):
    raise errors.MeJaxError(
      f'process_id is {index}, must be from 0 to below'
      f' {count or "num_processes"}.'
    )


def _wait(address: str, timeout: float) -> None:
  """Waits until process 0 listens.

  JAX aborts where it cannot connect, without an exception to catch.

  Raises:
    MeJaxError: it does not for so long.
  """
  host, _, port = address.rpartition(':')
  end = time.monotonic() + timeout
  while True:
    try:
      socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
      return
    except OSError as error:
      if time.monotonic() >= end:
        raise errors.MeJaxError(
          f'no process 0 answers at {address} after {timeout} seconds: {error}'
        ) from error
    time.sleep(0.2)


def _check_running(given: dict[str, Any]) -> None:
  """Raises MeJaxError where another run was joined before."""
  for name, is_now in (
    ('num_processes', jax.process_count()),
    ('process_id', jax.process_index()),
  ):
    if given.get(name, is_now) != is_now:
      raise errors.MeJaxError(
        f'{name} is {given[name]}, but this process has joined a run before, in'
        f' which it is {is_now}.'
      )


def _cluster() -> Any:
  """Returns the environment that JAX finds itself in, or None.

  JAX's own detection, which has no public name: `initialize` asks it only as
  long as no device was used, when it is too late to learn that there is nothing
  to do.
  """
  from jax._src import clusters

  try:
    return next(
      (
        kind
        for kind in clusters.ClusterEnv._cluster_types
        if not kind.opt_in_only_method and kind.is_env_present()
      ),
      None,
    )
  except Exception as error:
    raise errors.MeJaxError(
      f'the cluster could not be asked about this run: {error}; where it is one'
      ' process, say off.'
    ) from error


def _count(cluster: Any) -> int:
  """Returns how many processes a cluster has started."""
  try:
    return cluster.get_process_count()
  except Exception as error:
    raise errors.MeJaxError(
      f'{cluster.__name__} does not say how many processes there are: {error};'
      ' where it is one, say off.'
    ) from error
