"""Which model is meant, where its weights are not at hand?

A plan needs the configuration alone: that of a checkpoint, of a folder with a
`config.json`, or of a public model, by its name on the hub, from the table here.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

from me_jax import errors
from me_jax import strict_json
from me_jax.checkpoints import load as load_lib
from me_jax.models import config as config_lib

# As published in each repository's config.json.
_LLAMA_3_1 = {
  'model_type': 'llama', 'vocab_size': 128256, 'rms_norm_eps': 1e-5,
  'max_position_embeddings': 131072, 'rope_theta': 500000.0,
  'rope_scaling': {
    'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
    'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192,
  },
  'hidden_act': 'silu', 'tie_word_embeddings': False,
  'bos_token_id': 128000, 'num_key_value_heads': 8, 'head_dim': 128,
}  # fmt: skip
_KNOWN: dict[str, dict[str, Any]] = {
  'meta-llama/Llama-3.1-8B': _LLAMA_3_1 | {
    'hidden_size': 4096, 'intermediate_size': 14336, 'num_hidden_layers': 32,
    'num_attention_heads': 32, 'eos_token_id': 128001,
  },
  'meta-llama/Llama-3.1-70B': _LLAMA_3_1 | {
    'hidden_size': 8192, 'intermediate_size': 28672, 'num_hidden_layers': 80,
    'num_attention_heads': 64, 'eos_token_id': 128001,
  },
  'Qwen/Qwen3-4B': {
    'model_type': 'qwen3', 'vocab_size': 151936, 'hidden_size': 2560,
    'intermediate_size': 9728, 'num_hidden_layers': 36,
    'num_attention_heads': 32, 'num_key_value_heads': 8, 'head_dim': 128,
    'max_position_embeddings': 40960, 'rms_norm_eps': 1e-6,
    'rope_theta': 1000000.0, 'hidden_act': 'silu',
    'tie_word_embeddings': True, 'attention_bias': False,
    'bos_token_id': 151643, 'eos_token_id': 151645,
  },
}  # fmt: skip
NAMES = tuple(_KNOWN)


def config_of(name: str | os.PathLike[str]) -> config_lib.ModelConfig:
  """Returns the configuration of a model.

  Args:
    name: a public model of `NAMES`, a `config.json` or a folder with one, or
      whatever `me_jax.load` takes.

  Raises:
    MeJaxError: there is no such model, or it is not handled.
  """
  path = pathlib.Path(name)
  if path.is_dir() and (path / 'config.json').is_file():
    path = path / 'config.json'
  if path.suffix == '.json' and path.is_file():
    return config_lib.ModelConfig.from_hf(strict_json.read(str(path)))
  # Before the hub is asked: a plan works offline.
  if str(name) in _KNOWN:
    return config_lib.ModelConfig.from_hf(_KNOWN[str(name)])
  try:
    return load_lib.open_checkpoint(name).config
  except errors.MeJaxError as error:
    near = errors.nearest(str(name), NAMES)
    raise errors.MeJaxError(
      f'{str(error).rstrip(".")}. A plan needs no weights: a folder with its'
      f' config.json does, or one of {", ".join(NAMES)}{near}.'
    ) from error
