"""Runs tasks on a model, and goes on where an earlier run was stopped.

Every answer is kept as soon as it is there (by lm-eval, in an SQLite file a
model), every finished task as a file of its items. What a run was about stands
beside them, and a run about anything else is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import logging
import os
import pathlib
from typing import Any

from me_jax import errors
from me_jax import files
from me_jax.evaluation import tasks as tasks_lib

_ABOUT = 'run.json'


def claim(out: str, about: Mapping[str, Any], *, anew: bool) -> None:
  """Makes a folder this run's own.

  Args:
    out: the folder.
    about: what results depend on, as JSON types.
    anew: remove what an earlier run has left there.

  Raises:
    MeJaxError: it holds another run, and what differs; or something else.
  """
  path = pathlib.Path(out)
  note = path / _ABOUT
  if path.exists() and not path.is_dir():
    raise errors.MeJaxError(f'--out={out} is not a folder.')
  if note.exists():
    try:
      before = json.loads(note.read_text(encoding='utf-8'))
    except ValueError:
      before = {}
    differing = sorted(
      key for key in {*before, *about} if before.get(key) != about.get(key)
    )
    if differing and not anew:
      raise errors.MeJaxError(
        f'{out} holds a run with another {", ".join(differing)}: give another'
        ' --out, or --anew to replace it.'
      )
    if anew:
      for old in (*path.glob('*.jsonl'), *path.glob('answers_*.db'), note):
        old.unlink()
  try:
    path.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(about, indent=1) + '\n', encoding='utf-8')
  except OSError as error:
    raise errors.MeJaxError(
      f'cannot write to {out}: {error.strerror}'
    ) from None


def run(
  lm: Any,
  who: str,
  task: str,
  configuration: dict[str, Any] | str,
  out: str,
  *,
  limit: int | None = None,
  seed: int = 0,
) -> dict[int, dict[str, Any]]:
  """Runs one task on one model, unless an earlier run has finished it.

  Args:
    lm: the adapter.
    who: names the model's files.
    task: name of the task.
    configuration: of the task, for lm-eval; its name if it is one of lm-eval's.
    out: the folder that was claimed.
    limit: items, at most.
    seed: of lm-eval.

  Returns:
    Each item's metrics, and its answer as `answer`, by number.
  """
  path = pathlib.Path(out) / f'{task}_{who}.jsonl'
  if path.exists():
    lines = path.read_text(encoding='utf-8').splitlines()
    return {row['item']: row for row in map(json.loads, lines)}
  answers = os.path.join(out, f'answers_{who}')
  found = _evaluate(lm, task, configuration, answers, limit, seed)
  rows = [_item(task, sample) for sample in found]
  text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  files.write_text(path, text)
  return {row['item']: row for row in rows}


def _evaluate(
  lm: Any,
  task: str,
  configuration: dict[str, Any] | str,
  answers: str,
  limit: int | None,
  seed: int,
) -> list[dict[str, Any]]:
  # What `simple_evaluate` does, without reading every task that lm-eval has and
  # asking the machine for its particulars, which takes half a minute.
  from lm_eval import evaluator
  from lm_eval import tasks as eval_tasks
  from lm_eval.api import model as eval_model

  # What lm-eval tells is said by our own progress.
  logging.getLogger('lm_eval').setLevel(logging.ERROR)
  ours = isinstance(configuration, dict)
  loaded = eval_tasks.TaskManager(include_defaults=not ours).load(
    [configuration]
  )
  for one in loaded['tasks'].values():
    if one.get_config('num_fewshot') is None:
      one.set_config(key='num_fewshot', value=0)
    one.set_fewshot_seed(seed=seed)
  known = tasks_lib.TASKS.get(task)
  result = evaluator.evaluate(
    lm=eval_model.CachingLM(lm, f'{answers}.db'),
    task_dict=loaded,
    limit=limit,
    bootstrap_iters=0,
    log_samples=True,
    apply_chat_template=bool(
      known and known.chat and lm.tokenizer.chat_template
    ),
  )
  return result['samples'][task]


def _item(task: str, sample: dict[str, Any]) -> dict[str, Any]:
  """Returns what is kept of an item."""
  row = {'item': sample['doc_id'], 'target': sample['target']}
  row |= {name: sample[name] for name in sample['metrics']}
  answers = [resps[0] for resps in sample['resps']]
  row['answer'] = answers[0] if len(answers) == 1 else answers
  return row
