"""Texts to choose on and texts to measure on, and that they are never shared."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest

import me_jax
from me_jax.mitigation import corpora
from tests.support import folder as folder_lib
from tests.support import planted

TEMPLATE = (
  '<bos>{% for m in messages %}{{ m.role[0] }} {{ m.content }}'
  '{% if m.role == "user" %}. {% endif %}{% endfor %}'
)


def chat(question, answer):
  return [
    {'role': 'user', 'content': question},
    {'role': 'assistant', 'content': answer},
  ]


def write(path, rows):
  path.parent.mkdir(exist_ok=True)
  if path.suffix == '.jsonl':
    rows = [json.dumps(row) for row in rows]
  path.write_text('\n'.join(rows), encoding='utf-8')


def pairs(start, count):
  return [
    {'question': f'q{i}', 'answer': f'a{i}'}
    for i in range(start, start + count)
  ]


def check_apart(found):
  for a, b in itertools.product(found, found):
    assert not any(text in b.held_out for text in a.calibration)


@pytest.fixture(scope='module', name='config')
def _config():
  return planted.build([])[0].config


@pytest.fixture(scope='module', name='tokenizer')
def _tokenizer():
  tokenizer = folder_lib.tokenizer()
  tokenizer.chat_template = TEMPLATE
  return tokenizer


def test_public_sets_under_their_usual_names(tmp_path):
  write(tmp_path / 'gsm8k' / 'train.jsonl', pairs(0, 5))
  write(tmp_path / 'gsm8k' / 'test.jsonl', pairs(5, 3))
  write(
    tmp_path / 'math500' / 'test.jsonl', [{'problem': 'p', 'solution': 's'}]
  )
  write(tmp_path / 'text' / 'c4_demo.jsonl', [{'text': c} for c in 'abcde'])
  long = [f'{i} ' * 120 for i in range(4)]
  write(
    tmp_path / 'wikitext2' / 'valid.txt', ['= Head =', *long[:2], '', *long[2:]]
  )
  # What is not known does not matter then.
  write(tmp_path / 'more.jsonl', ['x', 'y'])
  found = corpora.read(tmp_path)
  assert [(c.name, c.chat) for c in found] == [
    ('GSM8K', True), ('MATH-500', True), ('C4', False), ('WikiText-2', False),
  ]  # fmt: skip
  gsm8k, maths, c4, wikitext = found
  assert gsm8k.calibration == tuple(chat(f'q{i}', f'a{i}') for i in range(5))
  assert gsm8k.held_out == tuple(chat(f'q{i}', f'a{i}') for i in range(5, 8))
  assert maths.calibration == () and maths.held_out == (chat('p', 's'),)
  assert (c4.calibration, c4.held_out) == (('a', 'b'), ('c', 'd', 'e'))
  assert wikitext.calibration == tuple(long[:2])
  assert wikitext.held_out == tuple(long[2:])
  check_apart(found)


def test_a_set_without_a_part_to_choose_on_is_measured_on(tmp_path):
  write(tmp_path / 'gsm8k' / 'test.jsonl', pairs(0, 3))
  write(tmp_path / 'text' / 'c4_demo.jsonl', ['a', 'b'])
  gsm8k, _ = corpora.read(tmp_path)
  assert gsm8k.calibration == () and len(gsm8k.held_out) == 3


def test_other_files_are_halved(tmp_path):
  write(tmp_path / 'b.txt', ['one', 'two', 'three'])
  write(tmp_path / 'a.jsonl', [{'text': 'x'}, {'text': 'y'}])
  write(tmp_path / 'c.jsonl', pairs(0, 2))
  write(tmp_path / 'notes.md', ['no'])
  found = corpora.read(tmp_path)
  assert [(c.name, c.chat, c.calibration, c.held_out) for c in found] == [
    ('c', True, (chat('q0', 'a0'),), (chat('q1', 'a1'),)),
    ('a', False, ('x',), ('y',)),
    ('b', False, ('one',), ('two', 'three')),
  ]
  (alone,) = corpora.read(tmp_path / 'b.txt')
  assert alone == found[2]


def test_files_that_differ_in_the_ending_have_different_names(tmp_path):
  write(tmp_path / 'a.jsonl', ['x', 'y'])
  write(tmp_path / 'a.txt', ['one', 'two'])
  assert [c.name for c in corpora.read(tmp_path)] == ['a.jsonl', 'a.txt']


def test_a_file_of_another_kind_is_refused(tmp_path):
  write(tmp_path / 'a.csv', ['text,label', 'one,1', 'two,2'])
  with pytest.raises(me_jax.MeJaxError, match=r'from \.jsonl and \.txt files'):
    corpora.read(tmp_path / 'a.csv')


def test_a_text_is_never_on_both_sides(tmp_path):
  """Neither within a file nor between files; measuring comes first."""
  write(tmp_path / 'a.jsonl', ['x', 'y', 'z', 'x', 'v', 'w'])
  write(tmp_path / 'b.jsonl', ['v', 'u', 'y', 't'])
  write(tmp_path / 'c.jsonl', pairs(0, 2) + pairs(0, 1) + pairs(3, 1))
  found = corpora.read(tmp_path)
  c, a, b = found
  assert (a.calibration, a.held_out) == (('z',), ('x', 'v', 'w'))
  assert (b.calibration, b.held_out) == (('u',), ('y', 't'))
  assert c.calibration == (chat('q1', 'a1'),)
  check_apart(found)
  check_apart(corpora.builtin())


def test_chats_and_texts_of_one_file_are_two_corpora(tmp_path):
  write(tmp_path / 'x.jsonl', ['a', *pairs(0, 2), 'b', 'c'])
  found = corpora.read(tmp_path)
  assert [(c.name, c.chat, len(c.calibration)) for c in found] == [
    ('x chats', True, 1), ('x texts', False, 1),
  ]  # fmt: skip
  for corpus in found:
    for text in corpus.calibration + corpus.held_out:
      assert isinstance(text, list) == corpus.chat


def test_the_built_in_texts_are_split():
  found = corpora.builtin()
  assert [c.name for c in found] == ['built-in chats', 'built-in texts']
  assert [c.chat for c in found] == [True, False]
  assert sum(len(c.calibration + c.held_out) for c in found) == 24
  for corpus in found:
    assert len(corpus.calibration) - len(corpus.held_out) in (0, 1)


def test_nothing_to_choose_on_is_one_line(tmp_path):
  def refusal(path):
    with pytest.raises(me_jax.MeJaxError) as caught:
      corpora.read(path)
    assert '\n' not in str(caught.value)
    return str(caught.value)

  assert 'no such file or folder' in refusal(tmp_path / 'missing')
  assert 'holds nothing to choose a mask on' in refusal(tmp_path)
  write(tmp_path / 'one.txt', ['alone'])
  assert 'two different texts' in refusal(tmp_path)
  write(tmp_path / 'one.txt', ['alone', 'alone'])
  assert 'two different texts' in refusal(tmp_path / 'one.txt')
  write(tmp_path / 'one.txt', [''])
  assert 'is empty' in refusal(tmp_path)
  (tmp_path / 'one.txt').unlink()
  write(tmp_path / 'gsm8k' / 'train.jsonl', pairs(0, 3))
  assert 'beside gsm8k/test.jsonl' in refusal(tmp_path)


@pytest.mark.parametrize('template', [TEMPLATE, None])
@pytest.mark.parametrize('answer', ['hello', 'h', '7 and 8'])
def test_where_an_answer_starts(config, template, answer):
  tokenizer = folder_lib.tokenizer()
  tokenizer.chat_template = template
  ((ids, before),) = corpora.encode(
    tokenizer, config, [chat('how many', answer)], 5, 99
  )
  letters = tokenizer.convert_ids_to_tokens(ids)
  assert ''.join(letters[before:]) == answer
  assert ''.join(letters[:before]).endswith('a ' if template else '<unk> ')


def test_a_chat_without_an_answer_counts_whole(config, tokenizer):
  asked = chat('ab', 'c')[:1]
  ((ids, before),) = corpora.encode(tokenizer, config, [asked], 5, 99)
  assert before == 0 and ids[0] == planted.BOS
  ended = [*chat('ab', 'c'), {'role': 'user', 'content': 'd'}]
  ((_, before),) = corpora.encode(tokenizer, config, [ended], 5, 99)
  assert before == 0


def test_only_the_last_answer_counts(config, tokenizer):
  turns = chat('ab', 'cd') + chat('ef', 'gh')
  ((ids, before),) = corpora.encode(tokenizer, config, [turns], 5, 99)
  assert ''.join(tokenizer.convert_ids_to_tokens(ids[before:])) == 'gh'


def test_plain_texts_are_cut_and_chats_are_not(config, tokenizer):
  texts = ['a' * 30, 'bc', chat('q', 'd' * 30), chat('q', 'ef')]
  found = corpora.encode(tokenizer, config, texts, 9, 12)
  plain = tokenizer('a' * 12)['input_ids']
  assert [ids for ids, _ in found[:2]] == [plain, tokenizer('bc')['input_ids']]
  assert len(found) == 3 and found[2][1] > 0


def test_texts_beyond_the_context_are_no_error(config, tokenizer):
  short = dataclasses.replace(config, max_position_embeddings=16)
  texts = [chat('a' * 40, 'b'), 'c' * 40, chat('q', 'yes')]
  found = corpora.encode(tokenizer, short, texts, 9, 99)
  assert [len(ids) for ids, _ in found] == [16, 11]


def test_texts_with_nothing_to_predict_do_not_count(config, tokenizer):
  texts = ['a', chat('q', ''), 'bc', chat('q', 'd'), 'ef']
  found = corpora.encode(tokenizer, config, texts, 3, 99)
  last = [tokenizer.convert_ids_to_tokens(ids)[-1] for ids, _ in found]
  assert last == ['c', 'd', 'f']
