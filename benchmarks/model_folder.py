"""Writes the default model as the safetensors folder that both sides load."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

import me_jax
from me_jax.checkpoints import names as names_lib


def write(folder: pathlib.Path) -> None:
  """Writes weights (float32), configuration and tokenizer to `folder`."""
  lm = me_jax.load('smollm2')
  folder.mkdir(parents=True, exist_ok=True)
  origins = names_lib.hf_table(lm.config, {}).origins
  tensors = {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(lm.params):
    path = '/'.join(key.key for key in keys)
    origin = origins[path]
    values = np.asarray(leaf) if path.startswith('layers/') else leaf[None]
    for layer, value in enumerate(np.asarray(values)):
      value = value.T if origin.transpose else value
      name = origin.template.format(layer=layer)
      tensors[name] = np.ascontiguousarray(value)
  metadata = {'format': 'pt'}
  safetensors_numpy.save_file(tensors, folder / 'model.safetensors', metadata)
  config = json.dumps(lm.config.to_hf(), indent=1)
  (folder / 'config.json').write_text(config, encoding='utf-8')
  lm.tokenizer.save_pretrained(folder)
