"""Which tokens of a chat are an answer, and with which token does it end?

Templates write what they like around a message, so nothing is assumed of them:
an answer is where the same chat with another answer differs.
"""

from __future__ import annotations

from collections.abc import Sequence
import itertools
from typing import Any

from me_jax.checkpoints import encoding
from me_jax.models import config as config_lib

# Other answers. Not a space or newline: tokenizers join those to what a
# template writes before an answer. Tokens may be single bytes, so one is taken
# whose first and last differ from the answer's; of three there always is one.
_OTHERS = ('§', 'Ж', 'あ')


def span(
  tokenizer: Any,
  config: config_lib.ModelConfig,
  chat: Sequence[dict[str, str]],
  ids: Sequence[int],
  turn: int,
) -> tuple[int, int]:
  """Returns where the content of a message starts and stops among tokens.

  Args:
    tokenizer: of the model.
    config: of the model.
    chat: messages with a role and content.
    ids: the chat as `encoding.token_ids` gives it.
    turn: index of the message.

  Raises:
    MeJaxError: as `encoding.token_ids` does, whatever the chat's length.
  """
  content = chat[turn]['content'].strip().encode(errors='replace')
  other = next(
    letter
    for letter in _OTHERS
    if letter.encode()[:1] != content[:1]
    and letter.encode()[-1:] != content[-1:]
  )
  changed = [*chat]
  changed[turn] = {**chat[turn], 'content': other}
  (others,) = encoding.token_ids(tokenizer, config, [changed], any_length=True)
  start = _common(ids, others)
  after = _common(ids[start:][::-1], others[start:][::-1])
  return start, len(ids) - after


def through_end(tokenizer: Any, ids: Sequence[int], stop: int) -> int:
  """Returns where an answer stops with the token that ends it.

  Args:
    tokenizer: of the model.
    ids: of the chat.
    stop: where the answer's content stops.

  Returns:
    The index after the special token that follows the content, with nothing
    but blanks between; `stop` where a template writes none.
  """
  ends = _special(tokenizer)
  at = next((i for i in range(stop, len(ids)) if ids[i] in ends), None)
  if at is None or tokenizer.decode(ids[stop:at]).strip():
    return stop
  return at + 1


def _common(a: Sequence[int], b: Sequence[int]) -> int:
  """Returns how many tokens two sequences start with alike."""
  alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b))
  return sum(1 for _ in alike)


def _special(tokenizer: Any) -> set[int]:
  """Returns the tokens that may end a message: EOS, and ends of a turn.

  The latter need not be named for a purpose, but are marked as special.
  """
  added = tokenizer.added_tokens_decoder
  marked = {token for token, entry in added.items() if entry.special}
  never = {tokenizer.unk_token_id, tokenizer.bos_token_id}
  # GPT-2 has one token for all three.
  return marked - (never - {tokenizer.eos_token_id})
