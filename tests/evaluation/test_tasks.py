"""What the six ask, and how an answer is graded."""

from __future__ import annotations

import json

import pytest

pytest.importorskip('lm_eval', reason='needs the extra [eval]')

import me_jax  # noqa: E402
from me_jax.evaluation import data  # noqa: E402
from me_jax.evaluation import run  # noqa: E402
from me_jax.evaluation import tasks  # noqa: E402


def made(name, folder=None, **kwargs):
  return tasks.configuration(name, str(folder or data.samples()), **kwargs)


def graded(name, row, answer, **kwargs):
  return made(name, **kwargs)['process_results'](row, [answer])


@pytest.mark.parametrize('name', tasks.TASKS)
def test_every_task_is_one_of_lm_eval(name):
  configuration = made(name)
  loaded = run.load(name, configuration, 0)
  (task,) = loaded['tasks'].values()
  rows = data.rows(name, data.samples())
  assert len(list(task.test_docs())) == len(rows)
  expected = [metric.name for metric in tasks.TASKS[name].metrics]
  assert run.means(name, loaded) == expected
  if name in ('gsm8k', 'math500'):
    asked = configuration['doc_to_text'](rows[0])
    assert rows[0].get('question', rows[0].get('problem')) in asked
    assert 'boxed{}' in asked


@pytest.mark.parametrize(
  ('name', 'row', 'right', 'wrong'),
  [
    ('gsm8k', {'answer': 'so 1,000\n#### 1,000'}, 'It is $1000.', '100'),
    ('gsm8k', {'answer': '#### 12'}, r'\boxed {12}', r'\boxed{1}'),
    ('math500', {'answer': r'\frac{1}{2}'}, r'\boxed{0.5}', r'\boxed{2}'),
    ('aime24', {'answer': 25}, r'\boxed{025}', r'\boxed{250}'),
  ],
)
def test_maths(name, row, right, wrong):
  assert graded(name, row, right) == {'accuracy': 1.0}
  assert graded(name, row, wrong) == {'accuracy': 0.0}


def test_the_released_matcher_stands_beside_on_request():
  found = graded('gsm8k', {'answer': '#### 12'}, '1', released_matcher=True)
  assert found == {'accuracy': 0.0, 'released': 1.0}


def test_refusals_are_told_apart_by_the_prompt():
  for label, metric in (('safe', 'refused_safe'), ('unsafe', 'refused_unsafe')):
    assert graded('xstest', {'label': label}, "I'm sorry, no") == {metric: 1.0}
    assert graded('xstest', {'label': label}, 'Sure.') == {metric: 0.0}


def test_multiple_choice_shows_its_subjects_examples(tmp_path):
  folder = tmp_path / 'mmlu'
  folder.mkdir()

  def put(name, rows):
    lines = [
      json.dumps(
        {'subject': s, 'question': q, 'choices': ['x', 'y'], 'answer': a}
      )
      for s, q, a in rows
    ]
    (folder / name).write_text('\n'.join(lines))

  put('dev.jsonl', [('law_dev', f'shown {i}?', 1) for i in range(7)]
      + [('art_dev', 'other?', 0)])  # fmt: skip
  put('test.jsonl', [('law_test', 'asked?', 0), ('none_test', 'alone?', 1)])
  configuration = made('mmlu', tmp_path)
  rows = data.rows('mmlu', str(tmp_path))
  asked, alone = map(configuration['doc_to_text'], rows)
  assert asked.count('Answer: B') == 5 and asked.endswith('Answer:')
  assert (
    'shown 4?' in asked and 'shown 5?' not in asked and 'other' not in asked
  )
  assert 'about law.' in asked and 'shown' not in alone
  assert configuration['doc_to_choice'](rows[0]) == ['A', 'B']


def test_instructions_are_checked_alike_every_time():
  """The checker draws what a row leaves open."""
  import random

  row = {
    'key': 7, 'prompt': 'p', 'instruction_id_list': ['keywords:letter_frequency'],
    'kwargs': [{'letter': None, 'let_relation': 'at least', 'let_frequency': 1}],
  }  # fmt: skip
  found = set()
  for seed in range(8):
    random.seed(seed)
    said = graded('ifeval', row, 'abcdefg')
    found.add(said['prompt_level_strict_acc'])
  assert len(found) == 1


def test_a_row_without_its_answers_mark_is_refused(tmp_path):
  (tmp_path / 'gsm8k').mkdir()
  rows = [{'question': 'q', 'answer': a} for a in ('#### 1', 'two')]
  path = tmp_path / 'gsm8k' / 'test.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  with pytest.raises(me_jax.MeJaxError, match="row 2: there is no '####'"):
    made('gsm8k', tmp_path)


def test_other_rows_have_another_digest():
  rows = data.rows('gsm8k', data.samples())
  assert data.digest(rows) == data.digest([dict(row) for row in rows])
  assert data.digest(rows) != data.digest(rows[::-1])
  assert data.digest(rows) != data.digest(rows[:-1])
