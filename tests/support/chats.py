"""A tokenizer of letters whose template ends every message with a token."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from me_jax.models import config as config_lib
from tests.support import folder as folder_lib
from tests.support import planted

# A chat reads `<bos>u question<end>.a answer<end>.`
TEMPLATE = (
  '<bos>{% for m in messages %}{{ m.role[0] }} {{ m.content }}<end>.'
  '{% endfor %}{% if add_generation_prompt %}a {% endif %}'
)


def tokenizer(template: str | None = TEMPLATE) -> Any:
  made = folder_lib.tokenizer()
  made.add_special_tokens(
    {'eos_token': '<eos>', 'extra_special_tokens': ['<end>']}
  )
  made.chat_template = template
  return made


def config() -> config_lib.ModelConfig:
  """Returns a configuration with a context of 256 tokens."""
  return planted.build([])[0].config


def chat(*contents: str) -> list[dict[str, str]]:
  """Returns messages of a user and an assistant in turn."""
  roles = ('user', 'assistant') * len(contents)
  return [
    {'role': role, 'content': content} for role, content in zip(roles, contents)
  ]


def write(path: pathlib.Path, rows: list[Any]) -> pathlib.Path:
  """Writes rows as JSON, or as they are to a file of plain text."""
  if path.suffix == '.jsonl':
    rows = [json.dumps(row) for row in rows]
  path.write_text('\n'.join(rows), encoding='utf-8')
  return path
