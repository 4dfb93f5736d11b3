"""`me-jax export`: a model as a Hugging Face folder."""

from __future__ import annotations

import functools
import math
import os

from absl import flags as absl_flags

from me_jax import errors
from me_jax.cli import flags as flags_lib
from me_jax.cli import session

HELP = """\
Writes a model as a folder that transformers and most other tools load:
safetensors, config.json and the tokenizer's files, with the metadata of the
model. A mitigation goes with it; only me_jax applies it, transformers warns and
runs the model without. The folder appears when it is complete."""

_OUT = os.path.join('out', 'export')


def define(flags: absl_flags.FlagValues) -> None:
  """Declares the verb's flags."""
  flags_lib.define_source(flags)
  absl_flags.DEFINE_string(
    'out',
    _OUT,
    'the folder to write. It must not exist, or be empty, unless --overwrite '
    'is given.',
    flag_values=flags,
  )
  absl_flags.DEFINE_enum(
    'dtype',
    None,
    ['float32', 'bfloat16', 'float16'],
    'type of the tensors. Default: the one that the model is stored in; '
    'float32 where it is quantised or in several.',
    flag_values=flags,
  )
  absl_flags.DEFINE_float(
    'max_shard_gb',
    5.0,
    'size of a safetensors file in GB (10^9 bytes); a larger model is split '
    'into several, with an index.',
    flag_values=flags,
  )
  absl_flags.DEFINE_boolean(
    'overwrite',
    False,
    'replace an earlier export. It stays until the new one is complete; a '
    'folder that holds anything else is never replaced.',
    flag_values=flags,
  )


def run(flags: absl_flags.FlagValues) -> None:
  """Runs the verb."""
  size = flags.max_shard_gb
  if not (math.isfinite(size) and size * 1e9 >= 1):
    raise errors.MeJaxError(
      f'--max_shard_gb={size:g}: must be a size in GB, such as 5.'
    )
  from me_jax.checkpoints import export
  from me_jax.checkpoints import leaves
  from me_jax.checkpoints import load
  from me_jax.checkpoints import sink_leaves

  target = export.check_target(flags.out, overwrite=flags.overwrite)
  checkpoint = load.open_checkpoint(flags.model)
  if os.path.exists(target) and os.path.samefile(target, checkpoint.path):
    raise errors.MeJaxError(f'--out={flags.out} is the model itself.')
  dtype = flags.dtype or checkpoint.stored_dtype
  with session.progress() as progress:
    lm = load.load_opened(
      checkpoint,
      dtype=dtype,
      progress=functools.partial(progress.step, 'loading weights'),
    )
    export.export(
      lm,
      target,
      metadata=checkpoint.metadata,
      max_shard_size=round(size * 1e9),
      overwrite=flags.overwrite,
      progress=functools.partial(progress.step, 'writing'),
    )
  what = f'{checkpoint.config.model_type}, {dtype}'
  if sink_leaves.act(leaves.flatten(lm.params)):
    what += ', with its mitigation, which transformers passes over'
  print(f'wrote {flags.out}: {what}')
