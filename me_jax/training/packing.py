"""How do texts share rows of one length?

Attention never crosses texts and positions restart in each, so texts that share
a row do not know of each other: packing saves padding and changes nothing else.

Letters: B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from me_jax import errors
from me_jax.training import examples as examples_lib


class Packed(NamedTuple):
  """Texts in rows, filled up on the right.

  Attributes:
    tokens_BT: int32 token ids; 0 in padding.
    segments_BT: int32; 0 is padding and 1, 2, ... are the texts of a row.
    wanted_BT: bool; the tokens that are learnt, each to be predicted from what
      is before it in its text. A text's first token may be among them, but has
      nothing to be predicted from.
  """

  # Arrays of numpy on the host, of JAX in a step, and shapes in a plan.
  tokens_BT: Any
  segments_BT: Any
  wanted_BT: Any


class PackedPairs(NamedTuple):
  """Pairs, one a row: row b of both answers the same prompt.

  Attributes:
    chosen: the prompts with the answers that are preferred.
    rejected: the prompts with the others.
  """

  chosen: Packed
  rejected: Packed


def plan(lengths: Sequence[int], length: int) -> list[tuple[int, ...]]:
  """Says which texts share a row.

  Best fit, decreasing: the longest text goes first, each into the row that it
  fills best, over all texts at once (Johnson et al., SIAM J. Comput. 3, 1974:
  at most 11/9 of the fewest rows, and a few more). As all rows are known before
  the first step, an epoch has a length and any step can be reached at once.

  Args:
    lengths: tokens of each text.
    length: of a row.

  Returns:
    The texts' indices, row by row.

  Raises:
    MeJaxError: a text is longer than a row.
  """
  if len(lengths) and max(lengths) > length:
    raise errors.MeJaxError(
      f'a text of {max(lengths)} tokens does not fit into a row of {length}.'
    )
  rows: list[list[int]] = []
  # Rows by how many tokens are free in them; bit n of `free` says that there is
  # one with n, so that the best fit is a shift away.
  by_room: dict[int, list[int]] = {}
  free = 0
  for text in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    size = int(lengths[text])
    fitting = free >> size
    if fitting:
      room = size + (fitting & -fitting).bit_length() - 1
      row = by_room[room].pop()
      if not by_room[room]:
        free ^= 1 << room
    else:
      room, row = length, len(rows)
      rows.append([])
    rows[row].append(text)
    by_room.setdefault(room - size, []).append(row)
    free |= 1 << (room - size)
  return [tuple(row) for row in rows]


def lay_out(
  rows: Sequence[Sequence[examples_lib.Example]], length: int
) -> Packed:
  """Writes texts into rows.

  Args:
    rows: the texts of each row.
    length: T.
  """
  shape = (len(rows), length)
  packed = Packed(
    np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool)
  )
  for b, row in enumerate(rows):
    at = 0
    for number, example in enumerate(row, 1):
      here = slice(at, at + len(example.tokens_T))
      packed.tokens_BT[b, here] = example.tokens_T
      packed.segments_BT[b, here] = number
      packed.wanted_BT[b, here] = example.wanted_T
      at = here.stop
  return packed


def lay_out_pairs(
  pairs: Sequence[examples_lib.Pair], length: int
) -> PackedPairs:
  """Writes pairs into rows, one text each; `length` is T."""
  return PackedPairs(
    lay_out([[pair.chosen] for pair in pairs], length),
    lay_out([[pair.rejected] for pair in pairs], length),
  )
