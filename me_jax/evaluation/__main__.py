"""lm-eval's own command line, with `--model me_jax`."""

from __future__ import annotations

from lm_eval import __main__ as eval_main

from me_jax.evaluation import harness

if __name__ == '__main__':
  # Imported for what it registers.
  assert harness.NAME
  eval_main.cli_evaluate()
