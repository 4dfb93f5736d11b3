"""`me-jax explain`: why are there massive activations, and what do they do?"""

from __future__ import annotations

import functools
from typing import Any

from absl import flags as absl_flags

from me_jax.cli import flags as flags_lib
from me_jax.cli import running
from me_jax.cli import session

HELP = """\
Measures what the paper claims about massive activations on a model, with a
control for each claim, and writes a page that opens in a browser, offline:
report.html, with report.json for every number and the figures as SVG and PNG."""

_OUT = 'explain'
_VOCABULARY = 4096
_MOST = 10**9


def define(flags: absl_flags.FlagValues) -> None:
  """Declares the verb's flags."""
  flags_lib.define_model(flags)
  flags_lib.define_prompts(flags)
  absl_flags.DEFINE_string(
    'out',
    _OUT,
    'the folder to write. An earlier report in it is replaced when the new one '
    'is complete; a folder that holds anything else stays as it is.',
    flag_values=flags,
  )
  absl_flags.DEFINE_integer(
    'vocabulary',
    _VOCABULARY,
    'how many tokens, drawn at random, are run alone to see which of them '
    'spike; 0 runs all there are, which takes a while.',
    lower_bound=0,
    upper_bound=_MOST,
    flag_values=flags,
  )
  absl_flags.DEFINE_integer(
    'seed',
    0,
    'of everything that is drawn at random, such as control tokens and neurons.',
    lower_bound=0,
    upper_bound=_MOST,
    flag_values=flags,
  )


def run(flags: absl_flags.FlagValues) -> None:
  """Runs the verb."""
  from me_jax.plotting import report as report_lib

  report_lib.check_target(flags.out)
  checkpoint, prompts = running.read(flags)
  with session.progress() as progress:
    found = running.find(flags, checkpoint, prompts, progress)
    sections = _sections(found, checkpoint, flags, progress)
    report = found.report
    page = report_lib.write(
      flags.out,
      sections,
      title=f'Massive activations of {flags.model}',
      headline=report.headline(),
      provenance=report.provenance | {'seed': flags.seed},
      command=flags_lib.command_line('explain', flags),
      progress=functools.partial(progress.step, 'drawing'),
    )
  print(report.headline())
  for section in sections:
    print(f'\n{section.title}: {section.verdict}.\n{section.finding}')
  print(f'\nwrote {page}, and beside it report.json and figures/')


def _sections(
  found: running.Running,
  checkpoint: Any,
  flags: Any,
  progress: session.Progress,
) -> list[Any]:
  """Returns a section a claim, in reading order."""
  from me_jax.analysis import diagnosis
  from me_jax.plotting.sections import diversity
  from me_jax.plotting.sections import emergence
  from me_jax.plotting.sections import rigidity
  from me_jax.plotting.sections import sinks

  report = found.report
  diagnosed = diagnosis.diagnose(
    found.model,
    found.params,
    found.batch,
    progress=functools.partial(progress.step, 'diagnosing'),
  )
  return [
    emergence.section(report),
    _cause(found, flags.seed, progress),
    _screen(found, flags.seed, progress),
    _vocabulary(found, checkpoint, flags, progress),
    rigidity.section(diagnosed, report),
    sinks.section(diagnosed, report, _maps(found, diagnosed.sinks)),
    diversity.section(diagnosed, report),
    _interventions(found, flags.seed, progress),
  ]


def _screen(
  found: running.Running, seed: int, progress: session.Progress
) -> Any:
  """Returns the section on what the weights alone predict."""
  from me_jax.analysis import screen as screen_lib
  from me_jax.plotting.sections import screen

  screened = screen_lib.screen(
    found.model,
    found.params,
    seed=seed,
    progress=functools.partial(progress.step, 'screening the weights'),
  )
  return screen.section(screened, found.report)


def _vocabulary(
  found: running.Running,
  checkpoint: Any,
  flags: Any,
  progress: session.Progress,
) -> Any:
  """Returns the section on which tokens spike alone."""
  from me_jax.analysis import vocabulary as vocabulary_lib
  from me_jax.checkpoints import encoding
  from me_jax.plotting.sections import vocabulary

  tokenizer = checkpoint.load_tokenizer()
  probed = vocabulary_lib.probe(
    found.model,
    found.params,
    found.report,
    sample=flags.vocabulary or None,
    seed=flags.seed,
    special_ids=tokenizer.all_special_ids,
    progress=functools.partial(progress.step, 'running tokens alone'),
  )
  return vocabulary.section(
    probed, functools.partial(encoding.spell, tokenizer)
  )


def _cause(
  found: running.Running, seed: int, progress: session.Progress
) -> Any:
  """Returns the section on who makes the ME Layer write."""
  from me_jax.analysis import attribution
  from me_jax.analysis import factorial
  from me_jax.analysis import prefixes
  from me_jax.analysis import token_states
  from me_jax.plotting.sections import cause

  what = 'asking for the cause'
  progress.step(what, 0, 3)
  model = found.model, found.params
  chosen = prefixes.select(found.batch, found.report)
  states = token_states.capture(*model, chosen, found.report)
  share_LF = token_states.contributions(*model, states)
  progress.step(what, 1, 3)
  attributed = attribution.attribute(
    *model,
    found.report,
    states,
    writers=token_states.writers(found.report, share_LF),
    seed=seed,
  )
  progress.step(what, 2, 3)
  tried = factorial.run(
    *model, found.report, states, share_LF=share_LF, seed=seed
  )
  progress.step(what, 3, 3)
  return cause.section(found.report, attributed, tried)


def _interventions(
  found: running.Running, seed: int, progress: session.Progress
) -> Any:
  """Returns the section on what the model loses without them."""
  from me_jax.analysis import interventions as interventions_lib
  from me_jax.plotting.sections import interventions

  what = 'taking massive activations away'
  progress.step(what, 0, 1)
  tried = interventions_lib.run(
    found.model, found.params, found.batch, found.report, seed=seed
  )
  progress.step(what, 1, 1)
  return interventions.section(tried)


def _maps(found: running.Running, sinks: Any) -> Any:
  """Returns attention maps of one text, before and after the emergence span."""
  from me_jax.analysis import attention_maps
  from me_jax.cli import map_text

  chosen = map_text.choose(found.batch, found.report)
  if chosen is None:
    return None
  before = sinks.attention.mean(axis=1)[: found.report.span[-1] + 1]
  layers = {int(before.argmax()), *chosen.layers}
  return attention_maps.attention_maps(
    found.model, found.params, chosen.ids, sorted(layers), chosen.position
  )
