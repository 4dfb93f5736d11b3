"""How do texts become token ids in rows?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from me_jax import errors
from me_jax.checkpoints import load as load_lib
from me_jax.models import batch as batch_lib
from me_jax.models import config as config_lib

BOS = ('auto', 'always', 'never', 'both')


def encode(
  lm: load_lib.LoadedModel,
  texts: Sequence[str | list[dict[str, str]]],
  bos: str = 'auto',
  *,
  pack: bool = False,
  length: int | None = None,
  pad_side: str = 'right',
) -> batch_lib.Batch:
  """Turns texts into a batch.

  Args:
    lm: the model; its tokenizer and configuration are used.
    texts: strings, or chats as lists of `{'role': ..., 'content': ...}`. A
      chat goes through the tokenizer's template; without a template its
      messages are written out as `role: content` lines.
    bos: whether a text starts with the beginning-of-sequence token: `auto` as
      the tokenizer does, `always`, `never` (none is added; one that a chat
      template writes stays), or `both`, each text with and without.
    pack: several texts in a row where they fit, which changes their order.
    length: tokens of a row; by default the longest text.
    pad_side: where rows are filled up, `right` or `left`.

  Returns:
    The batch.

  Raises:
    MeJaxError: no tokenizer, an empty text, one longer than the context, a
      token outside the vocabulary, or no such token as BOS.

  Examples:
    >>> import me_jax
    >>> lm = me_jax.load('smollm2')
    >>> batch = me_jax.encode(lm, ['The quick brown fox', 'def f(x):'])
    >>> batch.segments_BT  # 0 is padding
    array([[1, 1, 1, 1, 0],
           [1, 1, 1, 1, 1]], dtype=int32)
    >>> me_jax.encode(
    ...   lm, ['Hello', 'def f(x):'], pack=True, length=8
    ... ).segments_BT
    array([[1, 2, 2, 2, 2, 2, 0, 0]], dtype=int32)
  """
  ids = token_ids(lm.tokenizer, lm.config, texts, bos)
  batch = batch_lib.make_batch(ids, pack=pack, length=length, pad_side=pad_side)
  return batch_lib.check_batch(lm.config, batch)


def token_ids(
  tokenizer: Any,
  config: config_lib.ModelConfig,
  texts: Sequence[str | list[dict[str, str]]],
  bos: str = 'auto',
  *,
  any_length: bool = False,
  names: Sequence[str] | None = None,
) -> list[list[int]]:
  """Returns the ids of each text; arguments and errors as in `encode`.

  With `any_length` texts that exceed the context are left to the caller.
  Errors call the texts by `names`, by default `prompt 1` and so on.
  """
  if bos not in BOS:
    raise errors.MeJaxError(
      f'bos is {bos!r}, must be one of {", ".join(BOS)}'
      f'{errors.nearest(str(bos), BOS)}.'
    )
  if tokenizer is None:
    raise errors.MeJaxError(
      'the checkpoint has no tokenizer: put its tokenizer.json beside it.'
    )
  if isinstance(texts, str) or not isinstance(texts, Sequence):
    raise errors.MeJaxError(
      f'encode takes a list of texts, not one {type(texts).__name__}.'
    )
  bos_id = tokenizer.bos_token_id
  if bos == 'always' and bos_id is None:
    raise errors.MeJaxError(
      "the tokenizer has no BOS token: bos='never' works."
    )
  result = []
  if names is None:
    names = [f'prompt {number}' for number in range(1, len(texts) + 1)]
  for name, text in zip(names, texts, strict=True):
    for ids in _variants(tokenizer, name, text, bos, bos_id):
      if not ids:
        raise errors.MeJaxError(f'{name} is empty: it has no tokens.')
      if len(ids) > config.context_length and not any_length:
        raise errors.MeJaxError(
          f'{name} has {len(ids)} tokens, more than the context of '
          f'{config.context_length}: shorten it.'
        )
      if max(ids) >= config.vocab_size:
        raise errors.MeJaxError(
          f"{name} has token id {max(ids)}, outside the model's "
          f'vocabulary of {config.vocab_size}: tokenizer and model differ.'
        )
      result.append(ids)
  if not result:
    raise errors.MeJaxError('there is no prompt.')
  return result


def chat_ids(
  tokenizer: Any,
  config: config_lib.ModelConfig,
  chat: list[dict[str, str]],
  *,
  any_length: bool = False,
  name: str = 'the chat',
) -> list[int]:
  """Returns the ids of a chat up to where the model's answer begins.

  Args:
    tokenizer: with a chat template.
    config: of the model.
    chat: messages with a role and content.
    any_length: whether a chat that exceeds the context is left to the caller.
    name: what errors call it.

  Raises:
    MeJaxError: the tokenizer has no chat template, or the template refuses.
  """
  if not tokenizer.chat_template:
    raise errors.MeJaxError('the tokenizer has no chat template.')
  try:
    written = tokenizer.apply_chat_template(
      chat, tokenize=False, add_generation_prompt=True
    )
  # Templates raise what they like.
  except Exception as error:
    raise errors.MeJaxError(
      f'{name}: the chat template refuses it: {error}'
    ) from error
  # The template has written BOS where the model wants it.
  return token_ids(
    tokenizer, config, [written], 'never', any_length=any_length, names=[name]
  )[0]


def spell(tokenizer: Any, token: int) -> str | None:
  """Returns a token as text, or the vocabulary's name for a part of one.

  None for an id that only the model has: vocabularies are padded.
  """
  text = tokenizer.decode([token])
  broken = not text or '\ufffd' in text
  return tokenizer.convert_ids_to_tokens(token) if broken else text


def _variants(
  tokenizer: Any,
  name: str,
  text: str | list[dict[str, str]],
  bos: str,
  bos_id: int | None,
) -> list[list[int]]:
  """Returns the ids of one text, with or without BOS, or both."""
  is_chat = isinstance(text, list)
  if not isinstance(text, str) and not (
    is_chat and all(isinstance(turn, dict) for turn in text)
  ):
    raise errors.MeJaxError(
      f'{name} is neither a string nor a chat; for token ids there is '
      'make_batch.'
    )
  if not text:
    return [[]]
  if is_chat and not all({'role', 'content'} <= turn.keys() for turn in text):
    raise errors.MeJaxError(
      f'{name} has a message without a role or without content.'
    )
  templated = is_chat and tokenizer.chat_template
  if templated:
    try:
      written = tokenizer.apply_chat_template(text, tokenize=False)
    # Templates raise what they like: a role they do not know, an odd order.
    except Exception as error:
      raise errors.MeJaxError(
        f'{name}: the chat template refuses it: {error}'
      ) from error
  elif is_chat:
    written = '\n'.join(f'{turn["role"]}: {turn["content"]}' for turn in text)
  else:
    written = text
  plain = _ids(tokenizer, name, written, special=False)
  starts = bool(plain) and bos_id is not None and plain[0] == bos_id
  with_bos = plain if starts or bos_id is None else [bos_id, *plain]
  if bos == 'always':
    return [with_bos]
  if bos == 'never':
    return [plain]
  if bos == 'both':
    return [plain] if plain == with_bos else [plain, with_bos]
  # A template writes BOS itself where the model wants it.
  if templated:
    return [plain]
  return [_ids(tokenizer, name, written, special=True)]


def _ids(tokenizer: Any, name: str, text: str, *, special: bool) -> list[int]:
  try:
    return tokenizer(text, add_special_tokens=special)['input_ids']
  # A text that is not Unicode is a TypeError, a tokenizer that lacks its own
  # unknown token a bare Exception.
  except Exception as error:
    raise errors.MeJaxError(
      f'{name} cannot be turned into tokens: {error}'
    ) from error
