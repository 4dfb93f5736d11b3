"""Which points of a long line are worth drawing?

A model of 8192 channels has more than a figure has dots. What a reader looks
for are the peaks, so those stay exact and as narrow as they are.

Letters: n points, m kept ones.
"""

from __future__ import annotations

import numpy as np


def peaks(value_n: np.ndarray, most: int) -> np.ndarray:
  """Chooses points that keep the shape of a line.

  Args:
    value_n: `[n]`, how tall each point is; NaN counts as nothing.
    most: how many to keep; at least 8.

  Returns:
    `[m]` ascending indices, m at most `most`: all if they are few; else both
    ends, the tallest of each of many blocks, and the neighbours of the very
    tallest, without which a spike would be drawn as wide as a block.
  """
  count = len(value_n)
  if count <= most:
    return np.arange(count)
  height_n = np.nan_to_num(value_n, nan=-np.inf, posinf=np.inf)
  spikes = most // 6
  size = -(-count // (most - 3 * spikes - 2))
  padded = np.full(-(-count // size) * size, -np.inf)
  padded[:count] = height_n
  tallest = padded.reshape(-1, size).argmax(axis=1)
  tallest = tallest + np.arange(len(tallest)) * size
  top = np.argpartition(-height_n, spikes)[:spikes] if spikes else tallest[:0]
  kept = np.concatenate([[0, count - 1], tallest, top - 1, top, top + 1])
  return np.unique(np.clip(kept, 0, count - 1))


def extremes(value_n: np.ndarray, most: int) -> np.ndarray:
  """Chooses points of a long curve, in which lows count as much as highs.

  Args:
    value_n: `[n]`, along the curve; NaN counts as nothing, but a stretch of
      nothing else keeps one, so that the gap is seen.
    most: how many to keep; at least 8.

  Returns:
    `[m]` ascending indices, m at most `most`: all if they are few; else both
    ends, and the lowest and the highest of each of many equal stretches.
  """
  count = len(value_n)
  if count <= most:
    return np.arange(count)
  kept = [np.array([0, count - 1])]
  for part in np.array_split(np.arange(count), (most - 2) // 2):
    value = value_n[part]
    if np.isnan(value).all():
      kept.append(part[:1])
    else:
      kept.append(part[[np.nanargmin(value), np.nanargmax(value)]])
  return np.unique(np.concatenate(kept))
