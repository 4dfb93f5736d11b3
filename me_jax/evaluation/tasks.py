"""The paper's six, as tasks of lm-eval.

lm-eval asks, batches, caches and scores; what stands here is where rows come
from, how they are put, and who grades. Prompts are zero-shot chats, save MMLU,
which is put as lm-eval does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import random
from typing import Any

from me_jax import errors
from me_jax.evaluation import data
from me_jax.evaluation import grading
from me_jax.evaluation import punkt

_BOXED = (
  '\n\nWork it out step by step, and put the final answer into \\boxed{}.'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
  """A number of a task, from one item each.

  Attributes:
    name: as lm-eval calls it.
    label: what a reader sees.
    better: 1 if more is better, -1 if less, 0 if neither.
    unit: '%' where values are shares; else they are shown as they are.
  """

  name: str
  label: str
  better: int = 1
  unit: str = '%'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One of the six.

  Attributes:
    name: of the task.
    label: what a reader sees.
    metrics: what it measures; the first is the one that counts.
    max_new_tokens: of an answer; 0 where nothing is generated.
    chat: whether it is put as a chat, if the model has a template.
    note: how it is put and graded, for the report.
  """

  name: str
  label: str
  metrics: tuple[Metric, ...]
  max_new_tokens: int
  chat: bool = True
  note: str


_ACCURACY = (Metric(name='accuracy', label='right'),)
_MATHS = 'one prompt, greedy; the final answer by math-verify'

TASKS = {
  task.name: task
  for task in (
    Task(
      name='gsm8k', label='GSM8K', metrics=_ACCURACY, max_new_tokens=512,
      note=_MATHS,
    ),
    Task(
      name='math500', label='MATH-500', metrics=_ACCURACY, max_new_tokens=1024,
      note=_MATHS,
    ),
    Task(
      name='aime24', label='AIME 2024', metrics=_ACCURACY, max_new_tokens=2048,
      note=_MATHS,
    ),
    Task(
      name='ifeval', label='IFEval',
      metrics=(
        Metric(name='prompt_level_strict_acc', label='prompts, strict'),
        Metric(name='inst_level_strict_acc', label='instructions, strict'),
        Metric(name='prompt_level_loose_acc', label='prompts, loose'),
        Metric(name='inst_level_loose_acc', label='instructions, loose'),
      ),
      max_new_tokens=1280,
      note="greedy; lm-eval's checker of instructions",
    ),
    Task(
      name='mmlu', label='MMLU', metrics=(Metric(name='acc', label='right'),),
      max_new_tokens=0, chat=False,
      note='up to five examples of the subject first, no chat; the likeliest of'
      ' the four letters',
    ),
    Task(
      name='xstest', label='XSTest',
      metrics=(
        Metric(name='refused_safe', label='safe prompts refused', better=-1),
        Metric(name='refused_unsafe', label='unsafe prompts refused', better=0),
      ),
      max_new_tokens=256,
      note="greedy; refusals by the authors' rule about how an answer begins,"
      ' which is a rule about strings',
    ),
  )
}  # fmt: skip


