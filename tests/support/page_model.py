"""What the code of pages is run with: a planted model in place of the default.

A page's blocks say `me_jax.load('smollm2')`. Where what they show does not
depend on which model that is, they get this one, which loads and compiles in a
moment.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from me_jax.checkpoints import export
from me_jax.checkpoints import load
from me_jax.models import params as params_lib
from tests.support import planted

_LETTERS = 'abcdefghijklmnopqrstuvwxyz .,0123456789'
_TEXTS = ('the quick brown fox', 'to be or not to be', 'a question, an answer')


def write(folder: pathlib.Path) -> str:
  """Writes a model with an ME Layer, and a tokenizer."""
  # Three layers: some programs are unrolled, which is slow to compile.
  model, params = planted.build([planted.Plant(1, 7, 9, 5000.0)])
  model, params = params_lib.first_layers(model, params, 3)
  lm = load.LoadedModel(model, params, _tokenizer(), model.config)
  export.export(lm, folder)
  return str(folder)


def write_rows(path: pathlib.Path, count: int = 40) -> None:
  """Writes rows to train on."""
  rows = [{'text': _TEXTS[i % len(_TEXTS)]} for i in range(count)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def _tokenizer() -> Any:
  """Returns one of letters that begins every text with BOS.

  Without it this model has no massive activations.
  """
  import tokenizers
  import transformers

  bos = '^'
  vocab = {'<unk>': 0, bos: planted.BOS}
  vocab |= {letter: i for i, letter in enumerate(_LETTERS, 2)}
  inner = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocab, unk_token='<unk>')
  )
  inner.normalizer = tokenizers.normalizers.Sequence(
    [tokenizers.normalizers.Lowercase(), tokenizers.normalizers.Prepend(bos)]
  )
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Split('', 'isolated')
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, bos_token=bos, unk_token='<unk>'
  )
