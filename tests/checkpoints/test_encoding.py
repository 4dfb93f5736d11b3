"""Texts to token ids: BOS, chats, and what is refused."""

from __future__ import annotations

import pytest

import me_jax
from me_jax.checkpoints import encoding
from tests.support import folder as folder_lib
from tests.support import planted


@pytest.fixture(name='lm')
def _lm(tmp_path):
  model, params = planted.build([])
  return me_jax.load(str(folder_lib.write(model, params, tmp_path)))


def ids(lm, texts, bos):
  return encoding.token_ids(lm.tokenizer, lm.config, texts, bos)


def test_bos_is_added_as_asked(lm):
  plain = lm.tokenizer('abc')['input_ids']
  assert plain[0] != planted.BOS
  assert ids(lm, ['abc'], 'auto') == ids(lm, ['abc'], 'never') == [plain]
  assert ids(lm, ['abc'], 'always') == [[planted.BOS, *plain]]
  assert ids(lm, ['abc'], 'both') == [plain, [planted.BOS, *plain]]


def test_a_text_that_starts_with_bos_gets_no_second_one(lm):
  lm.tokenizer.chat_template = (
    '<bos>{% for m in messages %}{{ m["content"] }}{% endfor %}'
  )
  chat = [{'role': 'user', 'content': 'abc'}]
  (found,) = ids(lm, [chat], 'always')
  assert found.count(planted.BOS) == 1 and found[0] == planted.BOS
  assert ids(lm, [chat], 'both') == [found] == ids(lm, [chat], 'never')


def test_without_a_template_a_chat_is_written_out(lm):
  chat = [{'role': 'user', 'content': 'abc'}]
  assert ids(lm, [chat], 'never') == ids(lm, ['user: abc'], 'never')


def test_without_a_bos_token_only_always_is_refused(lm):
  lm.tokenizer.bos_token = None
  assert len(ids(lm, ['abc'], 'both')) == 1
  with pytest.raises(me_jax.MeJaxError, match='no BOS token'):
    ids(lm, ['abc'], 'always')


def test_bad_texts_are_refused(lm):
  for texts, bos, named in (
    ([], 'auto', 'no prompt'),
    (['abc', ''], 'never', 'prompt 2 is empty'),
    (['a' * 300], 'auto', 'context of 256'),
    ('abc', 'auto', 'list of texts'),
    (['abc'], 'sometimes', 'must be one of'),
  ):
    with pytest.raises(me_jax.MeJaxError, match=named):
      ids(lm, texts, bos)
  with pytest.raises(me_jax.MeJaxError, match='no tokenizer'):
    me_jax.encode(lm._replace(tokenizer=None), ['abc'])
  lm.tokenizer.chat_template = '{{ raise_exception("roles must alternate") }}'
  with pytest.raises(me_jax.MeJaxError, match='prompt 1.*roles must alternate'):
    ids(lm, [[{'role': 'user', 'content': 'a'}]], 'auto')


def test_encode_lays_out_rows(lm):
  batch = me_jax.encode(lm, ['abc', 'a'], bos='always', pad_side='left')
  assert batch.segments_BT.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize('texts', [None, 3, [1], [None], [[{'role': 'user'}]]])
def test_what_is_no_text_is_refused(lm, texts):
  with pytest.raises(me_jax.MeJaxError):
    me_jax.encode(lm, texts)
