"""Rows of each kind of training data, and rows that are refused."""

from __future__ import annotations

import pytest

import me_jax
from me_jax.training import records
from tests.support import chats

ASKED = chats.chat('q')
GOOD, BAD = chats.chat('q', 'g'), chats.chat('q', 'b')
# In the notation that LLaMA-Factory's preference data have.
FROM = {'from': 'human', 'value': 'q'}


def texts(kind, row):
  found = records.parse(kind, 'here', row)
  assert found.where == 'here' and found.row == row
  return found.texts


@pytest.mark.parametrize(
  'row',
  [
    {'messages': GOOD},
    {'conversations': [FROM, {'from': 'gpt', 'value': 'g'}]},
    {'question': 'q', 'answer': 'g'},
    {'prompt': 'q', 'completion': 'g'},
    {'instruction': 'q', 'input': '', 'output': 'g'},
  ],
)
def test_a_chat_is_learnt(row):
  assert texts('texts', row) == (GOOD,)


def test_a_plain_text_is_learnt():
  assert texts('texts', 'words') == texts('texts', {'text': 'words'})
  assert texts('texts', 'words') == ('words',)


@pytest.mark.parametrize(
  'row',
  [
    {'prompt': 'q', 'answered': 'under another name'},
    {'messages': ASKED},
    {'messages': chats.chat('q', ' ')},
    {'messages': [{'role': 'user'}]},
    {'question': 'q', 'answer': ''},
    {'text': ' '},
    {},
    '  ',
    None,
    [1],
  ],
)
def test_what_holds_nothing_to_learn_is_refused(row):
  with pytest.raises(me_jax.MeJaxError, match='^a.jsonl, line 3: needs "text"'):
    records.parse('texts', 'a.jsonl, line 3', row)


@pytest.mark.parametrize(
  'row',
  [
    {'prompt': 'q', 'chosen': 'g', 'rejected': 'b'},
    {'prompt': ASKED, 'chosen': 'g', 'rejected': 'b'},
    {'question': 'q', 'chosen': 'g', 'rejected': 'b'},
    {'messages': ASKED, 'chosen': GOOD[-1], 'rejected': BAD[-1]},
    {
      'conversations': [FROM],
      'chosen': {'from': 'gpt', 'value': 'g'},
      'rejected': {'from': 'gpt', 'value': 'b'},
    },
    {'prompt': ASKED, 'chosen': GOOD[-1:], 'rejected': BAD[-1:]},
    # The prompt is in both already.
    {'prompt': 'q', 'chosen': GOOD, 'rejected': BAD},
    {'messages': GOOD, 'chosen': GOOD, 'rejected': BAD},
    {'chosen': GOOD, 'rejected': BAD},
  ],
)
def test_a_pair_shares_its_prompt(row):
  assert texts('pairs', row) == (GOOD, BAD)


@pytest.mark.parametrize(
  'row',
  [
    {'prompt': 'q', 'chosen': 'g'},
    {'prompt': 'q', 'chosen': 'g', 'rejected': ' '},
    {'prompt': 'q', 'chosen': 'g', 'rejected': 7},
    {'chosen': 'g', 'rejected': 'b'},
    {'prompt': ' ', 'chosen': 'g', 'rejected': 'b'},
    {'prompt': [], 'chosen': 'g', 'rejected': 'b'},
    {'messages': GOOD, 'chosen': 'g', 'rejected': 'b'},
    {'prompt': 'q', 'chosen': GOOD, 'rejected': 'b'},
    {'prompt': 'q', 'chosen': GOOD, 'rejected': chats.chat('other', 'b')},
    {'prompt': 'q', 'chosen': ASKED, 'rejected': ASKED},
    {'chosen': [*GOOD, *ASKED], 'rejected': [*GOOD, *ASKED]},
    'g',
    None,
  ],
)
def test_what_is_no_pair_is_refused(row):
  with pytest.raises(me_jax.MeJaxError, match='line 3: needs a "prompt"'):
    records.parse('pairs', 'a.jsonl, line 3', row)


@pytest.mark.parametrize(
  ('row', 'prompt'),
  [
    ('q', 'q'),
    ({'prompt': 'q', 'response': 'g'}, 'q'),
    ({'problem': 'q', 'answer': '7'}, 'q'),
    ({'question': 'q', 'answer': 'g'}, 'q'),
    ({'instruction': 'q', 'input': 'z'}, 'q\n\nz'),
    ({'prompt': ASKED}, ASKED),
    ({'messages': GOOD}, ASKED),
    ({'messages': chats.chat('q', 'g', 'r')}, chats.chat('q', 'g', 'r')),
    ({'conversations': [FROM]}, ASKED),
  ],
)
def test_a_prompt_comes_without_its_answer(row, prompt):
  assert texts('prompts', row) == (prompt,)


@pytest.mark.parametrize(
  'row',
  [
    {'text': 'q'},
    {'answer': 'g'},
    {'messages': GOOD[1:]},
    {'messages': 'q', 'prompt': 'q'},
    {'prompt': []},
    ' ',
    3,
  ],
)
def test_what_asks_nothing_is_refused(row):
  with pytest.raises(me_jax.MeJaxError, match='line 3: needs "prompt"'):
    records.parse('prompts', 'a.jsonl, line 3', row)


def test_a_kind_that_does_not_exist_is_refused():
  with pytest.raises(me_jax.MeJaxError, match="did you mean 'pairs'"):
    records.parse('pair', 'here', {})
