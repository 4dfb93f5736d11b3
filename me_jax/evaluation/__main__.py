"""lm-eval's own command line, with `--model me_jax`."""

from __future__ import annotations

import sys

from lm_eval import __main__ as eval_main

from me_jax import errors

if __name__ == '__main__':
  try:
    eval_main.cli_evaluate()
  except errors.MeJaxError as error:
    print(f'me-jax: {error}', file=sys.stderr)
    sys.exit(2)
