"""Control: gates on token 5 of every text, where nothing is massive.

  me-jax train --config=configs/smollm2_sft_gates_token5.py --data=DIR

All else is as in smollm2_sft_gates.py: 10,368 numbers after the emergence span.
The chat template begins all texts alike, so that a gate here scales a constant
as well, which trains as a prefix does. What the massive token's gates do beyond
that is the difference between the two runs.

Expected: GSM8K chats to 1.46 (30 rows), better than the massive token; their
answers alone to 1.21, a little worse.
"""

from __future__ import annotations

from me_jax.mitigation import gates
from me_jax.training import data as data_lib
from me_jax.training import public_sets
from me_jax.training import settings
from me_jax.training import trained


def config(data: str | None) -> settings.Run:
  """Returns the run; `data` is a folder with public sets, None for the hub."""
  gsm8k = public_sets.source(
    'gsm8k-train', data, rows=(None, public_sets.CHOOSING), weight=2.0
  )
  web = public_sets.source('c4', data, rows=(0, 50), weight=1.0)
  return settings.Run(
    model='smollm2',
    data=settings.Data(
      mix=data_lib.Mix(sources=(gsm8k, web)),
      # Two rows of GSM8K hold about six chats.
      length=640,
      batch=3,
      answers='whole',
    ),
    train=trained.Trained(
      parts=('gates',), gates=gates.Gates(layers='after', tokens=(5,))
    ),
    optim=settings.Optimizer(lr=0.2, schedule='cosine', end=0.05),
    steps=60,
    held_out=public_sets.maths_held_out(data),
    evaluation=settings.Evaluation(every=20, choose=True),
    monitor_every=30,
    checkpoint=settings.Checkpoint(every=20),
  )
