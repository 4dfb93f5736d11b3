"""Which tokenizer do the metadata of a GGUF file describe?

It is built with the `tokenizers` library straight from the vocabulary, in
0.2 s for 49,000 tokens: as fast as reading a converted `tokenizer.json` back,
so nothing is cached. A pre-tokenizer that is not known here is refused: text
split the wrong way still tokenises, into tokens that the model never saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from me_jax import errors
from me_jax.checkpoints import gguf
from me_jax.checkpoints import tokenizer as tokenizer_lib

# Kinds of tokens in `tokenizer.ggml.token_type`.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_SPACE = '\u2581'

# How text is split before merging, as published in the tokenizer.json of the
# models that these are named after.
_ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r'\s*[\r\n]+|\s+(?!\S)|\s+'
_UPPER, _LOWER = r'\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}', r'\p{Ll}\p{Lm}\p{Lo}\p{M}'
_START = r'[^\r\n\p{L}\p{N}]?'
_LLAMA3 = (
  rf'{_ENGLISH}|{_START}\p{{L}}+|\p{{N}}{{1,3}}'
  rf'| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}'
)
_QWEN2 = (
  rf'{_ENGLISH}|{_START}\p{{L}}+|\p{{N}}'
  rf'| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}'
)
_TEKKEN = (
  rf'{_START}[{_UPPER}]*[{_LOWER}]+|{_START}[{_UPPER}]+[{_LOWER}]*'
  rf'|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}'
)
_GPT4O = (
  rf'{_START}[{_UPPER}]*[{_LOWER}]+{_ENGLISH}?'
  rf'|{_START}[{_UPPER}]+[{_LOWER}]*{_ENGLISH}?'
  rf'|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}'
)
# `tokenizer.ggml.pre`: a pattern, or how GPT-2's own split treats digits.
_PRE_TOKENIZERS = {
  'gpt-2': 'digits together',
  'smollm': 'digits apart',
  'starcoder': 'digits apart',
  'refact': 'digits apart',
  'llama-bpe': _LLAMA3,
  'llama3': _LLAMA3,
  'llama-v3': _LLAMA3,
  # Llama 3's vocabulary without BOS: SmolLM3.
  'smaug-bpe': _LLAMA3,
  # The vocabulary of GPT-4: OLMo 2 and Phi-4.
  'dbrx': _LLAMA3,
  # That of GPT-4o: Phi-4-mini.
  'gpt-4o': _GPT4O,
  'qwen2': _QWEN2,
  'deepseek-r1-qwen': _QWEN2,
  'tekken': _TEKKEN,
}
# BOS is the default.
_BOS = ('llama-bpe', 'llama3', 'llama-v3', 'tekken')
# Whole words in the vocabulary win over merges.
_WHOLE_WORDS = (*_BOS, 'smaug-bpe')
_GEMMA = ('gemma2', 'gemma3')
# Tokens of Phi-3 that do not swallow the spaces and newlines behind them.
_PHI3_PLAIN = ('<unk>', '<s>', '<|endoftext|>')


def build(file: gguf.GgufFile) -> Any:
  """Returns the tokenizer of a GGUF file.

  Args:
    file: as `gguf.open_file` returns it.

  Returns:
    A `transformers.PreTrainedTokenizerFast` with its chat template; None when
    the file holds no tokenizer.

  Raises:
    MeJaxError: a kind of tokenizer that is not known, or broken tables.
  """
  metadata = file.metadata
  kind = _value(file, 'ggml.model', str, 'none')
  if kind == 'none':
    return None
  builders = {'gpt2': _byte_level, 'llama': _sentencepiece}
  if kind not in builders:
    raise errors.MeJaxError(
      f'{file.path} has a tokenizer of kind {str(kind)[:40]!r}; supported:'
      f' {", ".join(builders)}. Load the model from its safetensors folder'
    )
  tokens = _strings(file, 'tokens')
  architecture = metadata.get('general.architecture')
  if kind == 'llama' and architecture in _GEMMA:
    tokens = [_respelled(token) for token in tokens]
  if len(set(tokens)) != len(tokens):
    raise errors.MeJaxError(f'{file.path}: a token appears twice')
  tokenizer_lib.quiet()
  from transformers import PreTrainedTokenizerFast

  tokenizer = builders[kind](file, tokens)
  stripping = kind == 'llama' and architecture == 'phi3'
  _add_special(tokenizer, metadata, tokens, stripping)
  named = {'bos': 'bos', 'eos': 'eos', 'unknown': 'unk', 'padding': 'pad'}
  special = {}
  for key, name in named.items():
    index = metadata.get(f'tokenizer.ggml.{key}_token_id')
    if type(index) is int and 0 <= index < len(tokens):
      special[f'{name}_token'] = tokens[index]
  # What llama.cpp does for files that do not say.
  bos = kind == 'llama' or _value(file, 'ggml.pre', str, '') in _BOS
  add_bos = _value(file, 'ggml.add_bos_token', bool, bos)
  add_eos = _value(file, 'ggml.add_eos_token', bool, False)
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    chat_template=_value(file, 'chat_template', str, '') or None,
    add_bos_token=add_bos and 'bos_token' in special,
    add_eos_token=add_eos and 'eos_token' in special,
    clean_up_tokenization_spaces=False,
    **special,
  )


def _byte_level(file: gguf.GgufFile, tokens: list[str]) -> Any:
  """Builds byte-level BPE, as GPT-2, Llama 3, Qwen and SmolLM use it."""
  import tokenizers
  from tokenizers import pre_tokenizers

  name = _value(file, 'ggml.pre', str, 'unstated')
  if name not in _PRE_TOKENIZERS:
    raise errors.MeJaxError(
      f'{file.path} splits text by the pre-tokenizer {str(name)[:40]!r}, which'
      f' is not known; these are: {", ".join(_PRE_TOKENIZERS)}. Load the'
      ' model from its safetensors folder'
    )
  # One that is no pair is refused with the vocabulary.
  merges: list[Any] = [
    tuple(merge.split(' ')) for merge in _strings(file, 'merges')
  ]
  tokenizer = _bpe(file, tokens, merges, ignore_merges=name in _WHOLE_WORDS)
  pattern = _PRE_TOKENIZERS[name]
  steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
  if pattern == 'digits apart':
    steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
  elif pattern != 'digits together':
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), 'isolated')
    bytes_only = pre_tokenizers.ByteLevel(
      add_prefix_space=False, use_regex=False
    )
    steps = [split, bytes_only]
  if pattern == _QWEN2:
    tokenizer.normalizer = tokenizers.normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  return tokenizer


def _sentencepiece(file: gguf.GgufFile, tokens: list[str]) -> Any:
  """Builds SentencePiece's BPE with byte fallback, as Llama 2 uses it."""
  from tokenizers import decoders
  from tokenizers import normalizers
  from tokenizers import pre_tokenizers

  architecture = file.metadata.get('general.architecture')
  scores = file.metadata.get('tokenizer.ggml.scores')
  if not isinstance(scores, np.ndarray) or len(scores) != len(tokens):
    raise errors.MeJaxError(f'{file.path}: tokenizer.ggml.scores is missing')
  # Gemma merges in the order of its vocabulary, whatever the scores say.
  ranks = range(0, -len(tokens), -1)
  ranks = ranks if architecture in _GEMMA else scores.tolist()
  merges = _merges_from_scores(tokens, ranks)
  tokenizer = _bpe(file, tokens, merges, fuse_unk=True, byte_fallback=True)
  prefix = _value(file, 'ggml.add_space_prefix', bool, True)
  if architecture == 'phi3':
    # Puts a space before every piece of text, even one that has its own.
    steps: list[Any] = [normalizers.Prepend(_SPACE)] if prefix else []
    steps.append(normalizers.Replace(' ', _SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
  else:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
      _SPACE, prepend_scheme='first' if prefix else 'never', split=False
    )
  steps = [
    decoders.Replace(_SPACE, ' '),
    decoders.ByteFallback(),
    decoders.Fuse(),
  ]
  if prefix:
    steps.append(decoders.Strip(' ', 1, 0))
  tokenizer.decoder = decoders.Sequence(steps)
  return tokenizer


def _respelled(token: str) -> str:
  """Undoes what the converter does to Gemma's runs of spaces."""
  return token if token.strip(' ') else token.replace(' ', _SPACE)


def _bpe(
  file: gguf.GgufFile,
  tokens: list[str],
  merges: list[tuple[str, str]],
  **options: bool,
) -> Any:
  import tokenizers

  vocabulary = {token: index for index, token in enumerate(tokens)}
  try:
    return tokenizers.Tokenizer(
      tokenizers.models.BPE(vocab=vocabulary, merges=merges, **options)
    )
  # The tokenizers library raises bare Exception on merges it cannot use.
  except Exception as error:
    raise errors.MeJaxError(
      f'{file.path}: tokenizer.ggml.merges does not fit the vocabulary:'
      f' {str(error)[:120]}'
    ) from error


def _merges_from_scores(
  tokens: list[str], scores: Sequence[float]
) -> list[tuple[str, str]]:
  """Returns the merges, best first, that a scored vocabulary implies.

  Every way to split a token into two others is a merge with that token's
  score. The order among equals is transformers' own (`generate_merges`).
  """
  index = {token: i for i, token in enumerate(tokens)}
  found = []
  for token, score in zip(tokens, scores, strict=True):
    splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
    known = [(a, b) for a, b in splits if a in index and b in index]
    known.sort(key=lambda pair: (index[pair[0]], index[pair[1]]))
    found += [(score, len(a), len(b), a, b) for a, b in known]
  found.sort(key=lambda merge: merge[:3], reverse=True)
  return [(a, b) for *_, a, b in found]


def _add_special(
  tokenizer: Any,
  metadata: Mapping[str, Any],
  tokens: list[str],
  stripping: bool,
) -> None:
  """Marks the tokens that are matched whole in any text.

  Args:
    tokenizer: to be changed.
    metadata: of the file.
    tokens: the vocabulary.
    stripping: whether they swallow spaces and newlines behind them, as Phi-3's
      do. No file says so; llama.cpp knows it by the model's name.
  """
  import tokenizers

  kinds = metadata.get('tokenizer.ggml.token_type')
  kinds = kinds.tolist() if isinstance(kinds, np.ndarray) else ()
  for kind, add in (
    (_CONTROL, tokenizer.add_special_tokens),
    (_USER_DEFINED, tokenizer.add_tokens),
  ):
    # Not strict: a short list leaves the rest of the vocabulary ordinary.
    chosen = [token for token, k in zip(tokens, kinds) if k == kind]
    add(
      [
        tokenizers.AddedToken(
          token,
          normalized=False,
          special=kind == _CONTROL,
          rstrip=stripping and token not in _PHI3_PLAIN,
        )
        for token in chosen
      ]
    )


def _value(file: gguf.GgufFile, key: str, kind: type, default: Any) -> Any:
  """Returns a value of one type, or the default where there is none."""
  value = file.metadata.get(f'tokenizer.{key}', default)
  if not isinstance(value, kind):
    raise errors.MeJaxError(
      f'{file.path}: tokenizer.{key} is no {kind.__name__}'
    )
  return value


def _strings(file: gguf.GgufFile, key: str) -> list[str]:
  value = file.metadata.get(f'tokenizer.ggml.{key}')
  if not isinstance(value, list) or not all(type(v) is str for v in value):
    raise errors.MeJaxError(f'{file.path}: tokenizer.ggml.{key} is missing')
  return value
