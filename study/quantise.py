"""`python -m study.quantise`: what do eight bits cost, masked, baked and stock?

A verb in all but name: it loads what `mitigate` has written, rounds each model
in every way on held-out texts, and writes a report. Without such models the
paper's mask is laid over the stock one.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from typing import Any

from absl import flags as absl_flags

from me_jax import errors
from me_jax.cli import flags as flags_lib
from me_jax.cli import running
from me_jax.cli import session

HELP = 'Measures what rounding to eight bits costs, with a mask and without.'
_FORMS = {'masked': 'orbax', 'baked': 'baked'}


def define(flags: absl_flags.FlagValues) -> None:
  """Declares the flags."""
  flags_lib.define_model(flags)
  flags_lib.define_prompts(flags)
  for name, default, what in (
    ('relaxed', None, 'the folder that `me-jax mitigate` has written.'),
    ('data', None, 'texts, as in `me-jax mitigate`.'),
    ('out', 'quantise', 'the folder of the report.'),
  ):
    absl_flags.DEFINE_string(name, default, what, flag_values=flags)
  for name, default, what in (
    ('texts', 8, 'texts of each corpus.'),
    ('length', 256, 'tokens of a text.'),
    ('seed', 0, 'of the bootstrap and of exempt tokens.'),
  ):
    absl_flags.DEFINE_integer(
      name, default, what, lower_bound=0, flag_values=flags
    )


def main(argv: list[str]) -> None:
  """Measures and writes the report.

  Raises:
    MeJaxError: a flag, a model or the texts are not sound.
  """
  flags = flags_lib.parse('study.quantise', sys.modules[__name__], argv)
  from me_jax.evaluation import quantisation
  from me_jax.mitigation import corpora
  from me_jax.plotting import report as report_lib
  from me_jax.plotting.sections import quantisation as section_lib

  report_lib.check_target(flags.out)
  written = _written(flags.relaxed)
  sources = corpora.read(flags.data) if flags.data else corpora.builtin()
  checkpoint, prompts = running.read(flags)
  with session.progress() as progress:
    found = running.find(flags, checkpoint, prompts, progress)
    texts = _texts(sources, checkpoint, flags)
    result = quantisation.measure(
      found.model,
      found.params,
      _variants(found, written, flags),
      texts,
      me_layer=found.report.layer,
      seed=flags.seed,
      progress=functools.partial(progress.step, 'rounding'),
    )
    sections = section_lib.sections(result)
    page = report_lib.write(
      flags.out,
      sections,
      title=f'Eight bits and {flags.model}',
      headline=' '.join(f'{one.title}: {one.verdict}.' for one in sections),
      provenance=found.report.provenance
      | {'seed': flags.seed, 'data': flags.data or 'built-in'},
      command=flags_lib.command_line('study.quantise', flags),
      progress=functools.partial(progress.step, 'drawing'),
    )
  for one in sections:
    print(f'{one.title}: {one.verdict}.\n{one.finding}')
  print(f'wrote {page}')


def _written(relaxed: str | None) -> dict[str, str]:
  """Returns the folders of relaxed models by the names they get here.

  Raises:
    MeJaxError: there should be some, and are none.
  """
  if relaxed is None:
    return {}
  folders = {name: os.path.join(relaxed, form) for name, form in _FORMS.items()}
  # A mask that could not be baked has been written in the other form alone.
  found = {name: path for name, path in folders.items() if os.path.isdir(path)}
  if not found:
    raise errors.MeJaxError(
      f'--relaxed={relaxed} holds none of {", ".join(_FORMS.values())}.'
    )
  return found


def _variants(
  found: running.Running, written: dict[str, str], flags: Any
) -> dict[str, Any]:
  """Returns the parameters of the relaxed models."""
  from me_jax.checkpoints import load
  from me_jax.mitigation import wemask

  if not written:
    masked = wemask.wemask(found.model, found.params, found.report)
    return {'masked': masked}
  return {
    name: load.open_checkpoint(folder).load_params(flags.dtype)
    for name, folder in written.items()
  }


def _texts(sources: Any, checkpoint: Any, flags: Any) -> dict[str, Any]:
  """Returns held-out texts of one corpus of chats and of one of plain text."""
  from me_jax.mitigation import corpora
  from me_jax.mitigation import scoring

  tokenizer = checkpoint.load_tokenizer()
  encoded = {}
  for chat in (True, False):
    for source in sources if chat else reversed(sources):
      texts = corpora.encode(
        tokenizer, checkpoint.config, source.held_out, flags.texts, flags.length
      )
      if source.chat == chat and texts:
        encoded[source.name] = texts
        break
  if not encoded:
    raise errors.MeJaxError('no text is left to measure on.')
  longest = max(len(ids) for texts in encoded.values() for ids, _ in texts)
  laid = {
    name: scoring.lay_out(
      texts, bos_token_id=tokenizer.bos_token_id, length=longest
    )
    for name, texts in encoded.items()
  }
  # A pass is filled up with padding, which takes as long as text does.
  most = max(len(one.counted_BT) for one in laid.values())
  return {
    name: dataclasses.replace(one, rows=min(one.rows, most))
    for name, one in laid.items()
  }


if __name__ == '__main__':
  try:
    main(sys.argv[1:])
  except errors.MeJaxError as error:
    print(f'study.quantise: {error}', file=sys.stderr)
    sys.exit(2)
