"""`me-jax train`: fine-tune, with the mitigation in the loop."""

from __future__ import annotations

import functools
import os
import signal
import sys
from typing import Any

from absl import flags as absl_flags

from me_jax import errors
from me_jax.cli import flags as flags_lib
from me_jax.cli import session
from me_jax.cli import train_flags

HELP = """\
Fine-tunes a model by SFT, DPO or GRPO: the mitigation's gates alone, LoRA, all
weights, or gates with either; with WeMask in every forward pass if wanted. The
run is described by a file (--config) and single fields (--set), is saved as it
goes, and goes on where it was when the same command is given again."""

_MODEL, _REPORT = 'model', 'report'


def define(flags: absl_flags.FlagValues) -> None:
  """Declares the verb's flags."""
  train_flags.define(flags)


def run(flags: absl_flags.FlagValues) -> int:
  """Runs the verb; returns the exit status."""
  if 'help' in flags.set:
    print(_fields(flags))
    return 0
  forms = train_flags.forms(flags)
  out = train_flags.out(flags)
  settings = train_flags.run(flags)
  from me_jax.training import distributed

  distributed.start(
    flags.distributed,
    coordinator=flags.coordinator,
    num_processes=flags.num_processes,
    process_id=flags.process_id,
  )
  from me_jax.checkpoints import processes
  from me_jax.training import loop
  from me_jax.training import prepare
  from me_jax.training import run_folder

  _check_forms(forms)
  run_folder.has_run(out)
  targets = processes.together(functools.partial(_targets, out, forms))
  session.keep_compiled()
  with session.progress(show=distributed.is_writer()) as progress:
    plan = prepare.plan(settings, progress.step)
    loop.check(plan, out)
    placed = prepare.place(plan, progress.step)
    from me_jax.cli import train_table

    if distributed.is_writer():
      train_table.show_start(plan, placed)
    watched = None
    if distributed.is_writer():
      watched = train_table.Watched(progress)
    result = loop.train(
      plan,
      placed,
      out,
      tell=None if watched is None else watched.line,
      progress=progress.step,
      warn=None if watched is None else watched.warn,
    )
    if not result.ended:
      if distributed.is_writer():
        print(
          f'stopped by {result.why} after step {result.step} of'
          f' {plan.run.steps}; saved: the same command goes on'
        )
      number = getattr(signal, result.why, signal.SIGTERM)
      return 128 + int(number)
    lm = _trained(plan, placed, result)
    refused = _write(plan, placed, result, lm, targets, flags, progress)
    page = None
    if distributed.is_writer():
      page = _report(plan, placed, result, out, flags, progress)
  if distributed.is_writer():
    train_table.show(plan, result)
    for form, folder in targets.items():
      if not (form == 'baked' and refused):
        print(f'wrote {folder} ({form})')
    if refused:
      print(f'not baked: {refused}')
    print(f'wrote {page}, and beside it report.json and figures/')
  return 0


def _fields(flags: absl_flags.FlagValues) -> str:
  """Returns every field of the run with its value, a line each."""
  flags.set = [change for change in flags.set if change != 'help']
  from me_jax.training import overrides

  found = train_flags.run(flags)
  lines = []
  for path in overrides.paths(found):
    value: Any = found
    for name in path.split('.'):
      value = getattr(value, name)
    lines.append(f'{path}={value}')
  return '\n'.join(lines)


def _targets(out: str, forms: tuple[str, ...]) -> dict[str, str]:
  """Returns the folder of each form, after checking all that is written."""
  from me_jax.checkpoints import export
  from me_jax.checkpoints import orbax
  from me_jax.plotting import report as report_lib
  from me_jax.training import distributed

  folders = {form: os.path.join(out, _MODEL, form) for form in forms}
  if not distributed.is_writer():
    return folders
  report_lib.check_target(os.path.join(out, _REPORT))
  check = {'orbax': orbax.check_target, 'hf': export.check_target}
  check['baked'] = export.check_target
  return {
    form: check[form](folder, overwrite=True)
    for form, folder in folders.items()
  }


