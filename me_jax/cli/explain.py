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
control for each claim, and writes a page that opens in any browser, offline:
report.html, with report.json for every number and the figures as SVG and PNG."""

_OUT = 'explain'
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
    sections = _sections(found, flags.seed, progress)
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
  found: running.Running, seed: int, progress: session.Progress
) -> list[Any]:
  """Returns a section a claim, in reading order."""
  from me_jax.plotting.sections import emergence

  del seed, progress  # For the claims that draw controls.
  return [emergence.section(found.report)]
