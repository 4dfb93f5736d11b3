"""Which values do the blocks of GGUF's commonest K-quants stand for?

The `gguf` package knows all types; for these three this is five times faster,
to the same bits. Nearly all that is left is one pass each for the conversion,
the scale and the offset. Blocks have 256 values in groups with a scale each;
their layout is ggml's (`ggml-common.h`, `dequantize_row_q4_K` and so on).

Letters: B blocks.
"""

from __future__ import annotations

import numpy as np

_LOW_NIBBLE, _SIX_BITS = 0x0F, 0x3F


def q4_k(raw: np.ndarray) -> np.ndarray:
  """Returns the values of Q4_K blocks, flat uint8 to flat float32.

  A block: two float16 scales, 12 bytes of 6-bit scales and offsets, and 128
  bytes of which each holds a value of two neighbouring groups of 32.
  """
  blocks = raw.reshape(-1, 144)
  values = _nibbles(blocks[:, 16:].reshape(-1, 4, 32))
  return _scale_with_offset(blocks, values)


def q5_k(raw: np.ndarray) -> np.ndarray:
  """Returns the values of Q5_K blocks; as Q4_K, with 32 bytes of fifth bits."""
  blocks = raw.reshape(-1, 176)
  values = _nibbles(blocks[:, 48:].reshape(-1, 4, 32))
  fifth = blocks[:, 16:48]
  groups = values.reshape(-1, 8, 32)
  for group in range(8):
    groups[:, group] |= ((fifth >> group) & 1) << 4
  return _scale_with_offset(blocks, values)


def q6_k(raw: np.ndarray) -> np.ndarray:
  """Returns the values of Q6_K blocks, flat uint8 to flat float32.

  A block: 128 bytes of low and 64 of high bits, 16 signed scales for groups of
  16 values, and a float16 scale.
  """
  blocks = raw.reshape(-1, 210)
  count = len(blocks)
  low = blocks[:, :128].reshape(count, 2, 64)
  high = blocks[:, 128:192].reshape(count, 2, 32)
  values = np.empty((count, 2, 2, 64), np.uint8)
  np.bitwise_and(low, _LOW_NIBBLE, out=values[:, :, 0])
  np.right_shift(low, 4, out=values[:, :, 1])
  quarters = values.reshape(count, 2, 4, 32)
  for quarter in range(4):
    quarters[:, :, quarter] |= ((high >> (2 * quarter)) & 3) << 4
  signed = values.reshape(-1, 16).view(np.int8)
  signed -= 32
  result = signed.astype(np.float32)
  with np.errstate(all='ignore'):
    scales = _half(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8)
    result *= scales.reshape(-1, 1)
  return result.reshape(-1)


def _nibbles(pairs: np.ndarray) -> np.ndarray:
  """Splits uint8 `[B, 4, 32]` into `[B, 4, 2, 32]`, low halves first."""
  values = np.empty((len(pairs), 4, 2, 32), np.uint8)
  np.bitwise_and(pairs, _LOW_NIBBLE, out=values[:, :, 0])
  np.right_shift(pairs, 4, out=values[:, :, 1])
  return values


def _scale_with_offset(blocks: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Returns values times their group's scale, less its offset."""
  first, second, rest = (blocks[:, at : at + 4] for at in (4, 8, 12))
  # Groups 4 to 7 have their low bits in `rest`, the high ones on top of 0 to 3.
  scales = np.concatenate(
    [first & _SIX_BITS, (rest & _LOW_NIBBLE) | ((first >> 2) & 0x30)], axis=1
  )
  offsets = np.concatenate(
    [second & _SIX_BITS, (rest >> 4) | ((second >> 2) & 0x30)], axis=1
  )
  result = values.reshape(-1, 32).astype(np.float32)
  with np.errstate(all='ignore'):
    result *= (_half(blocks[:, :2]) * scales).reshape(-1, 1)
    result -= (_half(blocks[:, 2:4]) * offsets).reshape(-1, 1)
  return result.reshape(-1)


def _half(raw: np.ndarray) -> np.ndarray:
  """Reads two bytes a row as float16; returns float32 `[B, 1]`."""
  return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


FAST = {'Q4_K': q4_k, 'Q5_K': q5_k, 'Q6_K': q6_k}
