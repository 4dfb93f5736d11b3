"""Where are the public sets that our configurations learn from?

In a folder under their usual names, or on the hub.
"""

from __future__ import annotations

import os

from me_jax import errors
from me_jax.training import data as data_lib

# File below the folder, and dataset of the hub as `data.read` takes it.
_PLACES = {
  'gsm8k-train': ('gsm8k/train.jsonl', 'openai/gsm8k:main:train'),
  'gsm8k-test': ('gsm8k/test.jsonl', 'openai/gsm8k:main:test'),
  'math500': ('math500/test.jsonl', 'HuggingFaceH4/MATH-500:default:test'),
  'c4': ('text/c4_demo.jsonl', 'NeelNanda/c4-10k:default:train'),
  'preferences': (
    'preferences/dpo_en_demo.jsonl',
    'llamafactory/DPO-En-Zh-20k:en:train',
  ),
}


def source(
  name: str,
  folder: str | os.PathLike[str] | None,
  *,
  rows: tuple[int | None, int | None] | None = None,
  weight: float = 1.0,
) -> data_lib.Source:
  """Returns where the rows of a set are; reads nothing.

  Args:
    name: of the set.
    folder: that holds the file; None asks the hub.
    rows: see `data.Source`.
    weight: see `data.Source`.

  Raises:
    MeJaxError: there is no such set, or the file is missing.
  """
  if name not in _PLACES:
    raise errors.MeJaxError(
      f'there is no set {name!r}{errors.nearest(name, _PLACES)}; sets:'
      f' {", ".join(_PLACES)}.'
    )
  file, hub = _PLACES[name]
  place = hub
  if folder is not None:
    place = os.path.join(folder, file)
    if not os.path.isfile(place):
      raise errors.MeJaxError(
        f'{folder} lacks {file}: put the set there, or leave --data out to get'
        f' {hub} from the hub.'
      )
  return data_lib.Source(data=place, rows=rows, weight=weight)
