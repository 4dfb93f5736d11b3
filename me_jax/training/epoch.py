"""Which rows of batches does one pass over a source make?

Rows are laid out before the first step, and their texts stay together: what
differs from epoch to epoch is the order of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import json
from typing import Any, cast

from me_jax.training import examples as examples_lib
from me_jax.training import packing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count:
  """What a source gives.

  Attributes:
    used: rows of its files that fit.
    left_out: rows of its files that are too long.
    longest: tokens of the longest of them all.
    rows: of batches that they make.
    filled: share of those that is not padding.
  """

  used: int
  left_out: int
  longest: int
  rows: int
  filled: float


def rows(source: examples_lib.Encoded, pack: bool) -> list[Any]:
  """Returns what each row of a batch is made of.

  Args:
    source: rows as token ids.
    pack: whether texts share a row where they fit; pairs and prompts never do.

  Returns:
    Of texts, tuples of those that share a row; pairs and prompts as they are.
  """
  if source.kind != 'texts':
    return list(source.examples)
  if not pack:
    return [(example,) for example in source.examples]
  texts = cast(Sequence[examples_lib.Example], source.examples)
  lengths = [len(text.tokens_T) for text in texts]
  return [
    tuple(source.examples[i] for i in row)
    for row in packing.plan(lengths, source.length)
  ]


def count(source: examples_lib.Encoded, made: int) -> Count:
  """Counts what a source gives, of which `made` rows were made."""
  room = source.length * made * (2 if source.kind == 'pairs' else 1)
  return Count(
    used=len(source.examples),
    left_out=source.left_out,
    longest=source.longest,
    rows=made,
    filled=sum(len(text.tokens_T) for text in _texts(source)) / room,
  )


def digest(source: examples_lib.Encoded) -> str:
  """Returns a name for the data: other tokens, masks or rows have another."""
  found = hashlib.blake2b(digest_size=16)
  for text in _texts(source):
    found.update(f'{len(text.tokens_T)}\n'.encode())
    found.update(text.tokens_T.tobytes())
    if isinstance(text, examples_lib.Prompt):
      row = json.dumps(text.row, sort_keys=True, default=str)
      found.update(row.encode())
    else:
      found.update(text.wanted_T.tobytes())
  return found.hexdigest()


def _texts(
  source: examples_lib.Encoded,
) -> Iterator[examples_lib.Example | examples_lib.Prompt]:
  """Yields every text, of pairs both."""
  for example in source.examples:
    if isinstance(example, examples_lib.Pair):
      yield from example
    else:
      yield example
