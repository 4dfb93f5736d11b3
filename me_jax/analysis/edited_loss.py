"""What does a model lose on some texts when it is edited?

Whole distinct texts, packed into rows, that one compiled function runs again and
again: with channels of chosen tokens set to given values in one layer's output,
or with other parameters.

Letters: X texts, B rows, T time, L layers, K channels, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.analysis import next_token
from me_jax.analysis import passes
from me_jax.analysis import prefixes
from me_jax.models import batch as batch_lib
from me_jax.models import decoder
from me_jax.models import sites

_ROW = 64  # row lengths are multiples of it, for fewer compiles
_PASS = 768  # tokens of a pass


class Scores(NamedTuple):
  """What a run gave.

  Attributes:
    loss_X: summed over each text's predicted tokens, nats.
    top_BT: the likeliest next token.
    channels_LBTK: values of the channels looked at, in every layer's output.
  """

  loss_X: np.ndarray
  top_BT: np.ndarray
  channels_LBTK: np.ndarray


@dataclasses.dataclass(frozen=True)
class _SetChannels:
  """Sets channels of some tokens in one layer's output.

  Operands: `edit_layer` int32, -1 for nowhere; `edit_channels` int32
  `[B, T, K]`, which channels of each token, -1 for none; `edit_values` float32
  `[K]`.
  """

  site: str = 'resid_post'

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Writes `[B, T, D]`."""
    operands = context.operands
    here = context.layer == operands['edit_layer']
    index_11D = jnp.arange(value.shape[-1])[None, None]
    for k in range(operands['edit_channels'].shape[-1]):
      channel_BT1 = operands['edit_channels'][..., k : k + 1]
      new = operands['edit_values'][k].astype(value.dtype)
      value = jnp.where(here & (channel_BT1 == index_11D), new, value)
    return value


@dataclasses.dataclass(frozen=True)
class _Channels:
  """The values of `operands['seen_channels']`: `[B, T, K]` float32."""

  site: str = 'resid_post'
  name: str = 'channels'

  def __call__(self, value: jax.Array, context: sites.SiteContext) -> jax.Array:
    """Reduces `[B, T, D]`."""
    return value[..., context.operands['seen_channels']].astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
  """Texts in rows, and the model that is run on them; see `lay_out`.

  Attributes:
    model: the decoder with its edit and its observer.
    batch: the texts, packed.
    rows: of a pass.
    spans: where the texts stand.
    ids: of each text, in reading order.
    counted_BT: after which tokens there is one to predict.
    channels_K: the channels that are looked at and, by default, set.
  """

  model: decoder.Decoder
  batch: batch_lib.Batch
  rows: int
  spans: batch_lib.TextSpans
  ids: tuple[prefixes.Ids, ...]
  counted_BT: np.ndarray
  channels_K: np.ndarray

  def per_text(self, values_BT: np.ndarray) -> np.ndarray:
    """Sums over each text's predicted tokens, `[X]` float64."""
    kept_BT = np.where(self.counted_BT, values_BT, 0).astype(np.float64)
    return np.array(
      [
        kept_BT[row, start : start + length].sum()
        for row, start, length, _ in zip(*self.spans)
      ]
    )

  def at(self, tokens_BT: np.ndarray) -> np.ndarray:
    """Returns `[B, T, K]`: the channels at the marked tokens, else -1."""
    return np.where(tokens_BT[..., None], self.channels_K[None, None], -1)

  def score(
    self,
    params: decoder.Params,
    *,
    layer: int = -1,
    channels_BTK: np.ndarray | None = None,
    values_K: np.ndarray | None = None,
  ) -> Scores:
    """Runs all texts.

    Args:
      params: of the model.
      layer: in whose output channels are set; -1 for none.
      channels_BTK: which channels of which tokens, -1 for none.
      values_K: what to; zero by default.

    Returns:
      The loss of each text, and what else was seen.
    """
    width = len(self.channels_K)
    if channels_BTK is None:
      channels_BTK = np.full((*self.batch.tokens_BT.shape, width), -1)
    if values_K is None:
      values_K = np.zeros(width)
    count = len(channels_BTK)
    found, seen = [], []
    for start in range(0, count, self.rows):
      piece = passes.take_rows(self.batch, start, self.rows)
      edited_BTK = channels_BTK[start : start + self.rows]
      missing = self.rows - len(edited_BTK)
      operands = {
        'edit_layer': np.int32(layer),
        'edit_channels': np.pad(
          edited_BTK.astype(np.int32),
          ((0, missing), (0, 0), (0, 0)),
          constant_values=-1,
        ),
        'edit_values': np.asarray(values_K, np.float32),
        'seen_channels': self.channels_K,
      }
      scores, observed = jax.device_get(
        next_token.score(self.model, params, *piece, operands)
      )
      found.append(scores)
      seen.append(observed['channels'])
    return Scores(
      self.per_text(np.concatenate([x['loss'] for x in found])[:count]),
      np.concatenate([x['top'] for x in found])[:count],
      np.concatenate(seen, axis=1)[:, :count],
    )


def lay_out(
  model: decoder.Decoder,
  texts: Sequence[prefixes.Ids],
  channels_K: np.ndarray,
) -> Texts:
  """Packs texts into rows, the long ones first.

  Args:
    model: its own edits and observers are replaced.
    texts: token ids; none empty.
    channels_K: which channels it is about.
  """
  length = max(2 * _ROW, max(map(len, texts)))
  batch = batch_lib.make_batch(
    sorted(texts, key=len, reverse=True),
    pack=True,
    length=-(-length // _ROW) * _ROW,
  )
  count, time = batch.tokens_BT.shape
  passes_needed = -(-count // max(1, _PASS // time))
  spans = batch_lib.text_spans(batch.segments_BT)
  return Texts(
    model=model.clone(
      sites=sites.Sites(observers=(_Channels(),), edits=(_SetChannels(),))
    ),
    batch=batch,
    # Passes of one size, with as little padding as can be.
    rows=-(-count // passes_needed),
    spans=spans,
    ids=tuple(
      tuple(batch.tokens_BT[row, start : start + length].tolist())
      for row, start, length, _ in zip(*spans)
    ),
    counted_BT=next_token.targets(batch, model.config.bos_token_id),
    channels_K=channels_K.astype(np.int32),
  )
