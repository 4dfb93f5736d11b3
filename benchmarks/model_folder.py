"""Writes the default model as the safetensors folder that both sides load."""

from __future__ import annotations

import json
import pathlib

from safetensors import numpy as safetensors_numpy

import me_jax
from me_jax.checkpoints import export


def write(folder: pathlib.Path) -> None:
  """Writes weights (float32), configuration and tokenizer to `folder`."""
  lm = me_jax.load('smollm2')
  folder.mkdir(parents=True, exist_ok=True)
  safetensors_numpy.save_file(
    export.hf_tensors(lm.config, lm.params),
    folder / 'model.safetensors',
    {'format': 'pt'},
  )
  config = json.dumps(lm.config.to_hf(), indent=1)
  (folder / 'config.json').write_text(config, encoding='utf-8')
  lm.tokenizer.save_pretrained(folder)
