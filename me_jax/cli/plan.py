"""`me-jax plan`: does a run fit a pod, and how fast can it be?"""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any

from absl import flags as absl_flags

from me_jax import errors
from me_jax.cli import session
from me_jax.cli import train_flags

HELP = """\
Compiles what a run would run for a TPU pod that is not here, from shapes alone (no
weights, no data, no device), and says whether it fits, what it moves and how fast it
can be at the chip's published figures. Needs the TPU compiler: pip install
'me-jax[tpu]', best in an environment of its own. GPU clusters are estimated with
XLA's compiler for CPUs, which needs nothing more. The exit status is 1 where a
program does not fit, or a search finds none that does."""

_WHAT = ('step', 'train', 'analysis', 'generate')
_CACHE = 'plans'
_FILE = 'plan.json'
_COUNT = '--xla_force_host_platform_device_count'


def define(flags: absl_flags.FlagValues) -> None:
  """Declares the verb's flags."""
  train_flags.define_run(flags)
  absl_flags.DEFINE_string(
    'topology',
    'v5e-1',
    'the pod or cluster: TPU slices by their names, v5e-256, v6e-64, v5p-1024 '
    'and v4-64 (which count TensorCores, two a chip), or by their grid, '
    'v5p:8x8x8; several slices, 2*v5e-256; GPUs, eight a host, h100x64.',
    flag_values=flags,
  )
  absl_flags.DEFINE_string(
    'model_config',
    None,
    'a config.json, or a folder with one, of the model: for those that are not '
    'on this machine. Some public models are known by name.',
    flag_values=flags,
  )
  absl_flags.DEFINE_list(
    'what',
    'train',
    'what is compiled, any of: step (of training, alone), train (all programs '
    'of the run: step, scoring, monitor, drawing of answers), analysis (of find '
    'and explain, printed as diagnose, beside a plain pass, printed as '
    'forward), generate (prefill and decode).',
    flag_values=flags,
  )
  absl_flags.DEFINE_integer(
    'rows',
    None,
    'rows of an analysis (8), or texts at a time of generate (64).',
    lower_bound=1,
    flag_values=flags,
  )
  absl_flags.DEFINE_integer(
    'length',
    None,
    'tokens of a row of an analysis or of generate, where half of it is prompt '
    '(4096, or the context).',
    lower_bound=1,
    flag_values=flags,
  )
  absl_flags.DEFINE_bool(
    'search',
    False,
    'try other meshes, remat policies, parts of a batch and chunks for the step '
    'of training, and say which are best in memory and time.',
    flag_values=flags,
  )
  absl_flags.DEFINE_integer(
    'most',
    12,
    'how many settings a search compiles at most; arithmetic chooses them.',
    lower_bound=1,
    flag_values=flags,
  )
  absl_flags.DEFINE_string(
    'out', None, f'a folder for {_FILE}, all numbers.', flag_values=flags
  )


def run(flags: absl_flags.FlagValues) -> int:
  """Runs the verb; returns the exit status."""
  from me_jax import files
  from me_jax.planning import topology as topology_lib

  what = _what(flags)
  if flags.search and not {'step', 'train'} & {*what}:
    raise errors.MeJaxError(
      '--search is for the step of training: leave --what out, or name step.'
    )
  topology = topology_lib.find(flags.topology)
  out = pathlib.Path(flags.out) / _FILE if flags.out else None
  files.check_writable(out)
  if flags.model_config and not os.path.exists(flags.model_config):
    raise errors.MeJaxError(
      f'--model_config={flags.model_config}: no such file or folder.'
    )
  _prepare(topology)
  settings = train_flags.run(flags)
  from me_jax.planning import workload

  # A search finds meshes of its own.
  mesh = None if flags.search else workload.mesh_of(settings, topology)
  config = _config(flags, settings.model)
  with session.progress() as progress:
    if flags.search:
      found = _search(flags, settings, config, topology, progress)
    else:
      found = _plan(flags, settings, config, topology, mesh, what, progress)
  if out is not None:
    files.write_json(out, found)
    print(f'wrote {out}')
  return 0 if found['front' if flags.search else 'fits'] else 1


