"""The flags of `me-jax train`, and the run that they describe."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from importlib import resources
import os
import sys
import types
from typing import Any

from absl import flags as absl_flags

from me_jax import errors

FORMS = ('orbax', 'hf', 'baked')
_OUT = 'train'
_FUNCTION = 'config'
_MODULE = 'me_jax_run_config'
_AXES = ('data', 'fsdp', 'tensor', 'sequence')
_SAMPLES = 'samples'


def define(flags: absl_flags.FlagValues) -> None:
  """Declares the verb's flags."""
  define_run(flags)
  absl_flags.DEFINE_string(
    'out',
    None,
    'the folder of the run. If it holds one with the same settings, that one '
    f'goes on. Default: {_OUT}/ and the name of the configuration.',
    flag_values=flags,
  )
  absl_flags.DEFINE_list(
    'write',
    'orbax',
    'forms of the trained model to write, any of: orbax (for me_jax), hf (a '
    'Hugging Face folder; gates and masks as extra tensors, which others '
    'ignore), baked (a Hugging Face folder whose weights hold them too); none '
    'for none.',
    flag_values=flags,
  )
  _define_processes(flags)


def define_run(flags: absl_flags.FlagValues) -> None:
  """Declares the flags that say what is trained."""
  absl_flags.DEFINE_string(
    'config',
    None,
    'a Python file with a function `config(data)` that returns the run, such as '
    'those in configs/. Default: gates are trained, on --data or a few built-in '
    'chats.',
    flag_values=flags,
  )
  absl_flags.DEFINE_multi_string(
    'set',
    [],
    'a field of the run and its value, such as --set optim.lr=1e-3 or --set '
    'mask.rate=0.5; may be given again. --set help lists all fields.',
    flag_values=flags,
  )
  absl_flags.DEFINE_string(
    'data',
    None,
    'what the configuration reads from: for those in configs/ a folder with '
    'gsm8k/train.jsonl and so on (by default, datasets of the hub); without '
    '--config a .jsonl or .txt file or a folder of such, of which the last 16 '
    'rows are held out.',
    flag_values=flags,
  )
  absl_flags.DEFINE_string(
    'model',
    None,
    'the model to start from, as in other verbs; by default what the '
    'configuration says.',
    flag_values=flags,
  )
  absl_flags.DEFINE_integer(
    'steps', None, 'steps of the optimiser.', flag_values=flags
  )
  absl_flags.DEFINE_integer(
    'seed', None, 'of the order, adapters and samples.', flag_values=flags
  )
  absl_flags.DEFINE_string(
    'mesh',
    None,
    'sizes of the axes of the mesh of devices, such as data=2,fsdp=4,tensor=1; '
    '-1 for one is the rest. By default what the configuration says.',
    flag_values=flags,
  )


def _define_processes(flags: absl_flags.FlagValues) -> None:
  absl_flags.DEFINE_enum(
    'distributed',
    'auto',
    ['auto', 'on', 'off'],
    'whether several processes train together: auto where a TPU pod, Slurm, '
    'Open MPI or Kubernetes job says so, or the next three flags do.',
    flag_values=flags,
  )
  absl_flags.DEFINE_string(
    'coordinator', None, 'host:port of process 0.', flag_values=flags
  )
  absl_flags.DEFINE_integer(
    'num_processes', None, 'how many processes there are.', flag_values=flags
  )
  absl_flags.DEFINE_integer(
    'process_id', None, 'index of this process.', flag_values=flags
  )


def forms(flags: absl_flags.FlagValues) -> tuple[str, ...]:
  """Returns the forms to write.

  Raises:
    MeJaxError: one of them does not exist.
  """
  found = tuple(dict.fromkeys(flags.write))
  if found == ('none',):
    return ()
  for form in found:
    if form not in FORMS:
      raise errors.MeJaxError(
        f'--write names {form!r}, which is none of {", ".join(FORMS)}, none'
        f'{errors.nearest(form, FORMS)}.'
      )
  return found


def out(flags: absl_flags.FlagValues) -> str:
  """Returns the folder of the run."""
  if flags.out:
    return flags.out
  name = 'gates'
  if flags.config:
    name = os.path.splitext(os.path.basename(flags.config))[0]
  return os.path.join(_OUT, name)


