"""Rules judge answers by their text, and no answer stops a run."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import me_jax
from me_jax.training import rewards

needs_math_verify = pytest.mark.skipif(
  importlib.util.find_spec('math_verify') is None, reason='needs [eval]'
)
GSM8K = {
  'question': 'How many?',
  'answer': 'She sells 16 - 3 = <<16-3=13>>13.\n#### 1,013',
}
MATH500 = {
  'problem': 'What?',
  'solution': 'It is $\\boxed{9}$.',
  'answer': '\\frac{1}{2}',
}


def words(answer, row):
  del row
  return len(answer.split())


@pytest.mark.parametrize(
  ('row', 'gold'),
  [
    (GSM8K, '1,013'),
    (MATH500, '\\frac{1}{2}'),
    ({'problem': 'What?', 'solution': 'So $\\boxed{\\frac{a}{b}}$.'},
     '\\frac{a}{b}'),
    ({'answer': 'We add.\nIt is \\boxed{7}.'}, '7'),
    ({'answer': 'Not #### 3.\n#### 4'}, '4'),
    ({'answer': 204}, '204'),
    ({'answer': 0.5}, '0.5'),
    ({'answer': 0}, '0'),
    ({'answer': 'We add.\nThen we stop.'}, None),
    ({'answer': 'We add.\n####  '}, None),
    ({'answer': ' '}, None),
    ({'answer': True}, None),
    ({'answer': float('nan')}, None),
    ({'answer': ['7'], 'solution': '\\boxed{7}'}, None),
    ({'solution': 'no box'}, None),
    ({'question': 'How many?'}, None),
    ('a plain prompt', None),
  ],
)  # fmt: skip
def test_the_right_answer_of_a_row(row, gold):
  assert rewards.gold(row) == gold


@needs_math_verify
@pytest.mark.parametrize(
  ('answer', 'row', 'worth'),
  [
    ('So \\boxed{1013}.', GSM8K, 1),
    ('#### 1013', GSM8K, 1),
    ('#### 13', GSM8K, 0),
    ('It scored 48 + 16 = <<48+16=64>>64 points.\n#### 1013', GSM8K, 1),
    ('It is \\boxed{1013}, no:\n#### 13', GSM8K, 0),
    ('\\boxed{13}', GSM8K, 0),
    ('', GSM8K, 0),
    ('It is $0.5$.', MATH500, 1),
    ('\\boxed{9}', MATH500, 0),
  ],
)
def test_maths(answer, row, worth):
  assert rewards.maths(answer, row) == worth


@pytest.mark.parametrize(
  ('answer', 'worth'),
  [
    ('So it is $\\boxed{\\frac{1}{2}}$.', 1),
    ('So \\[ \\boxed{12}. \\]\n', 1),
    ('**\\boxed{12}**', 1),
    ('&= \\boxed{6 - 5i}.\n\\end{align*}', 1),
    ('$r = \\boxed{10}\\%$.', 1),
    ('\\boxed{3}, no, \\boxed{5}', 1),
    ('We add.\n#### 1,234', 1),
    ('#### -$3.50', 1),
    ('\\boxed{12} is what I say.', 0),
    ('\\boxed{2} and {2}', 0),
    ('\\boxed{12', 0),
    ('\\boxed{ }', 0),
    ('#### 12\nOr not.', 0),
    ('####', 0),
    ('It is 12.', 0),
    ('', 0),
  ],
)
def test_format(answer, worth):
  assert rewards.answer_format(answer, {}) == worth


def test_an_answer_is_worth_the_weighted_sum():
  found = rewards.judge(
    (('format', 0.5), (words, -2.0)),
    ['a b c', '#### 12', ''],
    [{}, {}, {}],
  )
  np.testing.assert_allclose(found.rewards_B, [-6.0, -3.5, 0.0])
  assert {k: v.tolist() for k, v in found.parts.items()} == {
    'format': [0, 1, 0],
    'words': [3, 2, 0],
  }
  assert found.failures == {}


def test_a_reward_sees_the_row_of_its_prompt():
  def same(answer, row):
    return answer == row['wanted']

  rows = [{'wanted': 'a'}, {'wanted': 'b'}]
  found = rewards.judge(((same, 1.0),), ['a', 'a'], rows)
  assert found.rewards_B.tolist() == [1, 0]


def test_a_reward_that_fails_costs_the_answer_and_not_the_run():
  def fussy(answer, row):
    del row
    return float('nan') if answer == 'b' else {'a': 1.0}[answer]

  found = rewards.judge(((fussy, 1.0), (words, 1.0)), ['a', 'b', 'c'], [{}] * 3)
  assert found.rewards_B.tolist() == [2, 1, 1]
  assert found.failures == {'fussy': '2 of 3 (ValueError: it returned nan)'}
  with pytest.raises(me_jax.MeJaxError, match='fussy fails for every.*KeyErr'):
    rewards.judge(((fussy, 1.0),), ['c', 'd'], [{}] * 2)


@needs_math_verify
def test_a_row_without_a_right_answer_is_named():
  mathematical = (('maths', 1.0),)
  rewards.check_rows(mathematical, [GSM8K, MATH500])
  with pytest.raises(me_jax.MeJaxError, match=r"prompt 2 \('Why\?'\).*maths"):
    rewards.check_rows(mathematical, [GSM8K, {'question': 'Why?'}])
  with pytest.raises(me_jax.MeJaxError, match=r'a\.jsonl, line 8: .*maths'):
    rewards.check_rows(mathematical, [{'text': ''}], ['a.jsonl, line 8'])


def test_other_rewards_need_no_right_answer():
  rewards.check_rows((('format', 1.0), (words, 1.0)), [{}, 'a plain prompt'])


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ((('math', 1.0),), "no reward 'math'.*did you mean 'maths'"),
    ((), 'must be pairs'),
    ('maths', 'must be pairs'),
    (('maths', 1.0), 'must be a pair'),
    ((('maths',),), 'must be a pair'),
    (((3, 1.0),), 'neither a name nor a function'),
    ((('maths', float('nan')),), 'weight of the reward maths is nan'),
    ((('maths', '1'),), "weight of the reward maths is '1'"),
    ((('maths', True),), 'weight of the reward maths is True'),
    ((('maths', 1.0), ('maths', 0.5)), 'two rewards are called maths'),
    ((('maths', 0.0),), 'weight 0'),
  ],
)
def test_impossible_rewards_are_refused(given, message):
  with pytest.raises(me_jax.MeJaxError, match=message):
    rewards.check(given)


def test_possible_rewards_are_not():
  rewards.check((('maths', 1.0), ['format', 1], (words, -0.5)))
