"""Which tokens do the sweeps run on? Massive ones, and ordinary ones beside.

A decoder is causal: the state of a massive token depends on the *prefix* alone,
the text up to and including it. Prefixes are short, often one token, and many
texts share one, so what is asked of massive tokens is asked of the distinct
prefixes. (Rotary embeddings that stretch with a text's own length, `dynamic` and
`longrope`, see a prefix as the short text that it is.)

Which prefixes and which ordinary tokens are taken depends on what the texts
are, never on their order.

Letters: B rows, T time, X prefixes, Y control texts, C chosen tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import hashlib

import numpy as np

from me_jax import errors
from me_jax.analysis import me_report
from me_jax.models import batch as batch_lib

MOST = 64  # prefixes
LONGEST = 64  # tokens of a prefix, if at least half are no longer
_MOST_TOKENS = 4096  # of all prefixes together, where most are longer
_CONTROL_TEXTS, _CONTROL_LENGTH, _CONTROLS_EACH = 16, 48, 8

Ids = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefixes:
  """Massive tokens with what precedes them, and ordinary tokens.

  Attributes:
    batch: `[X, T]`, a prefix a row, padded on the left: the massive token is
      the last of every row.
    texts_X: how many texts begin with each prefix.
    massive: whether these are massive tokens. Without any they are the first
      tokens of the texts, as everywhere in the report.
    distinct: how many prefixes there were.
    too_long: how many of them were left out because most are short.
    over_cap: how many of the others, because there are enough.
    ordinary: `[Y, T]`, the beginnings of some texts.
    positions_YC: ordinary tokens in them: not massive, nor first in a text.
    ordinary_YC: False where a row has fewer and the place is filled up.
  """

  batch: batch_lib.Batch
  texts_X: np.ndarray
  massive: bool
  distinct: int
  too_long: int
  over_cap: int
  ordinary: batch_lib.Batch
  positions_YC: np.ndarray
  ordinary_YC: np.ndarray


def select(
  batch: batch_lib.Batch,
  report: me_report.MEReport,
  *,
  most: int = MOST,
  longest: int = LONGEST,
) -> Prefixes:
  """Returns the distinct prefixes of a batch, and ordinary tokens.

  Args:
    batch: the texts that the report is about.
    report: of `find_me_layer`.
    most: how many prefixes are kept.
    longest: tokens of the longest prefix kept, unless more than half of the
      prefixes are longer: then there is no bound, but fewer are kept.

  Returns:
    The tokens; without massive ones, the texts' first tokens.

  Raises:
    MeJaxError: the report is about other texts.
  """
  texts = texts_of(batch, report)
  massive = bool((report.position_by_text >= 0).any())
  counts: dict[Ids, int] = {}
  for ids, position in zip(texts, report.position_by_text):
    if massive and position < 0:
      continue
    prefix = ids[: max(int(position), 0) + 1]
    counts[prefix] = counts.get(prefix, 0) + 1
  short = [prefix for prefix in counts if len(prefix) <= longest]
  if 2 * len(short) < len(counts):
    short = list(counts)
    most = min(most, max(1, _MOST_TOKENS // max(map(len, short))))
  kept = in_order(short)[:most]
  ordinary, positions_YC, ordinary_YC = _ordinary(texts, report)
  return Prefixes(
    batch=batch_lib.make_batch(kept, pad_side='left'),
    texts_X=np.array([counts[prefix] for prefix in kept]),
    massive=massive,
    distinct=len(counts),
    too_long=len(counts) - len(short),
    over_cap=len(short) - len(kept),
    ordinary=ordinary,
    positions_YC=positions_YC,
    ordinary_YC=ordinary_YC,
  )


def texts_of(batch: batch_lib.Batch, report: me_report.MEReport) -> list[Ids]:
  """Returns the token ids of each text of a report, in reading order.

  Raises:
    MeJaxError: the report is about other texts.
  """
  segments_BT = np.asarray(batch.segments_BT).astype(np.int32)
  tokens_BT = np.asarray(batch.tokens_BT)
  spans = batch_lib.text_spans(segments_BT)
  if len(spans.row) != len(report.position_by_text):
    raise errors.MeJaxError(
      f'the report is about {len(report.position_by_text)} texts, the batch '
      f'holds {len(spans.row)}: give the batch that find_me_layer got.'
    )
  return [
    tuple(tokens_BT[row, start : start + length].tolist())
    for row, start, length, _ in zip(*spans)
  ]


def in_order(texts: Sequence[Ids]) -> list[Ids]:
  """Returns the distinct texts in an order that only they decide."""
  return sorted(set(texts), key=lambda ids: (digest(ids), ids))


def digest(ids: Ids) -> int:
  """Returns a number that looks random and that the ids alone decide."""
  data = np.asarray(ids, np.int64).tobytes()
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'big')


def _ordinary(
  texts: Sequence[Ids], report: me_report.MEReport
) -> tuple[batch_lib.Batch, np.ndarray, np.ndarray]:
  """Spreads tokens over the beginnings of some texts."""
  # The same id at the same place is massive or not, whatever the text, in all
  # but odd cases; leaving out too many tokens does no harm.
  massive = {(token.position, token.token_id) for token in report.tokens}
  begun = in_order([ids[:_CONTROL_LENGTH] for ids in texts])
  allowed = {
    ids: [t for t in range(1, len(ids)) if (t, ids[t]) not in massive]
    for ids in begun
  }
  # Without any ordinary token something must still be run.
  rows = [ids for ids in begun if allowed[ids]][:_CONTROL_TEXTS] or begun[:1]
  positions_YC = np.zeros((len(rows), _CONTROLS_EACH), np.int32)
  ordinary_YC = np.zeros(positions_YC.shape, bool)
  for y, ids in enumerate(rows):
    places = np.array(allowed[ids], np.int32)
    count = min(len(places), _CONTROLS_EACH)
    evenly = (np.arange(count) + 0.5) * len(places) / max(count, 1)
    positions_YC[y, :count] = places[evenly.astype(int)]
    ordinary_YC[y, :count] = True
  return batch_lib.make_batch(rows), positions_YC, ordinary_YC