def _config(flags: Any, model: str) -> Any:
  """Returns the configuration of the model.

  Raises:
    MeJaxError: it is not on this machine, and not known by name.
  """
  from me_jax.planning import known_models

  if flags.model_config:
    return known_models.config_of(flags.model_config)
  try:
    return known_models.config_of(model)
  except errors.MeJaxError as error:
    raise errors.MeJaxError(f'{error} Name it by --model_config.') from None


def _plan(
  flags: Any,
  settings: Any,
  config: Any,
  topology: Any,
  mesh: Any,
  what: tuple[str, ...],
  progress: session.Progress,
) -> dict[str, Any]:
  """Compiles, prints and returns what was asked for."""
  from me_jax.cli import plan_table
  from me_jax.planning import plan as plan_lib
  from me_jax.planning import workload

  progress.step('laying out shapes', 0, 1)
  targets = workload.targets(
    settings,
    config,
    topology,
    mesh,
    what,
    rows=flags.rows,
    length=flags.length,
  )
  progress.step('laying out shapes', 1, 1)
  found = plan_lib.make(
    targets,
    model=settings.model,
    topology=topology,
    folder=_cache(),
    progress=progress.step,
  )
  plan_table.show(found)
  return plan_lib.to_json(found)


def _search(
  flags: Any,
  settings: Any,
  config: Any,
  topology: Any,
  progress: session.Progress,
) -> dict[str, Any]:
  """Tries other settings, prints and returns what came of it."""
  from me_jax.cli import plan_table
  from me_jax.planning import search

  found = search.search(
    settings,
    config,
    topology,
    most=flags.most,
    folder=_cache(),
    progress=progress.step,
  )
  plan_table.show_search(found, settings.model, topology)
  return search.to_json(found)


def _what(flags: Any) -> tuple[str, ...]:
  """Returns what is to be compiled.

  Raises:
    MeJaxError: there is no such thing.
  """
  found = tuple(dict.fromkeys(flags.what))
  for one in found:
    if one not in _WHAT:
      raise errors.MeJaxError(
        f'--what names {one!r}, which is none of {", ".join(_WHAT)}'
        f'{errors.nearest(one, _WHAT)}.'
      )
  if not found:
    raise errors.MeJaxError(f'--what names none of {", ".join(_WHAT)}.')
  return found


def _cache() -> pathlib.Path | None:
  folder = session.cache_dir()
  return None if folder is None else folder / _CACHE


def _prepare(topology: Any) -> None:
  """Sets what must be set before JAX is imported.

  Raises:
    MeJaxError: JAX has been imported, and there are too few stand-ins.
  """
  from me_jax.planning import topology as topology_lib

  topology_lib.check_compiler(topology)
  needed = topology_lib.environment(topology)
  set_so = all(os.environ.get(name) == needed[name] for name in needed)
  if 'jax' in sys.modules and not set_so:
    # A process that plans for several topologies has set what it needs.
    import jax

    enough = len(jax.devices('cpu')) >= topology.devices
    if not (topology.exact or enough):
      raise errors.MeJaxError(
        f'{topology.name} needs {needed["XLA_FLAGS"]} in XLA_FLAGS before JAX'
        ' is imported, and it has been: plan in a process of its own.'
      )
  if 'XLA_FLAGS' in needed:
    # Others that the user has set stay, but a count of devices.
    kept = [
      flag
      for flag in os.environ.get('XLA_FLAGS', '').split()
      if not flag.startswith(_COUNT)
    ]
    needed = needed | {'XLA_FLAGS': ' '.join([*kept, needed['XLA_FLAGS']])}
  os.environ.update(needed)
