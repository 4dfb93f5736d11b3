"""Writes the default model as the safetensors folder that both sides load."""

from __future__ import annotations

import pathlib

import me_jax


def write(folder: pathlib.Path) -> None:
  """Writes weights (float32), configuration and tokenizer to `folder`."""
  me_jax.export(me_jax.load('smollm2'), folder, overwrite=True)
