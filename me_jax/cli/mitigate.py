"""`me-jax mitigate`: choose a mask, measure it, and write the relaxed model."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import os
from typing import Any

from absl import flags as absl_flags

from me_jax import errors
from me_jax.cli import flags as flags_lib
from me_jax.cli import mitigate_flags
from me_jax.cli import running
from me_jax.cli import session

HELP = """\
Finds the ME Layer, chooses a mask (WeMask) on calibration texts, measures it on
other texts with controls and intervals, and writes the relaxed model: --out gets
report/ with a page and every number, and a folder for each form of the model. No
weight is trained. When no mask helps, it says so and writes no model."""

_REPORT = 'report'


def define(flags: absl_flags.FlagValues) -> None:
  """Declares the verb's flags."""
  mitigate_flags.define(flags)


def run(flags: absl_flags.FlagValues) -> None:
  """Runs the verb."""
  forms = mitigate_flags.check(flags)
  from me_jax.cli import mitigate_table
  from me_jax.mitigation import corpora
  from me_jax.mitigation import relax
  from me_jax.mitigation import tune
  from me_jax.mitigation import wemask

  found_corpora = corpora.read(flags.data) if flags.data else corpora.builtin()
  checkpoint, prompts = running.read(flags)
  mitigate_flags.check_model(flags, checkpoint.config)
  targets = _targets(flags.out, forms)
  with session.progress() as progress:
    found = running.find(flags, checkpoint, prompts, progress)
    # A mask that the model comes with is left out: the stock model counts.
    found = dataclasses.replace(found, params=wemask.remove(found.params))
    tokenizer = checkpoint.load_tokenizer()
    texts = _encode(tokenizer, found, found_corpora, flags)
    settings = tune.grid(
      found.model,
      found.report,
      selections=flags.select,
      layers=[mitigate_flags.numbers(x) for x in flags.layers],
      rates=mitigate_flags.floats(flags, 'rate'),
      strengths=mitigate_flags.floats(flags, 'strength'),
      tokens=mitigate_flags.numbers(flags.tokens),
      seed=flags.seed,
    )
    result = relax.relax(
      found.model,
      found.params,
      found.report,
      texts,
      found.batch,
      settings,
      by_layer=flags.by_layer,
      most=flags.calibration,
      budget=flags.budget,
      seed=flags.seed,
      progress=progress.step,
    )
    masked, written, refused = found.params, {}, None
    if result.chosen is not None:
      masked = wemask.apply(
        found.model, found.params, result.chosen.recipe, batch=found.batch
      )
      forms_of = {form: masked for form in targets if form != 'baked'}
      if 'baked' in targets:
        baked, refused = _bake(found, masked, texts, progress)
        if baked is not None:
          forms_of['baked'] = baked
          result = relax.with_baked(
            found.model, found.params, masked, baked, texts, result,
            seed=flags.seed, progress=progress.step,
          )  # fmt: skip
      written = {form: targets[form] for form in forms_of}
      _write(found, forms_of, result, tokenizer, targets, flags, progress)
    page = _report(found, masked, result, refused, flags, progress)
  mitigate_table.show(result)
  print()
  for form, folder in written.items():
    print(f'wrote {folder} ({form})')
  if refused:
    print(f'not baked: {refused}')
  if not written:
    print('no model was written')
  print(f'wrote {page}, and beside it report.json and figures/')


def _targets(out: str, forms: Sequence[str]) -> dict[str, str]:
  """Returns the folder of each form, after checking all that is written."""
  from me_jax.checkpoints import export
  from me_jax.checkpoints import orbax
  from me_jax.plotting import report as report_lib

  report_lib.check_target(os.path.join(out, _REPORT))
  check = {'orbax': orbax.check_target, 'hf': export.check_target}
  check['baked'] = export.check_target
  return {
    form: check[form](os.path.join(out, form), overwrite=True) for form in forms
  }


def _encode(
  tokenizer: Any, found: running.Running, sources: Sequence[Any], flags: Any
) -> list[Any]:
  """Turns the corpora into token ids, as many texts as the flags say."""
  from me_jax.mitigation import corpora
  from me_jax.mitigation import relax

  def encode(texts: Sequence[Any], count: int) -> list[Any]:
    return corpora.encode(
      tokenizer, found.model.config, texts, count, flags.length
    )

  return [
    relax.Texts(
      name=source.name,
      chat=source.chat,
      calibration=encode(source.calibration, flags.calibration),
      held_out=encode(source.held_out, flags.texts),
    )
    for source in sources
  ]


def _bake(
  found: running.Running,
  masked: Any,
  texts: Sequence[Any],
  progress: session.Progress,
) -> tuple[Any, str | None]:
  """Returns weights that hold the mask, or why there are none."""
  from me_jax.mitigation import bake
  from me_jax.models import batch as batch_lib

  ids = [ids for corpus in texts for ids, _ in corpus.calibration]
  batch = batch_lib.make_batch(sorted(ids, key=len, reverse=True), pack=True)
  try:
    baked = bake.bake(
      found.model,
      masked,
      batch,
      progress=functools.partial(progress.step, 'baking'),
    )
  except errors.MeJaxError as error:
    # The mask itself is as good as before: the other forms are written.
    return None, str(error)
  return baked.params, None


def _write(
  found: running.Running,
  forms_of: dict[str, Any],
  result: Any,
  tokenizer: Any,
  targets: dict[str, str],
  flags: Any,
  progress: session.Progress,
) -> None:
  """Writes the model in every form."""
  from me_jax.checkpoints import export
  from me_jax.checkpoints import load
  from me_jax.checkpoints import orbax

  for form, params in forms_of.items():
    lm = load.LoadedModel(found.model, params, tokenizer, found.model.config)
    metadata = {
      'mitigation': {
        'method': 'WeMask',
        'form': form,
        'recipe': result.chosen.recipe.to_json(),
        'model': found.report.provenance['model'],
        'command': flags_lib.command_line('mitigate', flags),
      }
    }
    write = orbax.save if form == 'orbax' else export.export
    progress.step(f'writing {form}', 0, 1)
    write(lm, targets[form], metadata=metadata, overwrite=True)
    progress.step(f'writing {form}', 1, 1)


def _report(
  found: running.Running,
  masked: Any,
  result: Any,
  refused: str | None,
  flags: Any,
  progress: session.Progress,
) -> Any:
  """Writes the page."""
  from me_jax.cli import mitigate_table
  from me_jax.plotting import report as report_lib
  from me_jax.plotting.sections import emergence
  from me_jax.plotting.sections import mitigation

  section = mitigation.section(
    result, maps=_maps(found, masked) if result.chosen else None
  )
  return report_lib.write(
    os.path.join(flags.out, _REPORT),
    [section, emergence.section(found.report)],
    title=f'Relaxing the massive activations of {flags.model}',
    headline=mitigate_table.headline(result),
    provenance=found.report.provenance
    | {'seed': flags.seed, 'data': flags.data or 'built-in'},
    command=flags_lib.command_line('mitigate', flags),
    open_points=[f'No weights were baked: {refused}'] if refused else (),
    progress=functools.partial(progress.step, 'drawing'),
  )


def _maps(found: running.Running, masked: Any) -> Any:
  """Returns attention maps of one text without and with the mask."""
  from me_jax.analysis import attention_maps
  from me_jax.cli import map_text

  chosen = map_text.choose(found.batch, found.report)
  if chosen is None:
    return None
  return tuple(
    attention_maps.attention_maps(
      found.model, params, chosen.ids, chosen.layers, chosen.position
    )
    for params in (found.params, masked)
  )
