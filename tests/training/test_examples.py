"""Which tokens are learnt, and which rows are left out."""

from __future__ import annotations

import numpy as np
import pytest

import me_jax
from me_jax.training import examples
from me_jax.training import records
from tests.support import chats


@pytest.fixture(scope='module', name='config')
def _config():
  return chats.config()


def encode(config, kind, *rows, template=chats.TEMPLATE, length=99, **more):
  tokenizer = chats.tokenizer(template)
  found = examples.encode(
    tokenizer,
    config,
    [records.parse(kind, f'row {i}', row) for i, row in enumerate(rows, 1)],
    kind=kind,
    length=length,
    **more,
  )
  return found, lambda ids: ''.join(tokenizer.convert_ids_to_tokens(ids))


def marked(config, row, **more):
  """Returns a text with what is learnt in brackets."""
  found, spell = encode(config, 'texts', row, **more)
  (text,) = found.examples
  assert text.tokens_T.dtype == np.int32 and text.wanted_T.dtype == bool
  edges = np.flatnonzero(np.diff(text.wanted_T, prepend=False, append=False))
  cuts = [0, *edges, len(text.tokens_T)]
  pieces = [spell(text.tokens_T[a:b]) for a, b in zip(cuts, cuts[1:])]
  return ''.join(
    f'[{piece}]' if i % 2 else piece for i, piece in enumerate(pieces)
  )


def test_of_a_chat_the_last_answer_and_its_end_are_learnt(config):
  one = {'messages': chats.chat('ab', 'cd')}
  assert marked(config, one) == '<bos>u ab<end>.a [cd<end>].'
  two = {'messages': chats.chat('ab', 'cd', 'ef', 'cd')}
  assert marked(config, two) == (
    '<bos>u ab<end>.a cd<end>.u ef<end>.a [cd<end>].'
  )
  open_ = {'messages': chats.chat('ab', 'cd', 'ef')}
  assert marked(config, open_) == '<bos>u ab<end>.a [cd<end>].u ef<end>.'


def test_all_answers_are_learnt_on_request(config):
  two = {'messages': chats.chat('ab', 'cd', 'ef', 'gh')}
  assert marked(config, two, answers='all') == (
    '<bos>u ab<end>.a [cd<end>].u ef<end>.a [gh<end>].'
  )


def test_the_whole_chat_is_learnt_on_request(config):
  two = {'messages': chats.chat('ab', 'cd', 'ef', 'gh', 'ij')}
  text = '<bos>u ab<end>.a cd<end>.u ef<end>.a gh<end>.u ij<end>.'
  assert marked(config, two, answers='whole') == f'[{text}]'
  # The chat is the same text that has its answers learnt.
  found = marked(config, two, answers='all')
  assert found.replace('[', '').replace(']', '') == text


def test_without_a_template_a_whole_chat_ends_as_its_answer_does(config):
  one = {'messages': chats.chat('ab', 'cd')}
  last = marked(config, one, template=None)
  assert last.endswith('cd<eos>]')
  text = last.replace('[', '').replace(']', '')
  assert marked(config, one, template=None, answers='whole') == f'[{text}]'


def test_answers_are_last_all_or_whole(config):
  one = {'messages': chats.chat('ab', 'cd')}
  with pytest.raises(
    me_jax.MeJaxError, match="'some', must be one of last, al"
  ):
    encode(config, 'texts', one, answers='some')
  # Of a pair it is always the last answer: the prompt does not tell them.
  pair = {'prompt': 'ab', 'chosen': 'cd', 'rejected': 'e'}
  for answers in examples.ANSWERS:
    found, _ = encode(config, 'pairs', pair, answers=answers)
    assert [text.wanted_T.sum() for text in found.examples[0]] == [3, 2]


def test_of_a_plain_text_everything_is_learnt(config):
  assert marked(config, {'text': 'ab cd'}) == '[ab cd]'


def test_without_a_template_an_answer_still_ends(config):
  two = {'messages': chats.chat('ab', 'cd', 'ef', 'gh')}
  lines = 'user<unk> ab<unk>assistant<unk> {}<unk>user<unk> ef<unk>'
  assert marked(config, two, template=None) == (
    lines.format('cd') + 'assistant<unk> [gh<eos>]'
  )
  assert marked(config, two, template=None, answers='all') == (
    lines.format('[cd]') + 'assistant<unk> [gh<eos>]'
  )
  open_ = {'messages': chats.chat('ab', 'cd', 'ef')}
  assert marked(config, open_, template=None).endswith('ef')


