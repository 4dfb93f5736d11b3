"""`make study`: every claim, put to every model given, and one page."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from me_jax import errors
from study import options as options_lib
from study import runner
from study import steps as steps_lib

_PAGE = 'docs/study.md'


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
    default=list(steps_lib.NAMES),
    help=f'which of {",".join(steps_lib.NAMES)} are run. Default: all.',
  )
  add(
    '--quick',
    action='store_true',
    help='everything tiny, on built-in texts, to see that it works; give --out'
    ' and --page.',
  )
  add('--out', default=options_lib.OUT, help='the folder of the steps.')
  add('--page', default=_PAGE, help='the page; its figures lie beside it.')
  return parser


def main(argv: list[str] | None = None) -> int:
  """Runs the study; returns the exit status."""
  flags = _parser().parse_args(argv)
  models = flags.model or [options_lib.DEFAULT_MODEL]
  options_lib.check(models, flags.data)
  for name in flags.steps:
    if name not in steps_lib.NAMES:
      raise errors.MeJaxError(
        f'there is no step {name!r}{errors.nearest(name, steps_lib.NAMES)};'
        f' steps: {", ".join(steps_lib.NAMES)}.'
      )
  if flags.quick and flags.page == _PAGE:
    raise errors.MeJaxError(
      f'--quick makes no results for {_PAGE}: give another --page.'
    )
  data_sha256 = options_lib.digest(flags.data)
  failed = False
  for model in models:
    options = options_lib.Options(
      model=model, out=flags.out, data=flags.data, quick=flags.quick
    )
    for name in steps_lib.NAMES:
      if name in flags.steps:
        step = steps_lib.make(name, options)
        done = runner.run(step, options, data_sha256)
        failed |= done['status'] == runner.FAILED
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
