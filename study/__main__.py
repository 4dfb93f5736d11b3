"""`make study`: every claim, put to every model given, and one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import pathlib
import signal
import sys
from typing import Any

from me_jax import errors
from me_jax import files
from study import collect
from study import kept
from study import options as options_lib
from study import page as page_lib
from study import runner
from study import steps as steps_lib


def _parser() -> argparse.ArgumentParser:
  parser = options_lib.Parser(
    prog='python -m study', description=__doc__, allow_abbrev=False
  )
  add = parser.add_argument
  add(
    '--model',
    action='append',
    help='a model as in other verbs; may be given again. Default: smollm2.',
  )
  add(
    '--data',
    help='a folder with the public sets, as `me-jax mitigate` and `train` take'
    ' it. Default: built-in texts, which are few.',
  )
  add(
    '--steps',
    type=lambda text: text.split(','),
    help=f'which of {",".join(steps_lib.NAMES)} are run; the page keeps what'
    ' it says of the others. Default: all; with --quick no LoRA.',
  )
  add(
    '--quick',
    action='store_true',
    help='everything tiny, on built-in texts, to see that it works; give --out'
    ' and --page.',
  )
  add('--out', default=options_lib.OUT, help='the folder of the steps.')
  add(
    '--page', default=page_lib.PAGE, help='the page; its figures lie beside it.'
  )
  return parser


def _page(
  page: pathlib.Path,
  options: options_lib.Options,
  digests: options_lib.Digests,
  steps: Sequence[str],
) -> dict[str, Any] | None:
  """Returns the extract on a page whose other steps stay, if there is one.

  Raises:
    MeJaxError: there is one, whose other steps can neither stay nor go.
  """
  path = page_lib.folder_of(page) / f'{options.name}.json'
  if not path.is_file():
    return None
  extract = page_lib.extract(path)
  left = [name for name in kept.done(extract) if name not in steps]
  what = ''
  if options.quick and not extract['quick']:
    what = 'which --quick would replace: give another --page.'
  elif extract['data'] and not options.data:
    what = (
      'on public sets, which built-in texts would replace: give --data, or'
      ' another --page.'
    )
  elif options.quick == extract['quick'] and digests == (
    extract.get('model_sha256'), extract['data_sha256']
  ):  # fmt: skip
    return extract
  elif left:
    what = (
      f'of other weights or sets: run {", ".join(left)}, too, or give another'
      ' --page.'
    )
  if what:
    raise errors.MeJaxError(f'{page} holds results of {options.name} {what}')
  return None


def main(
  argv: list[str] | None = None, *, launch: runner.Launch | None = None
) -> int:
  """Runs the study; returns the exit status.

  Args:
    argv: flags; None takes those of the process.
    launch: see `runner.run`.

  Raises:
    MeJaxError: a flag is not sound.
  """
  flags = _parser().parse_args(argv)
  models = flags.model or [options_lib.DEFAULT_MODEL]
  options_lib.check(models, flags.data)
  steps = flags.steps or (steps_lib.QUICK if flags.quick else steps_lib.NAMES)
  for name in steps:
    if name not in steps_lib.NAMES:
      raise errors.MeJaxError(
        f'there is no step {name!r}{errors.nearest(name, steps_lib.NAMES)};'
        f' steps: {", ".join(steps_lib.NAMES)}.'
      )
  if flags.data:
    sets = sorted(
      {file for name in steps for file in steps_lib.SETS.get(name, ())}
    )
    options_lib.check_sets(flags.data, sets)
  page = pathlib.Path(flags.page)
  options_lib.check_places(page, flags.out)
  if flags.quick and page.resolve() == pathlib.Path(page_lib.PAGE).resolve():
    raise errors.MeJaxError(
      f'--quick makes no results for {page_lib.PAGE}: give another --page.'
    )
  studies = [
    options_lib.Options(
      model=model, out=flags.out, data=flags.data, quick=flags.quick
    )
    for model in models
  ]
  digests = [options_lib.digests(options) for options in studies]
  for options, found in zip(studies, digests):
    kept.check(steps, _page(page, options, found, steps))
  failed = False
  for options, found in zip(studies, digests):
    made = {
      name: runner.run(
        steps_lib.make(name, options), options, found, launch=launch
      )
      for name in steps_lib.NAMES
      if name in steps
    }
    failed |= any(card['status'] == runner.FAILED for card in made.values())
    # Another study may have written to the page since.
    before = _page(page, options, found, steps)
    folder = page_lib.folder_of(page)
    extract = collect.collect(options, found, made, before, folder)
    files.write_json(folder / f'{options.name}.json', extract)
    page_lib.write(page)
    left_out = [
      name
      for name, card in made.items()
      if card['status'] == runner.DONE
      and kept.other(card, extract['steps'][name])
    ]
    if left_out:
      failed = True
      print(
        f'study: {options.name}: not on the page, where they would stand'
        f' beside steps that do not belong to them: {", ".join(left_out)}'
      )
  print(f'study: wrote {page}')
  return int(failed)


if __name__ == '__main__':
  # As after Ctrl-C, a step's seconds are kept.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  try:
    sys.exit(main())
  except errors.MeJaxError as error:
    print(f'study: {error}', file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print('study: stopped; the same command goes on', file=sys.stderr)
    sys.exit(130)
