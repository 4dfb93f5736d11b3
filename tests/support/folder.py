"""Writes a planted model as a Hugging Face folder, with a tokenizer."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from me_jax.checkpoints import names as names_lib
from me_jax.models import decoder
from tests.support import planted


def write(
  model: decoder.Decoder, params: Any, folder: pathlib.Path
) -> pathlib.Path:
  """Writes weights, config.json and a tokenizer of single letters."""
  folder.mkdir(parents=True, exist_ok=True)
  origins = names_lib.hf_table(model.config, {}).origins
  tensors = {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
    path = '/'.join(key.key for key in keys)
    values = np.asarray(leaf) if path.startswith('layers/') else leaf[None]
    for layer, value in enumerate(np.asarray(values)):
      value = value.T if origins[path].transpose else value
      name = origins[path].template.format(layer=layer)
      tensors[name] = np.ascontiguousarray(value)
  safetensors_numpy.save_file(tensors, folder / 'model.safetensors')
  (folder / 'config.json').write_text(json.dumps(model.config.to_hf()))
  _tokenizer().save_pretrained(folder)
  return folder


def _tokenizer() -> Any:
  import tokenizers
  import transformers

  letters = 'abcdefghijklmnopqrstuvwxyz .,0123456789'
  vocab = {'<unk>': 0, '<bos>': planted.BOS}
  vocab |= {letter: i for i, letter in enumerate(letters, 2)}
  inner = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocab, unk_token='<unk>')
  )
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Split('', 'isolated')
  inner.normalizer = tokenizers.normalizers.Lowercase()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, bos_token='<bos>', unk_token='<unk>'
  )
