"""`python -m me_jax VERB`: the same as `me-jax VERB`."""

from __future__ import annotations

from me_jax import cli

if __name__ == '__main__':
  cli.entry()
