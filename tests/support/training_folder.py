"""A tiny model in a folder, chats and configurations, for `me-jax train`."""

from __future__ import annotations

import pathlib
from typing import Any

from me_jax.checkpoints import export
from me_jax.checkpoints import load
from tests.support import chats
from tests.support import planted

# The context of the model is 256 tokens, and a token is a letter.
SHORT = ['--set=data.length=96', '--set=evaluation.length=96']
CONFIG = """
from me_jax.training import data as data_lib
from me_jax.training import settings

def config(data):
  source = data_lib.Source(data=data)
  return settings.Run(
    data=settings.Data(
      mix=data_lib.Mix(sources=(source,)), length=96, batch=2
    ),
    steps=2,
    monitor_every=0,
    {more}
  )
"""


def model(folder: pathlib.Path, verdict: str = 'single') -> pathlib.Path:
  """Writes a model whose ME Layer is layer 4 of 8, and its tokenizer."""
  import tokenizers

  decoder, params = planted.build(planted.VERDICTS[verdict])
  tokenizer = chats.tokenizer()
  # As in most models, every text begins with the token that is massive.
  tokenizer.backend_tokenizer.post_processor = (
    tokenizers.processors.TemplateProcessing(
      single='<bos> $A', special_tokens=[('<bos>', planted.BOS)]
    )
  )
  lm = load.LoadedModel(decoder, params, tokenizer, decoder.config)
  export.export(lm, folder)
  return folder


def rows(count: int = 24) -> list[dict[str, str]]:
  """Returns questions with their answers, of 31 to 41 tokens as chats."""
  return [
    {'question': f'is {i} a number', 'answer': f'{i} is one. #### {i}'}
    for i in range(count)
  ]


def data(folder: pathlib.Path, some: list[Any] | None = None) -> pathlib.Path:
  """Writes rows into a file."""
  return chats.write(folder / 'rows.jsonl', rows() if some is None else some)


def config(folder: pathlib.Path, more: str = '') -> pathlib.Path:
  """Writes a configuration with further fields of the run."""
  path = folder / 'tiny.py'
  path.write_text(CONFIG.format(more=more))
  return path