def run(flags: absl_flags.FlagValues) -> Any:
  """Returns the run that the flags describe.

  Raises:
    MeJaxError: the file or a field is not sound.
  """
  from me_jax.training import overrides
  from me_jax.training import settings
  from me_jax.training import settings_check

  data = os.path.abspath(flags.data) if flags.data else None
  if data and not os.path.exists(data):
    raise errors.MeJaxError(f'--data={flags.data}: no such file or folder.')
  make = _function(flags.config) if flags.config else _default
  found = _called(make, data, flags.config)
  if not isinstance(found, settings.Run):
    raise errors.MeJaxError(
      f'{flags.config}: {_FUNCTION} returns a {type(found).__name__}, must'
      ' return a me_jax.training.settings.Run.'
    )
  found = overrides.apply(found, flags.set)
  given = {
    name: getattr(flags, name)
    for name in ('model', 'seed')
    if getattr(flags, name) is not None
  }
  if flags.steps is not None:
    given |= {'steps': flags.steps, 'epochs': 0.0}
  if flags.mesh:
    given['mesh'] = _mesh(flags.mesh, found.mesh)
  found = dataclasses.replace(found, **given)
  settings_check.check(found)
  return found


def _mesh(text: str, mesh: Any) -> Any:
  """Returns a mesh whose sizes `data=2,fsdp=4` changes."""
  sizes = {}
  for part in text.split(','):
    axis, _, size = part.partition('=')
    whole = size.lstrip('-').isdecimal()
    if axis not in _AXES or not whole:
      raise errors.MeJaxError(
        f'--mesh={text}: {part!r} is no axis and size, such as fsdp=4; the axes'
        f' are {", ".join(_AXES)}{errors.nearest(axis, _AXES)}.'
      )
    sizes[axis] = int(size)
  # An axis that is not named is the rest only where no other is.
  if -1 in sizes.values() and mesh.fsdp == -1 and 'fsdp' not in sizes:
    sizes['fsdp'] = 1
  return dataclasses.replace(mesh, **sizes)


def _function(path: str) -> Callable[[str | None], Any]:
  """Returns the function of a configuration's file."""
  if not os.path.isfile(path):
    raise errors.MeJaxError(f'--config={path}: no such file.')
  if not path.endswith('.py'):
    raise errors.MeJaxError(f'--config={path}: must be a Python file.')
  module = types.ModuleType(_MODULE)
  module.__file__ = path
  # Where dataclasses look for the module that they are in.
  sys.modules[_MODULE] = module
  try:
    with open(path, 'rb') as file:
      # Not an import, which would leave bytecode beside the user's file.
      exec(compile(file.read(), path, 'exec'), module.__dict__)
  except errors.MeJaxError:
    raise
  # A user's file may raise anything.
  except (Exception, SystemExit) as error:
    raise errors.MeJaxError(
      f'{path} cannot be run ({type(error).__name__}: {error}).'
    ) from error
  make = getattr(module, _FUNCTION, None)
  if not callable(make):
    raise errors.MeJaxError(f'{path} has no function {_FUNCTION}(data).')
  return make


def _called(
  make: Callable[[str | None], Any], data: str | None, path: str | None
) -> Any:
  try:
    return make(data)
  except errors.MeJaxError:
    raise
  except (Exception, SystemExit) as error:
    raise errors.MeJaxError(
      f'{path}: {_FUNCTION}(data) raises {type(error).__name__}: {error}.'
    ) from error


def _default(data: str | None) -> Any:
  """Returns the run of who names none: gates, on some chats."""
  from me_jax.training import data as data_lib
  from me_jax.training import settings
  from me_jax.training import trained

  if data is None:
    folder = str(resources.files('me_jax.training').joinpath(_SAMPLES))
    data = os.path.join(folder, 'chats.jsonl')
  source = data_lib.Source
  return settings.Run(
    data=settings.Data(
      mix=data_lib.Mix(sources=(source(data=data, rows=(None, -16)),)),
      length=512,
      batch=2,
    ),
    train=trained.Trained(parts=('gates',)),
    optim=settings.Optimizer(lr=0.05, schedule='constant'),
    steps=20,
    held_out=(
      settings.HeldOut(
        name='held out', source=source(data=data, rows=(-16, None))
      ),
    ),
    evaluation=settings.Evaluation(every=10, length=512),
    monitor_every=10,
  )
