"""`make study`: every claim, put to every model given, and one page."""

from __future__ import annotations

import argparse
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
  page: pathlib.Path, models: list[str], data: str | None
) -> None:
  """Keeps built-in texts from taking the place of the public sets.

  Raises:
    MeJaxError: the page holds results of one of the models on sets, and there
      are none now.
  """
  for name in map(options_lib.name_of, models):
    path = page_lib.folder_of(page) / f'{name}.json'
    if data is None and path.is_file() and page_lib.extract(path)['data']:
      raise errors.MeJaxError(
        f'{page} holds results of {name} on public sets, which built-in texts'
        ' would replace: give --data, or another --page.'
      )


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
  if flags.quick and flags.page == page_lib.PAGE:
    raise errors.MeJaxError(
      f'--quick makes no results for {page_lib.PAGE}: give another --page.'
    )
  page = pathlib.Path(flags.page)
  _check_page(page, models, flags.data)
  data_sha256 = options_lib.digest(flags.data)
  failed = False
  for model in models:
    options = options_lib.Options(
      model=model, out=flags.out, data=flags.data, quick=flags.quick
    )
    for name in steps_lib.NAMES:
      if name in steps:
        step = steps_lib.make(name, options)
        done = runner.run(step, options, data_sha256, launch=launch)
        failed |= done['status'] == runner.FAILED
    extract = collect.collect(options, page_lib.folder_of(page))
    for path in (
      options.folder / 'results.json',
      page_lib.folder_of(page) / f'{options.name}.json',
    ):
      files.write_json(path, extract)
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
