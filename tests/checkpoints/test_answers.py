"""Where an answer stands in a chat's tokens, under templates of many kinds."""

from __future__ import annotations

import dataclasses

import pytest

from me_jax.checkpoints import answers
from me_jax.checkpoints import encoding
from tests.support import folder as folder_lib
from tests.support import planted

# What follows an answer: ChatML, a space before the end (Llama 2), no end.
ENDS = ['<end>.', ' <end>', '']


def template(end):
  return (
    '<bos>{% for m in messages %}{{ m.role[0] }} {{ m.content | trim }}'
    f'{end}{{% endfor %}}'
  )


@pytest.fixture(name='config')
def _config():
  return planted.build([])[0].config


@pytest.fixture(name='tokenizer')
def _tokenizer():
  import transformers

  tokenizer = folder_lib.tokenizer()
  # Marked as special, but for no purpose: so are most ends of a turn.
  end = transformers.AddedToken('<end>', special=True, normalized=False)
  tokenizer.add_tokens([end])
  return tokenizer


def chat(*contents):
  roles = ('user', 'assistant') * len(contents)
  return [
    {'role': role, 'content': content} for role, content in zip(roles, contents)
  ]


def written(tokenizer, config, turns, turn):
  """Returns what is before an answer, the answer, and its end."""
  (ids,) = encoding.token_ids(tokenizer, config, [turns])
  start, stop = answers.span(tokenizer, config, turns, ids, turn)
  end = answers.through_end(tokenizer, ids, stop)
  pieces = (ids[:start], ids[start:stop], ids[stop:end])
  return [''.join(tokenizer.convert_ids_to_tokens(piece)) for piece in pieces]


@pytest.mark.parametrize('end', ENDS)
@pytest.mark.parametrize('answer', ['hello', 'h', ' b. ', 'a', 'x <end> y'])
def test_an_answer_and_its_end(config, tokenizer, end, answer):
  tokenizer.chat_template = template(end)
  before, said, ended = written(tokenizer, config, chat('ab', answer), 1)
  assert before == f'<bos>u ab{end}a '
  assert said == answer.strip()
  assert ended == end.removesuffix('.')


def test_any_answer_of_a_chat(config, tokenizer):
  tokenizer.chat_template = template('<end>.')
  turns = chat('ab', 'cd', 'ef', 'cd')
  before, said, ended = written(tokenizer, config, turns, 1)
  assert (before, said, ended) == ('<bos>u ab<end>.a ', 'cd', '<end>')
  before, said, ended = written(tokenizer, config, turns, 3)
  assert before.endswith('u ef<end>.a ') and (said, ended) == ('cd', '<end>')


def test_an_end_that_comes_after_other_words_is_not_the_answers(
  config, tokenizer
):
  # Only what a user says is ended.
  tokenizer.chat_template = (
    '{% for m in messages %}{{ m.content }}'
    '{% if m.role == "user" %}<end>{% endif %}{% endfor %}'
  )
  turns = chat('ab', 'cd', 'ef')
  assert written(tokenizer, config, turns, 1) == ['ab<end>', 'cd', '']


def test_a_token_that_is_only_added_is_no_end(config, tokenizer):
  tokenizer.add_tokens(['<tag>'])
  tokenizer.chat_template = template('<tag>')
  assert written(tokenizer, config, chat('ab', 'cd'), 1)[1:] == ['cd', '']


@pytest.mark.parametrize('also', [{}, {'bos_token': '<eos>'}])
def test_an_eos_token_is_an_end_whatever_else_it_is(config, tokenizer, also):
  tokenizer.add_special_tokens({'eos_token': '<eos>', **also})
  tokenizer.chat_template = template('<eos>')
  assert written(tokenizer, config, chat('ab', 'cd'), 1)[1:] == ['cd', '<eos>']


def test_a_start_is_no_end(config, tokenizer):
  tokenizer.chat_template = (
    '{% for m in messages %}<bos>{{ m.content }}{% endfor %}'
  )
  turns = chat('ab', 'cd', 'ef', 'gh')
  assert written(tokenizer, config, turns, 1) == ['<bos>ab<bos>', 'cd', '']


def test_letters_that_share_a_byte_are_told_apart(config):
  """A token of a byte is common to the answer and what it is compared with."""
  import tokenizers
  import transformers

  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocab = {letter: i for i, letter in enumerate(alphabet)}
  inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  inner.decoder = tokenizers.decoders.ByteLevel()
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner)
  config = dataclasses.replace(config, vocab_size=256)
  for answer in ('£5', '§', 'Д', 'ç', '£Ж', 'a', ' ç '):
    turns = chat('q', answer)
    (ids,) = encoding.token_ids(tokenizer, config, [turns])
    start, stop = answers.span(tokenizer, config, turns, ids, 1)
    assert tokenizer.decode(ids[start:stop]) == answer
