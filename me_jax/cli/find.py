"""`me-jax find`: which layer creates the massive activations?"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

from absl import flags as absl_flags

from me_jax import errors
from me_jax.cli import flags as flags_lib
from me_jax.cli import session

HELP = """\
Finds the ME Layer: the decoder layer that writes a model's massive activations
into one token's residual stream. Prints who wrote them, by layer, attention
and FFN, with the channels and neurons, the tokens, an ordinary token as a
control, and how far three rules agree over all prompts."""

# Lengths of rows to choose from.
_STEP, _LONGEST = 16, 512
_SAMPLED = 500


def define(flags: absl_flags.FlagValues) -> None:
  """Declares the verb's flags."""
  flags_lib.define_model(flags)
  flags_lib.define_prompts(flags)
  flags_lib.define_outputs(flags)
  absl_flags.DEFINE_string(
    'figure',
    None,
    'a file for the figure: .png, .svg or .pdf. With --out, the folder gets '
    'figure.png and report.json without being asked.',
    flag_values=flags,
  )


def run(flags: absl_flags.FlagValues) -> None:
  """Runs the verb."""
  json_path, figure_path = _outputs(flags)
  from me_jax.analysis import prompts as prompts_lib
  from me_jax.checkpoints import load

  prompts = (
    prompts_lib.read(flags.prompts) if flags.prompts else prompts_lib.builtin()
  )
  checkpoint = load.open_checkpoint(flags.model)
  session.keep_compiled()
  report = _find(flags, checkpoint, prompts)
  report = dataclasses.replace(
    report,
    provenance=report.provenance
    | {
      'model': checkpoint.path,
      'prompts': flags.prompts or 'built-in',
      'prompts_sha256': _digest(prompts),
      'prompt_count': len(prompts),
      'bos': flags.bos,
    },
  )
  # Files first: whoever reads the table may stop reading.
  for path in filter(None, (json_path, figure_path)):
    session.make_parent(path)
  if json_path:
    session.write_json(json_path, report.to_json())
  if figure_path:
    from me_jax.plotting import figures

    figures.save(figures.emergence(report), figure_path)
  from me_jax.cli import find_table

  find_table.show(report)
  for path in (json_path, figure_path):
    if path:
      print(f'wrote {path}')


def _digest(prompts: list[Any]) -> str:
  """Returns a hash of the prompts' contents."""
  text = json.dumps(prompts, ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()


def _find(flags: Any, checkpoint: Any, prompts: list[Any]) -> Any:
  """Compiles while the weights load, then finds."""
  import jax.numpy as jnp

  from me_jax.analysis import emergence
  from me_jax.analysis import passes
  from me_jax.analysis import residual
  from me_jax.models import decoder
  from me_jax.models import params as params_lib

  dtype = jnp.dtype(flags.dtype)
  model = decoder.Decoder(checkpoint.config, dtype=dtype, param_dtype=dtype)
  with (
    session.progress() as progress,
    concurrent.futures.ThreadPoolExecutor(1) as pool,
  ):
    progress.step('reading prompts', 0, 1)
    batch, names, bos_id = _encode(checkpoint, prompts, flags.bos)
    session.return_freed_memory()
    lowered = residual.measure.lower(
      model,
      params_lib.param_shapes(checkpoint.config, flags.dtype),
      *passes.operand_shapes(batch),
    )
    progress.step('reading prompts', 1, 1)
    # Compiling and loading leave Python alone; tracing does not.
    compiling = pool.submit(lowered.compile)
    params = checkpoint.load_params(
      flags.dtype, progress=functools.partial(progress.step, 'loading weights')
    )
    progress.step('compiling', 0, 1)
    compiled = compiling.result()
    session.return_freed_memory()
    progress.step('compiling', 1, 1)
    return emergence.find_me_layer(
      model,
      params,
      batch,
      bos_token_id=bos_id,
      spell=names.get,
      # The model is part of what was compiled.
      measure=lambda _, *arguments: compiled(*arguments),
      progress=functools.partial(progress.step, 'running the model'),
    )


def _encode(
  checkpoint: Any, prompts: list[Any], bos: str
) -> tuple[Any, dict[int, str], int | None]:
  """Packs the prompts into rows of the length that wastes least.

  Returns:
    The batch, the spelling of its tokens, and BOS: all that is needed of the
    tokenizer, whose memory the weights can have.
  """
  from me_jax.analysis import passes
  from me_jax.checkpoints import encoding
  from me_jax.models import batch as batch_lib

  tokenizer = checkpoint.load_tokenizer()
  ids = encoding.token_ids(tokenizer, checkpoint.config, prompts, bos)
  # Longest first: short ones then fill the gaps.
  ids.sort(key=len, reverse=True)
  shortest = -(-len(ids[0]) // _STEP) * _STEP
  # A sample of many prompts tells the best length as well as all of them.
  some = ids[:: -(-len(ids) // _SAMPLED)]
  length = min(
    range(shortest, max(shortest, _LONGEST) + 1, _STEP),
    key=lambda length: passes.cost(
      batch_lib.make_batch(some, pack=True, length=length)
    ),
  )
  batch = batch_lib.make_batch(ids, pack=True, length=length)
  known = {token for text in ids for token in text}
  names = {token: encoding.spell(tokenizer, token) for token in known}
  return batch, names, tokenizer.bos_token_id


def _outputs(
  flags: Any,
) -> tuple[pathlib.Path | None, pathlib.Path | None]:
  """Returns where JSON and figure go, after checking that they can."""
  out = pathlib.Path(flags.out) if flags.out else None
  json_path = flags.json or (out and out / 'report.json')
  figure_path = flags.figure or (out and out / 'figure.png')
  paths = tuple(
    path and pathlib.Path(path) for path in (json_path, figure_path)
  )
  for path in paths:
    session.check_writable(path)
  if paths[0] and paths[0] == paths[1]:
    raise errors.MeJaxError(f'--json and --figure both name {paths[0]}.')
  if paths[1] and paths[1].suffix not in ('.png', '.svg', '.pdf'):
    raise errors.MeJaxError(
      f'--figure={paths[1]}: the name must end in .png, .svg or .pdf.'
    )
  return paths
