"""Tokenizers of folders give the ids that AutoTokenizer gives."""

from __future__ import annotations

import subprocess
import sys

import pytest
import transformers

from me_jax import errors
from me_jax.checkpoints import tokenizer

TEXTS = ['abc ab', '  a', 'é 1', '<s> a</s>', '', 'a\n\nb', '🎉']
SPECIAL = ['<unk>', '<s>', '</s>']
BYTES = [f'<0x{i:02X}>' for i in range(256)]
PIECES = ['▁', 'a', 'b', 'c', '▁a', 'ab', '▁ab', 'abc']
VOCABULARY = {t: i for i, t in enumerate(SPECIAL + BYTES + PIECES)}
MERGES = [('▁', 'a'), ('a', 'b'), ('▁a', 'b'), ('ab', 'c')]


@pytest.mark.parametrize(
  'options',
  [
    {'add_bos_token': True},
    {'add_bos_token': False},
    {'add_bos_token': True, 'add_eos_token': True},
  ],
  ids=str,
)
def test_ids_equal_autotokenizers(tmp_path, options):
  saved = transformers.LlamaTokenizer(
    vocab=VOCABULARY, merges=MERGES, **options
  )
  saved.chat_template = '{{ bos_token }}{{ messages[0].content }}'
  saved.save_pretrained(tmp_path)
  ours = tokenizer.load(str(tmp_path))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for text in TEXTS:
    assert (
      ours(text).input_ids == theirs(text).input_ids == saved(text).input_ids
    )
    assert ours.decode(ours(text).input_ids) == theirs.decode(
      ours(text).input_ids
    )
  chat = [{'role': 'user', 'content': 'abc'}]
  assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
  for name in ('bos_token_id', 'eos_token_id', 'pad_token_id', 'unk_token_id'):
    assert getattr(ours, name) == getattr(theirs, name)
  assert ours('a').input_ids[0] == 1 or not options['add_bos_token']


def test_a_folder_without_tokenizer(tmp_path):
  (tmp_path / 'tokenizer_config.json').write_text('{}')
  assert tokenizer.load(str(tmp_path)) is None


@pytest.mark.parametrize('text', ['', '{', '{}', '{"model": {}}'])
def test_a_broken_tokenizer_is_one_line(tmp_path, text):
  (tmp_path / 'tokenizer.json').write_text(text)
  with pytest.raises(errors.MeJaxError, match='cannot read the tokenizer'):
    tokenizer.load(str(tmp_path))


def test_loading_does_not_import_torch(tmp_path):
  transformers.LlamaTokenizer(vocab=VOCABULARY, merges=MERGES).save_pretrained(
    tmp_path
  )
  code = (
    'import sys; from me_jax.checkpoints import tokenizer;'
    'assert "transformers" not in sys.modules;'
    'tokenizer.load(sys.argv[1]); assert "torch" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=True)
