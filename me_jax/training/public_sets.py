"""Where are the public sets that our configurations learn from?

In a folder under their usual names, or on the hub. What is held out of maths,
and of the web to see what it costs there, is the same for all of them.
"""

from __future__ import annotations

import os

from me_jax import errors
from me_jax.training import data as data_lib
from me_jax.training import settings

# Of GSM8K's training rows those that no configuration learns from.
CHOOSING = -24
_LIMIT = 0.03  # nats per token that the loss on the web may rise

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


def maths_held_out(
  folder: str | os.PathLike[str] | None, *, answers: str = 'whole'
) -> tuple[settings.HeldOut, ...]:
  """Returns the sets that runs on GSM8K are measured on; reads nothing.

  Two of them may choose a step; the others are for the report alone, and on
  rows that neither training nor choosing has seen. Of C4, rows from 50 on.

  Args:
    folder: see `source`.
    answers: which tokens of the chats that may choose count, as in
      `settings.Data`.
  """
  held_out = settings.HeldOut
  test = source('gsm8k-test', folder, rows=(0, 60))
  return (
    held_out(
      name='GSM8K (choosing)',
      source=source('gsm8k-train', folder, rows=(CHOOSING, None)),
      answers=answers,
    ),
    held_out(
      name='C4 (choosing)',
      source=source('c4', folder, rows=(50, 70)),
      on_task=False,
      limit=_LIMIT,
    ),
    held_out(name='GSM8K', source=test, answers='whole', report=True),
    held_out(name='GSM8K, answers', source=test, report=True),
    held_out(
      name='MATH-500',
      source=source('math500', folder, rows=(0, 60)),
      answers='whole',
      report=True,
    ),
    web_held_out(folder),
  )


def web_held_out(
  folder: str | os.PathLike[str] | None,
) -> settings.HeldOut:
  """Returns the set that says what training costs elsewhere; reads nothing."""
  return settings.HeldOut(
    name='C4',
    source=source('c4', folder, rows=(70, 150)),
    on_task=False,
    limit=_LIMIT,
    report=True,
  )
