"""Control: gates on the first token, in the layers before the emergence span.

  me-jax train --config=configs/smollm2_sft_gates_before.py --data=DIR

All else is as in smollm2_sft_gates.py. The first token is not massive there yet.
There are 11 such layers, hence fewer gates: 6,336 numbers.

Expected: GSM8K chats to 1.46 (30 rows), better than after the span; their
answers alone to 1.24, worse.
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
      parts=('gates',), gates=gates.Gates(layers='before', tokens='first')
    ),
    optim=settings.Optimizer(lr=0.2, schedule='cosine', end=0.05),
    steps=60,
    held_out=public_sets.maths_held_out(data),
    evaluation=settings.Evaluation(every=20, choose=True),
    monitor_every=30,
    checkpoint=settings.Checkpoint(every=20),
  )
