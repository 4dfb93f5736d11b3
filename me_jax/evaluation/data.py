"""Which rows is a model asked? A folder with public sets, or our own samples.

The folder holds what the sets' authors publish, under these names; the samples
that come with me_jax are ours, a few rows of each kind, to try things out with:
they are no benchmark, and what a model gets on them is no score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import hashlib
from importlib import resources
import io
import json
import os
from typing import Any

from me_jax import errors

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """Where the rows of a task are.

  Attributes:
    file: below the folder.
    fields: what each row must have, and of which type.
    hub: dataset and split, where there is a network.
    holds: a field and what must stand in it.
    values: a field and what it may be, in any case.
    rename: fields of the hub's rows that have another name there.
    configuration: of the hub's dataset.
    hint: where the file comes from.
  """

  file: str
  fields: Mapping[str, type | tuple[type, ...]]
  hub: tuple[str, str]
  holds: tuple[str, str] | None = None
  values: tuple[str, tuple[str, ...]] | None = None
  rename: dict[str, str] = dataclasses.field(default_factory=dict)
  configuration: str | None = None
  hint: str = ''


_MMLU = {'question': str, 'choices': list, 'answer': int, 'subject': str}

SOURCES = {
  'gsm8k': Source(
    file='gsm8k/test.jsonl',
    fields={'question': str, 'answer': str},
    holds=('answer', '####'),
    hub=('openai/gsm8k', 'test'),
    configuration='main',
    hint='github.com/openai/grade-school-math',
  ),
  'math500': Source(
    file='math500/test.jsonl',
    fields={'problem': str, 'answer': str},
    hub=('HuggingFaceH4/MATH-500', 'test'),
    hint='huggingface.co/datasets/HuggingFaceH4/MATH-500',
  ),
  'aime24': Source(
    file='aime24/test.jsonl',
    fields={'problem': str, 'answer': (str, int)},
    hub=('Maxwell-Jia/AIME_2024', 'train'),
    rename={'Problem': 'problem', 'Answer': 'answer'},
    hint='huggingface.co/datasets/Maxwell-Jia/AIME_2024',
  ),
  'ifeval': Source(
    file='ifeval/prompts.jsonl',
    fields={
      'key': (int, str), 'prompt': str, 'instruction_id_list': list,
      'kwargs': list,
    },
    hub=('google/IFEval', 'train'),
    hint='github.com/google-research/google-research, instruction_following_eval',
  ),
  'mmlu': Source(
    file='mmlu/test.jsonl',
    fields=_MMLU,
    hub=('cais/mmlu', 'test'),
    configuration='all',
    hint='huggingface.co/datasets/cais/mmlu',
  ),
  'xstest': Source(
    file='xstest/prompts.csv',
    fields={'prompt': str, 'label': str},
    values=('label', ('safe', 'unsafe')),
    hub=('Paul/XSTest', 'train'),
    hint='github.com/paul-rottger/xstest',
  ),
}  # fmt: skip
# Examples that come before a question.
_SHOTS = {
  'mmlu': dataclasses.replace(
    SOURCES['mmlu'], file='mmlu/dev.jsonl', hub=('cais/mmlu', 'dev')
  )
}


def rows(task: str, folder: str | None) -> list[Row]:
  """Returns what a task asks.

  Args:
    task: one of `SOURCES`.
    folder: with the files; None asks the hub.

  Raises:
    MeJaxError: the file is missing (and where it comes from), or a row lacks a
      field (which row).
  """
  return _read(SOURCES[task], task, folder)


def shots(task: str, folder: str | None) -> list[Row]:
  """Returns examples to show before a question; empty for most tasks.

  Raises:
    MeJaxError: as `rows` does; a folder without the file has no examples.
  """
  source = _SHOTS.get(task)
  if source is None:
    return []
  if folder and not os.path.isfile(os.path.join(folder, source.file)):
    return []
  return _read(source, task, folder)


def digest(found: Sequence[Any]) -> str:
  """Returns a short name of what rows hold."""
  text = json.dumps(list(found), sort_keys=True, default=repr)
  return hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:16]


def samples() -> str:
  """Returns the folder of the samples that come with me_jax."""
  return str(resources.files('me_jax.evaluation').joinpath('samples'))


def _read(source: Source, task: str, folder: str | None) -> list[Row]:
  if folder is None:
    return _from_hub(source, task)
  path = os.path.join(folder, source.file)
  try:
    with open(path, encoding='utf-8', newline='') as file:
      text = file.read()
  except OSError:
    raise errors.MeJaxError(
      f'{task} needs {path}, which is not there: it comes from {source.hint}.'
    ) from None
  except UnicodeDecodeError:
    raise errors.MeJaxError(f'{path} is not UTF-8 text.') from None
  parse = _csv if path.endswith('.csv') else _jsonl
  found = parse(text, path)
  if not found:
    raise errors.MeJaxError(f'{path} is empty.')
  for number, row in enumerate(found, 1):
    _check(row, source, f'{path}, row {number}')
  return found


def _jsonl(text: str, path: str) -> list[Row]:
  found = []
  # Only this ends a row: strings may hold what Unicode calls line ends.
  lines = [line for line in text.split('\n') if line.strip()]
  for number, line in enumerate(lines, 1):
    try:
      found.append(json.loads(line))
    except ValueError:
      raise errors.MeJaxError(f'{path}, row {number} is no JSON.') from None
  return found


def _csv(text: str, path: str) -> list[Row]:
  del path
  return list(csv.DictReader(io.StringIO(text, newline='')))


def _check(row: Any, source: Source, where: str) -> None:
  if not isinstance(row, dict):
    raise errors.MeJaxError(f'{where} is no object.')
  for name, kind in source.fields.items():
    if row.get(name) in (None, '', []):
      raise errors.MeJaxError(f"{where} lacks '{name}'.")
    if not isinstance(row[name], kind):
      raise errors.MeJaxError(
        f"{where}: '{name}' is of type {type(row[name]).__name__}."
      )
  if source.holds and source.holds[1] not in row[source.holds[0]]:
    name, mark = source.holds
    raise errors.MeJaxError(f"{where}: there is no '{mark}' in '{name}'.")
  if source.values:
    name, allowed = source.values
    if row[name].strip().lower() not in allowed:
      raise errors.MeJaxError(
        f"{where}: '{name}' is {row[name]!r:.40}, must be {' or '.join(allowed)}."
      )
  if 'choices' in source.fields and not 0 <= row['answer'] < len(
    row['choices']
  ):
    raise errors.MeJaxError(f"{where}: 'answer' is none of the choices.")


def _from_hub(source: Source, task: str) -> list[Row]:
  import datasets

  name, split = source.hub
  try:
    found = datasets.load_dataset(name, source.configuration, split=split)
  # The hub's client raises what it likes.
  except Exception as error:
    raise errors.MeJaxError(
      f'{task}: cannot read {name} from the hub ({type(error).__name__}); give'
      f' --data=DIR with {source.file}, from {source.hint}.'
    ) from error
  rows_ = [
    {source.rename.get(key, key): value for key, value in row.items()}
    for row in found
  ]
  for number, row in enumerate(rows_, 1):
    _check(row, source, f'{name}, row {number}')
  return rows_
