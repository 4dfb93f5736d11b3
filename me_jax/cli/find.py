"""`me-jax find`: which layer creates the massive activations?"""

from __future__ import annotations

import pathlib
from typing import Any

from absl import flags as absl_flags

from me_jax import errors
from me_jax import files
from me_jax.cli import flags as flags_lib
from me_jax.cli import running
from me_jax.cli import session

HELP = """\
Finds the ME Layer: the decoder layer that writes a model's massive activations
into one token's residual stream. Prints who wrote them, by layer, attention
and FFN, with the channels and neurons, the tokens, an ordinary token as a
control, and how far three rules agree over all prompts."""


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
  checkpoint, prompts = running.read(flags)
  with session.progress() as progress:
    # The weights are let go before anything is drawn.
    report = running.find(flags, checkpoint, prompts, progress).report
  # Files first: whoever reads the table may stop reading.
  for path in filter(None, (json_path, figure_path)):
    files.make_parent(path)
  if json_path:
    files.write_json(json_path, report.to_json())
  if figure_path:
    from me_jax.plotting import figures
    from me_jax.plotting import static

    static.save(static.draw(figures.emergence(report)), figure_path)
  from me_jax.cli import find_table

  find_table.show(report)
  for path in (json_path, figure_path):
    if path:
      print(f'wrote {path}')


def _outputs(
  flags: Any,
) -> tuple[pathlib.Path | None, pathlib.Path | None]:
  """Returns where JSON and figure go, after checking that they can."""
  out = pathlib.Path(flags.out) if flags.out else None
  json_path = flags.json or (out and out / 'report.json')
  figure_path = flags.figure or (out and out / 'figure.png')
  paths = (
    pathlib.Path(json_path) if json_path else None,
    pathlib.Path(figure_path) if figure_path else None,
  )
  for path in paths:
    files.check_writable(path)
  if paths[0] and paths[0] == paths[1]:
    raise errors.MeJaxError(f'--json and --figure both name {paths[0]}.')
  if paths[1] and paths[1].suffix not in ('.png', '.svg', '.pdf'):
    raise errors.MeJaxError(
      f'--figure={paths[1]}: the name must end in .png, .svg or .pdf.'
    )
  return paths
