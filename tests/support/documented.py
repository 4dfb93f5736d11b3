"""What the commands of the documentation find where a test runs them.

A page says `--model=path/to/folder`, the name of the default model, or what an
earlier command wrote. The first two are a tiny model here, and the rest is there
where the commands of a page run in order in one folder.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import me_jax
from me_jax.mitigation import wemask
from tests.support import planted
from tests.support import training_folder

# Flags behind those of the page, which make a run short; `fixtures` by name.
SHORT = {
  'find': ('--prompts={prompts}',),
  'explain': ('--vocabulary=16', '--prompts={prompts}'),
  'mitigate': (
    '--prompts={prompts}',
    '--texts=3', '--calibration=3', '--length=96', '--rate=0.5',
    '--strength=0.5', '--layers=after', '--select=weight', '--budget=9',
    '--noby_layer',
  ),
  'generate': ('--max_new_tokens=4',),
  'evaluate': (
    '--tasks=gsm8k,loss', '--limit=2', '--max_new_tokens=4', '--anew',
  ),
  'train': (
    '--steps=2', '--set=data.length=192', '--set=data.batch=2',
    '--set=evaluation.length=192', '--set=monitor_every=0',
    '--set=train.gates.layers=5,6,7',
  ),
  'export': ('--overwrite',),
}  # fmt: skip
# Rows of each set: the configurations look beyond the first hundred.
_ROWS = 200


def sets(folder: pathlib.Path) -> pathlib.Path:
  """Writes the public sets under their usual names."""

  def write(place: str, row: dict[str, Any]) -> None:
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
      {name: f'{text}{i}' for name, text in row.items()} for i in range(_ROWS)
    ]
    path.write_text('\n'.join(map(json.dumps, rows)))

  for split in ('train', 'test'):
    write(
      f'gsm8k/{split}.jsonl', {'question': f'{split} ', 'answer': 'a #### '}
    )
  write(
    'math500/test.jsonl', {'problem': 'm ', 'solution': 's ', 'answer': '1'}
  )
  write('text/c4_demo.jsonl', {'text': 'a text of the web '})
  write(
    'preferences/dpo_en_demo.jsonl',
    {'prompt': 'p ', 'chosen': 'yes ', 'rejected': 'no '},
  )
  return folder


def texts(folder: pathlib.Path) -> pathlib.Path:
  """Writes a file of a few texts: each corpus takes its time."""
  folder.mkdir()
  lines = [json.dumps({'text': f'text {i} of a few'}) for i in range(8)]
  (folder / 'texts.jsonl').write_text('\n'.join(lines))
  return folder


def fixtures(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Writes what the value of a flag may stand for, by the flag's name."""
  model = training_folder.model(folder / 'model')
  lm = me_jax.load(model)
  masked = wemask.wemask(lm.model, lm.params, planted.report(), rate=0.5)
  me_jax.save(lm._replace(params=masked), folder / 'masked')
  prompts = folder / 'prompts.txt'
  prompts.write_text('one prompt\nand another\nand a third\n')
  return {
    'model': model,
    'model_config': model,
    'mitigation': folder / 'masked',
    'data': sets(folder / 'sets'),
    'corpus': texts(folder / 'texts'),
    'prompts': prompts,
  }
