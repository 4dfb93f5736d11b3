"""lm-eval's own command line, with `--model me_jax`."""

from __future__ import annotations

import sys

from lm_eval import __main__ as eval_main

from me_jax import errors
from me_jax.evaluation import harness

if __name__ == '__main__':
  # Imported for what it registers.
  assert harness.NAME
  try:
    eval_main.cli_evaluate()
  except errors.MeJaxError as error:
    print(f'me-jax: {error}', file=sys.stderr)
    sys.exit(2)
