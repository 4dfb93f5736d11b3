"""`make study`: every claim, put to every model given, and one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import pathlib
import sys
from typing import NoReturn

from me_jax import errors
from me_jax import files
from study import collect
from study import options as options_lib
from study import page as page_lib
from study import runner
from study import steps as steps_lib


class _Parser(argparse.ArgumentParser):
  """Says what is wrong in one line."""

  def error(self, message: str) -> NoReturn:
    raise errors.MeJaxError(f'{message}; --help lists the flags.')


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
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
    help=f'which of {",".join(steps_lib.NAMES)} are run. Default: all;'
    ' with --quick no LoRA.',
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


def _check_page(
  page: pathlib.Path, options: options_lib.Options, steps: Sequence[str]
) -> None:
  """Keeps results on a page from being replaced by less.

  Raises:
    MeJaxError: the page holds what this run would neither make nor find.
  """
  path = page_lib.folder_of(page) / f'{options.name}.json'
  if not path.is_file():
    return
  kept = page_lib.extract(path)
  what = ''
  if options.quick and not kept['quick']:
    what = 'which --quick would replace: give another --page.'
  elif kept['data'] and not options.data:
    what = (
      'on public sets, which built-in texts would replace: give --data, or'
      ' another --page.'
    )
  elif lost := [
    name
    for name, card in kept['steps'].items()
    if card['status'] == runner.DONE
    and name not in steps
    and (runner.card(options.folder / name) or {}).get('status') != runner.DONE
  ]:
    what = (
      f'of {", ".join(lost)}, which {options.out} lacks: run these steps, too,'
      ' or give another --page.'
    )
  if what:
    raise errors.MeJaxError(f'{page} holds results of {options.name} {what}')


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
  page = pathlib.Path(flags.page)
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
  for options in studies:
    _check_page(page, options, steps)
  data_sha256 = options_lib.digest(flags.data)
  failed = False
  for options in studies:
    for name in steps_lib.NAMES:
      if name in steps:
        step = steps_lib.make(name, options)
        done = runner.run(step, options, data_sha256, launch=launch)
        failed |= done['status'] == runner.FAILED
    extract = collect.collect(options, page_lib.folder_of(page))
    files.write_json(page_lib.folder_of(page) / f'{options.name}.json', extract)
    page_lib.write(page)
  print(f'study: wrote {page}')
  return int(failed)


if __name__ == '__main__':
  try:
    sys.exit(main())
  except errors.MeJaxError as error:
    print(f'study: {error}', file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print('study: stopped; the same command goes on', file=sys.stderr)
    sys.exit(130)
