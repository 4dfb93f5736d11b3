"""Texts from a user's file: every kind of row, and what is refused."""

from __future__ import annotations

import json

import pytest

import me_jax
from me_jax.analysis import prompts

CHAT = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]


@pytest.fixture(name='read')
def _read(tmp_path):
  def read(*rows, name='x.jsonl'):
    path = tmp_path / name
    path.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    return prompts.read(path)

  return read


@pytest.mark.parametrize(
  ('question', 'answer'),
  [
    ('question', 'answer'),
    ('problem', 'solution'),
    ('prompt', 'response'),
    ('prompt', 'completion'),
    ('instruction', 'output'),
  ],
)
def test_a_pair_is_a_chat(read, question, answer):
  assert read({question: 'a', answer: 'b', 'level': 3}) == [CHAT]
  # Half a pair is none; a prompt without a response is a plain text.
  half = {question: 'a', answer: ' '}
  if question == 'prompt':
    assert read(half) == ['a']
  else:
    with pytest.raises(me_jax.MeJaxError, match='line 1: needs a text'):
      read(half)


def test_public_rows_as_they_are(read):
  maths = {'problem': 'a', 'solution': 'b', 'answer': '2', 'subject': 'x'}
  assert read(maths) == [CHAT]
  assert read({'instruction': 'a', 'input': '', 'output': 'b'}) == [CHAT]
  (chat,) = read({'instruction': 'Add.', 'input': '1, 2', 'output': '3'})
  assert chat[0] == {'role': 'user', 'content': 'Add.\n\n1, 2'}
  # Only an instruction has an input.
  assert read({'question': 'a', 'input': 'c', 'answer': 'b'}) == [CHAT]


def test_a_chat_in_either_notation(read):
  said = [{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b'}]
  for name in ('messages', 'conversations'):
    for chat in (said, CHAT):
      assert read({name: chat, 'text': 'no'}) == [CHAT]


def test_rows_in_order_and_which_key_wins(read):
  rows = [
    'plain',
    {'text': 'a text'},
    {'prompt': 'a prompt'},
    {'text': None, 'prompt': 'a prompt'},
    {'text': 'a text', 'prompt': 'a prompt'},
    {'messages': CHAT, 'text': 'no'},
    {'question': 'a', 'answer': 'b', 'text': 'no'},
  ]
  assert read(*rows) == [
    'plain', 'a text', 'a prompt', 'a prompt', 'a text', CHAT, CHAT,
  ]  # fmt: skip


def test_a_text_file_is_a_prompt_a_line(tmp_path):
  path = tmp_path / 'x.txt'
  path.write_text('one\n\n  \n{"text": "two"}\n')
  assert prompts.read(path) == ['one', '{"text": "two"}']


@pytest.mark.parametrize(
  'row',
  [
    {},
    {'text': '  '},
    {'text': 3},
    {'messages': []},
    {'messages': [{'role': 'user'}]},
    {'messages': 'a', 'text': 'b'},
    {'conversations': []},
    {'conversations': [{'from': 'stranger', 'value': 'a'}]},
    {'conversations': [{'from': ['gpt'], 'value': 'a'}]},
    {'conversations': [{'from': 'gpt'}]},
    {'question': 'a', 'answer': 2},
    [],
    7,
    None,
  ],
)
def test_a_row_without_text_is_named(read, row):
  with pytest.raises(me_jax.MeJaxError, match='line 2: needs a text') as caught:
    read('fine', row)
  assert '\n' not in str(caught.value)


def test_the_built_in_prompts_are_chats_and_texts():
  found = prompts.builtin()
  assert len(found) == 24
  assert {type(prompt) for prompt in found} == {str, list}