def test_an_end_is_added_where_there_is_one_and_none_stands_yet(config):
  import tokenizers

  row = {'messages': chats.chat('ab', 'cd')}
  record = records.parse('texts', 'here', row)

  def end(tokenizer):
    found = examples.encode(
      tokenizer, config, [record], kind='texts', length=99
    )
    tokens_T, wanted_T = found.examples[0]
    return tokenizer.convert_ids_to_tokens(tokens_T[wanted_T])

  adds = chats.tokenizer(None)
  adds.backend_tokenizer.post_processor = (
    tokenizers.processors.TemplateProcessing(
      single='$A <eos>', special_tokens=[('<eos>', adds.eos_token_id)]
    )
  )
  assert end(adds) == ['c', 'd', '<eos>']
  none = chats.tokenizer(None)
  none.eos_token = None
  assert end(none) == ['c', 'd']


def test_a_pair_differs_in_what_is_learnt(config):
  turns = chats.chat('ab', 'cd', 'ef')
  row = {'prompt': turns, 'chosen': 'good', 'rejected': 'no'}
  # Whatever is learnt of texts.
  found, spell = encode(config, 'pairs', row, answers='all')
  ((chosen, rejected),) = found.examples
  assert spell(chosen.tokens_T[chosen.wanted_T]) == 'good<end>'
  assert spell(rejected.tokens_T[rejected.wanted_T]) == 'no<end>'
  starts = [text.wanted_T.argmax() for text in (chosen, rejected)]
  assert starts[0] == starts[1] > 0
  before = slice(starts[0])
  np.testing.assert_array_equal(
    chosen.tokens_T[before], rejected.tokens_T[before]
  )


def test_a_prompt_ends_where_its_answer_begins(config):
  rows = [{'question': 'ab', 'answer': '7'}, {'messages': chats.chat('c', 'd')}]
  found, spell = encode(config, 'prompts', *rows)
  assert [spell(prompt.tokens_T) for prompt in found.examples] == [
    '<bos>u ab<end>.a ', '<bos>u c<end>.a ',
  ]  # fmt: skip
  assert [prompt.row for prompt in found.examples] == rows


def test_without_a_template_a_prompt_is_taken_as_it_stands(config):
  found, spell = encode(config, 'prompts', 'q ab. a', template=None)
  assert spell(found.examples[0].tokens_T) == 'q ab. a'
  with pytest.raises(me_jax.MeJaxError, match='no chat template'):
    encode(config, 'prompts', {'messages': chats.chat('q')}, template=None)


def test_longer_rows_are_left_out_and_counted(config):
  rows = ['abc', 'abcdefgh', 'ab', 'abcd', 'a' * 300]
  found, spell = encode(config, 'texts', *rows, length=4)
  kept = [spell(text.tokens_T) for text in found.examples]
  assert kept == ['abc', 'ab', 'abcd']
  assert (found.left_out, found.longest) == (2, 300)
  prompts, _ = encode(config, 'prompts', 'a', 'b' * 300, length=20)
  assert (prompts.left_out, len(prompts.examples)) == (1, 1)


@pytest.mark.parametrize('longer', ['chosen', 'rejected'])
def test_of_a_pair_both_texts_must_fit(config, longer):
  fits = {'prompt': 'q', 'chosen': 'abcd', 'rejected': 'efgh'}
  rows = [fits, {**fits, longer: 'abcde'}]
  found, _ = encode(config, 'pairs', *rows, length=14)
  assert (found.left_out, found.longest) == (1, 15)


def test_bad_arguments_are_refused(config):
  for named, arguments in {
    'must be one of last, all': {'answers': 'first'},
    'rows of 1 tokens': {'length': 1},
    'context of 256': {'length': 257},
    r'no row fits into 2 tokens, the shortest has 3 \(see row 1\)': {
      'length': 2
    },
  }.items():
    with pytest.raises(me_jax.MeJaxError, match=named):
      encode(config, 'texts', 'abc', 'abcd', **arguments)
  with pytest.raises(me_jax.MeJaxError, match='there is no row'):
    encode(config, 'texts')
  with pytest.raises(me_jax.MeJaxError, match='no tokenizer'):
    examples.encode(None, config, [], kind='texts', length=9)


def test_a_row_that_cannot_be_encoded_is_named(config):
  with pytest.raises(me_jax.MeJaxError, match='^row 2: the chat template ref'):
    encode(
      config,
      'texts',
      {'messages': chats.chat('q', 'a')},
      {'messages': [{'role': 'tool', 'content': 'x'}, *chats.chat('q', 'a')]},
      template='{% if messages[0].role == "tool" %}{{ raise_exception("no") }}'
      '{% endif %}' + chats.TEMPLATE,
    )
  with pytest.raises(me_jax.MeJaxError, match='^row 1: the chat template leav'):
    encode(
      config, 'texts', {'messages': chats.chat('q', 'a')}, template='<bos>nil'
    )
  with pytest.raises(me_jax.MeJaxError, match='^row 2 cannot be turned'):
    encode(config, 'texts', 'fine', '\ud800')
