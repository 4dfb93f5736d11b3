"""Writes a planted model as a Hugging Face folder, with a tokenizer."""

from __future__ import annotations

import pathlib
from typing import Any

from me_jax.checkpoints import export
from me_jax.checkpoints import load
from me_jax.models import decoder
from tests.support import planted


def write(
  model: decoder.Decoder, params: Any, folder: pathlib.Path
) -> pathlib.Path:
  """Writes weights, config.json and a tokenizer of single letters."""
  lm = load.LoadedModel(model, params, tokenizer(), model.config)
  export.export(lm, folder)
  return folder


def tokenizer() -> Any:
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
