"""Runs tasks on a model, and goes on where an earlier run was stopped.

Every answer is kept as soon as it is there (by lm-eval, in an SQLite file a
model), every finished task as a file of its items. What a run was about stands
beside them, and a run about anything else is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
import json
import logging
import os
import pathlib
import random
from typing import Any

import numpy as np

from me_jax import errors
from me_jax import files
from me_jax.evaluation import tasks as tasks_lib

_ABOUT = 'run.json'

Rows = dict[int, dict[str, Any]]


def check(
  out: str,
  about: Mapping[str, Any],
  *,
  anew: bool,
  unknown: Sequence[str] = (),
) -> None:
  """Sees that a folder holds no other run.

  Args:
    out: the folder.
    about: what results depend on, as JSON types; `rows` by task.
    anew: whether what an earlier run has left there may go.
    unknown: names of what is not known yet, and not looked at.

  Raises:
    MeJaxError: it holds another run, and what differs.
  """
  before = _before(out)
  if anew or before is None:
    return
  rows, known = about['rows'], before.get('rows', {})
  differing = [
    key
    for key in sorted({*before, *about} - {'rows', *unknown})
    if before.get(key) != about.get(key)
  ]
  # Tasks that it has not run yet may join it.
  if any(known.get(task, rows[task]) != rows[task] for task in rows):
    differing.append('rows')
  if differing:
    raise errors.MeJaxError(
      f'{out} holds a run with another {", ".join(differing)}: give another'
      ' --out, or --anew to replace it.'
    )


def claim(
  out: str, about: Mapping[str, Any], models: Sequence[str], *, anew: bool
) -> None:
  """Makes a folder this run's own.

  Args:
    out: the folder.
    about: as of `check`, whole.
    models: names of files that a run writes end with one of these.
    anew: remove what an earlier run has left there.

  Raises:
    MeJaxError: it holds another run, and what differs.
  """
  check(out, about, anew=anew)
  path = pathlib.Path(out)
  rows = about['rows']
  if anew:
    for who in models:
      for old in (*path.glob(f'*_{who}.jsonl'), path / f'answers_{who}.db'):
        old.unlink(missing_ok=True)
  elif before := _before(out):
    rows = before.get('rows', {}) | rows
  files.write_json(path / _ABOUT, {**about, 'rows': rows})


def _before(out: str) -> dict[str, Any] | None:
  """Returns what the run in a folder was about, None if there is none."""
  note = pathlib.Path(out, _ABOUT)
  return _read_note(note) if note.exists() else None


def _read_note(note: pathlib.Path) -> dict[str, Any]:
  try:
    found = json.loads(note.read_text(encoding='utf-8'))
  except ValueError:
    found = None
  # Whatever else it is, it is no run of ours.
  return found if isinstance(found, dict) else {'run': str(note)}


def kept(path: pathlib.Path) -> Rows | None:
  """Returns the items of a finished task, None if it is not finished."""
  if not path.exists():
    return None
  # Only this ends a row: an answer may hold what Unicode calls line ends.
  lines = path.read_text(encoding='utf-8').split('\n')
  return {row['item']: row for row in map(json.loads, filter(None, lines))}


def keep(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> Rows:
  """Writes the items of a finished task, and returns them by number."""
  lines = [json.dumps(row, ensure_ascii=False) + '\n' for row in rows]
  files.write_text(path, ''.join(lines))
  return {row['item']: row for row in rows}


@functools.cache
def index() -> Any:
  """Returns lm-eval's own tasks; it reads thousands of files for them, once."""
  from lm_eval import tasks as eval_tasks

  return eval_tasks.TaskManager()


def load(task: str, configuration: dict[str, Any] | None, seed: int) -> Any:
  """Returns a task as lm-eval runs it, the same for all models.

  Args:
    task: its name.
    configuration: ours; None for one of lm-eval's own.
    seed: of examples, and of what its code draws.

  Raises:
    MeJaxError: its data cannot be had.
  """
  from lm_eval import tasks as eval_tasks

  # What they tell is said by our own progress, and by the error below.
  for name in ('lm_eval', 'huggingface_hub', 'datasets'):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  _seed(seed)
  manager = (
    index()
    if configuration is None
    else eval_tasks.TaskManager(include_defaults=False)
  )
  try:
    found = manager.load([configuration or task])
  except errors.MeJaxError:
    raise
  # Tasks are code, and the hub's client raises what it likes.
  except Exception as error:
    raise errors.MeJaxError(
      f'lm-evaluation-harness cannot load {task!r}, which takes its data from'
      f' the hub ({type(error).__name__}): is there a network?'
    ) from error
  for one in found['tasks'].values():
    if one.get_config('num_fewshot') is None:
      one.set_config(key='num_fewshot', value=0)
    one.set_fewshot_seed(seed=seed)
  return found


def run(
  lm: Any,
  who: str,
  task: str,
  loaded: Any,
  out: str,
  *,
  limit: int | None = None,
  seed: int = 0,
) -> Rows:
  """Runs one task on one model, unless an earlier run has finished it.

  Args:
    lm: the adapter.
    who: names the model's files.
    task: name of the task.
    loaded: from `load`.
    out: the folder that was claimed.
    limit: items, at most.
    seed: of what the task's code draws.

  Returns:
    By number, each item's `metrics`, its `prompt`, `target` and `answer`.
  """
  path = pathlib.Path(out) / f'{task}_{who}.jsonl'
  found = kept(path)
  if found is not None:
    return found
  from lm_eval import evaluator
  from lm_eval.api import model as eval_model

  known = tasks_lib.TASKS.get(task)
  _seed(seed)
  # What `simple_evaluate` does, without reading every task that lm-eval has and
  # asking the machine for its particulars, which takes half a minute.
  result = evaluator.evaluate(
    lm=eval_model.CachingLM(lm, os.path.join(out, f'answers_{who}.db')),
    task_dict=loaded,
    limit=limit,
    bootstrap_iters=0,
    log_samples=True,
    apply_chat_template=bool(
      known and known.chat and lm.tokenizer.chat_template
    ),
  )
  return keep(path, _items(result['samples'][task], means(task, loaded)))


def means(task: str, loaded: Any) -> list[str]:
  """Returns the metrics of a task whose value is the mean over its items."""
  if task in tasks_lib.TASKS:
    return list(loaded['tasks'][task].aggregation())
  return [
    name
    for name, how in loaded['tasks'][task].aggregation().items()
    if getattr(how, '__name__', '') == 'mean'
  ]


def _seed(seed: int) -> None:
  """Seeds what tasks of lm-eval draw from."""
  random.seed(seed)
  np.random.seed(seed)


def _items(
  samples: Sequence[dict[str, Any]], names: Sequence[str]
) -> list[dict[str, Any]]:
  """Returns what is kept of each item."""
  # A task may look at an answer in several ways, and logs it each time.
  several = len({sample['filter'] for sample in samples}) > 1
  rows: Rows = {}
  for sample in samples:
    answers = [resps[0] for resps in sample['resps']]
    row = rows.setdefault(
      sample['doc_id'],
      {
        'item': sample['doc_id'],
        'prompt': sample['arguments'][0][0],
        'target': sample['target'],
        'metrics': {},
        'answer': answers[0] if len(answers) == 1 else answers,
      },
    )
    for name in sample['metrics']:
      if name in names:
        label = f'{name}, {sample["filter"]}' if several else name
        row['metrics'][label] = sample[name]
  return list(rows.values())