def configuration(
  name: str,
  folder: str | None,
  *,
  max_new_tokens: int | None = None,
  limit: int | None = None,
  released_matcher: bool = False,
) -> dict[str, Any]:
  """Returns a task as lm-eval takes it.

  Args:
    name: one of `TASKS`.
    folder: with the data; None asks the hub.
    max_new_tokens: instead of the task's, if that is more.
    limit: rows, at most, from all over the file.
    released_matcher: grade maths by the published matcher too.

  Raises:
    MeJaxError: the data are not there or not sound, or a grader lacks its.
  """
  rows, shots = data.rows(name, folder), data.shots(name, folder)
  if limit and limit < len(rows):
    # Files are often sorted by subject.
    rows = [rows[i * len(rows) // limit] for i in range(limit)]
  task = TASKS[name]
  graders: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    'gsm8k': _maths(
      lambda row: row['answer'].split('####')[-1].strip(), released_matcher
    ),
    'math500': _maths(lambda row: row['answer'], released_matcher),
    'aime24': _maths(lambda row: str(row['answer']), released_matcher),
    'xstest': _xstest,
  }
  puts: dict[str, Callable[[Any], str]] = {
    'gsm8k': lambda row: row['question'] + _BOXED,
    'math500': lambda row: row['problem'] + _BOXED,
    'aime24': lambda row: row['problem'] + _BOXED,
    'ifeval': lambda row: row['prompt'],
    'xstest': lambda row: row['prompt'],
  }
  metrics = [metric.name for metric in task.metrics]
  if released_matcher and task.metrics is _ACCURACY:
    metrics.append('released')
  found: dict[str, Any] = {
    'task': name,
    'test_split': 'test',
    'custom_dataset': _dataset(rows, shots),
    'metadata': {'rows': data.digest([*rows, *shots])},
    'metric_list': [
      {'metric': metric, 'aggregation': 'mean', 'higher_is_better': True}
      for metric in metrics
    ],
    'num_fewshot': 0,
  }
  if name == 'mmlu':
    return found | _mmlu(rows, shots)
  if name == 'ifeval':
    punkt.provide()
    from lm_eval.tasks.ifeval import utils

    _check_instructions(rows)
    graders['ifeval'] = _instructions
    for entry in found['metric_list']:
      if str(entry['metric']).startswith('inst'):
        entry['aggregation'] = utils.agg_inst_level_acc
  most = task.max_new_tokens
  return found | {
    'output_type': 'generate_until',
    'doc_to_text': puts[name],
    'doc_to_target': lambda row: str(row.get('answer', '')),
    'process_results': graders[name],
    'generation_kwargs': {
      'until': [],
      'do_sample': False,
      'max_gen_toks': min(most, max_new_tokens or most),
    },
  }


def _dataset(
  rows: Sequence[data.Row], shots: Sequence[data.Row]
) -> Callable[..., Any]:
  def build(**_: Any) -> Any:
    import datasets

    parts = {'test': rows} | ({'dev': shots} if shots else {})
    return {
      split: datasets.Dataset.from_list([_plain(row) for row in part])
      for split, part in parts.items()
    }

  return build


def _plain(row: data.Row) -> data.Row:
  """Returns the part of a row that `datasets` can put into a table."""
  if 'kwargs' not in row:
    return {k: v for k, v in row.items() if isinstance(v, (str, int, list))}
  return row | {'kwargs': list(row['kwargs']), 'key': str(row['key'])}


def _maths(
  gold: Callable[[Any], str], released_matcher: bool
) -> Callable[[Any, Any], dict[str, Any]]:
  def grade(row: Any, results: Any) -> dict[str, Any]:
    answer, right = results[0], gold(row)
    found = {'accuracy': float(grading.is_right(answer, right))}
    if released_matcher:
      found['released'] = float(grading.is_right_as_released(answer, right))
    return found

  return grade


def _instructions(row: Any, results: Any) -> dict[str, Any]:
  import langdetect
  from lm_eval.tasks.ifeval import utils

  # The checker draws what a row leaves open, a letter to count for example, and
  # guesses languages by chance: the same for all models.
  random.seed(str(row['key']))
  langdetect.DetectorFactory.seed = 0
  return utils.process_results(row, results)


def _xstest(row: Any, results: Any) -> dict[str, Any]:
  kind = 'safe' if row['label'].strip().lower() == 'safe' else 'unsafe'
  return {f'refused_{kind}': float(grading.is_refusal(results[0]))}


def _mmlu(
  rows: Sequence[data.Row], shots: Sequence[data.Row]
) -> dict[str, Any]:
  """Returns what is multiple choice about MMLU."""
  letters = 'ABCD'
  most = max(len(row['choices']) for row in rows)
  if most > len(letters):
    raise errors.MeJaxError(f'mmlu: a row has {most} choices, not up to four.')

  def subject(row: Any) -> str:
    return row['subject'].removesuffix('_test').removesuffix('_dev')

  def question(row: Any) -> str:
    lines = [f'{a}. {choice}' for a, choice in zip(letters, row['choices'])]
    return '\n'.join([row['question'].strip(), *lines, 'Answer:'])

  examples: dict[str, list[str]] = {}
  for row in shots:
    examples.setdefault(subject(row), []).append(
      f'{question(row)} {letters[row["answer"]]}\n\n'
    )

  def put(row: Any) -> str:
    about = subject(row).replace('_', ' ')
    head = f'The following are multiple choice questions (with answers) about {about}.'
    shown = ''.join(examples.get(subject(row), [])[:5])
    return f'{head}\n\n{shown}{question(row)}'

  return {
    'output_type': 'multiple_choice',
    'doc_to_text': put,
    'doc_to_choice': lambda row: list(letters[: len(row['choices'])]),
    'doc_to_target': 'answer',
  }


def _check_instructions(rows: Sequence[data.Row]) -> None:
  from lm_eval.tasks.ifeval import instructions_registry

  known = instructions_registry.INSTRUCTION_DICT
  for number, row in enumerate(rows, 1):
    for name in row['instruction_id_list']:
      if name not in known:
        raise errors.MeJaxError(
          f'ifeval, row {number}: there is no instruction {name!r:.60}'
          f'{errors.nearest(str(name), known)}.'
        )
    if len(row['kwargs']) != len(row['instruction_id_list']):
      raise errors.MeJaxError(
        f'ifeval, row {number}: as many kwargs as instructions are needed.'
      )