def _check_forms(forms: tuple[str, ...]) -> None:
  """Raises MeJaxError for forms that several processes cannot write."""
  import jax

  if jax.process_count() > 1 and set(forms) - {'orbax'}:
    raise errors.MeJaxError(
      '--write=hf and baked are of one process: write orbax here, and use'
      ' me-jax export afterwards.'
    )


def _trained(plan: Any, placed: Any, result: Any) -> Any:
  """Returns the trained model."""
  from me_jax.checkpoints import load
  from me_jax.training import prepare

  params = prepare.merged(placed, plan.run, result.tree)
  # Attributes of training are not the model's.
  model = placed.model.clone(remat='none')
  return load.LoadedModel(model, dict(params), plan.tokenizer, plan.config)


def _write(
  plan: Any,
  placed: Any,
  result: Any,
  lm: Any,
  targets: dict[str, str],
  flags: Any,
  progress: session.Progress,
) -> str | None:
  """Writes the model in every form; returns why it was not baked, if so."""
  from me_jax.checkpoints import export
  from me_jax.checkpoints import orbax
  from me_jax.training import settings as settings_lib

  metadata = {
    'training': {
      'run': settings_lib.to_json(plan.run),
      'step': result.chosen,
      'start': placed.fingerprint,
      'command': flags_lib.command_line('train', flags),
    }
  }
  refused = None
  for form, folder in targets.items():
    written = lm
    if form == 'baked':
      try:
        written = _baked(plan, lm, progress)
      except errors.MeJaxError as error:
        # The other forms are as good as before.
        refused = str(error)
        continue
    write = orbax.save if form == 'orbax' else export.export
    progress.step(f'writing {form}', 0, 1)
    write(written, folder, metadata=metadata, overwrite=True)
    progress.step(f'writing {form}', 1, 1)
  return refused


def _baked(plan: Any, lm: Any, progress: session.Progress) -> Any:
  """Returns the model with gates and mask in its weights.

  Raises:
    MeJaxError: they cannot be.
  """
  from me_jax.mitigation import bake
  from me_jax.models import sink

  if sink.SCALE not in lm.params['layers']:
    return lm
  baked = bake.bake(
    lm.model,
    lm.params,
    _calibration(plan),
    progress=functools.partial(progress.step, 'baking'),
  )
  return lm._replace(params=baked.params)


def _calibration(plan: Any) -> Any:
  """Returns texts of the kind that is trained on, and built-in ones."""
  from me_jax.analysis import prompts
  from me_jax.checkpoints import encoding
  from me_jax.models import batch as batch_lib
  from me_jax.training import data as data_lib

  ids = encoding.token_ids(
    plan.tokenizer, plan.config, prompts.builtin(), 'auto'
  )
  for source in plan.run.data.mix.sources:
    records = data_lib.rows_of(source, plan.run.method.kind)[:48]
    texts = [text for record in records for text in record.texts]
    ids += encoding.token_ids(
      plan.tokenizer, plan.config, texts, 'auto', any_length=True
    )
  longest = plan.run.evaluation.length
  ids = sorted((text[:longest] for text in ids), key=len, reverse=True)
  return batch_lib.make_batch(ids, pack=True)


def _report(
  plan: Any,
  placed: Any,
  result: Any,
  out: str,
  flags: Any,
  progress: session.Progress,
) -> Any:
  """Writes the page."""
  from me_jax.cli import train_table
  from me_jax.plotting import report as report_lib
  from me_jax.plotting.sections import training
  from me_jax.training import metrics
  from me_jax.training import settings as settings_lib

  section = training.section(
    metrics.read(out),
    train_table.compared(plan, result),
    chosen=result.chosen,
  )
  return report_lib.write(
    os.path.join(out, _REPORT),
    [section],
    title=f'Fine-tuning {plan.run.model}',
    headline=train_table.headline(plan, result),
    provenance={
      'model': plan.run.model,
      'fingerprint': placed.fingerprint,
      'run': settings_lib.to_json(plan.run),
      'devices': f'{plan.mesh.size} × {plan.mesh.devices.flat[0].device_kind}',
      'python': sys.version.split()[0],
    },
    command=flags_lib.command_line('train', flags),
    progress=functools.partial(progress.step, 'drawing'),
  )
