"""Gates after the emergence span, on GSM8K chats: 10,368 numbers are trained.

me-jax train --config=configs/smollm2_sft_gates.py --data=DIR
"""

from __future__ import annotations

from me_jax.mitigation import gates
from me_jax.training import data as data_lib
from me_jax.training import public_sets
from me_jax.training import settings
from me_jax.training import trained


def config(data: str | None) -> settings.Run:
  """Returns the run; `data` is a folder with public sets, None for the hub."""
  gsm8k = public_sets.source('gsm8k-train', data, rows=(None, -24), weight=2.0)
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
      parts=('gates',), gates=gates.Gates(layers='after', tokens='first')
    ),
    optim=settings.Optimizer(lr=0.05, schedule='cosine', end=0.1),
    steps=60,
    held_out=(
      settings.HeldOut(
        name='GSM8K (choosing)',
        source=public_sets.source('gsm8k-train', data, rows=(-24, None)),
        answers='whole',
      ),
      settings.HeldOut(
        name='C4 (choosing)',
        source=public_sets.source('c4', data, rows=(50, 70)),
        on_task=False,
        limit=0.03,
      ),
      settings.HeldOut(
        name='GSM8K',
        source=public_sets.source('gsm8k-test', data, rows=(0, 60)),
        answers='whole',
        report=True,
      ),
      settings.HeldOut(
        name='GSM8K, answers',
        source=public_sets.source('gsm8k-test', data, rows=(0, 60)),
        report=True,
      ),
      settings.HeldOut(
        name='MATH-500',
        source=public_sets.source('math500', data, rows=(0, 60)),
        answers='whole',
        report=True,
      ),
      settings.HeldOut(
        name='C4',
        source=public_sets.source('c4', data, rows=(70, 150)),
        on_task=False,
        limit=0.03,
        report=True,
      ),
    ),
    evaluation=settings.Evaluation(every=15, choose=True),
    monitor_every=30,
    checkpoint=settings.Checkpoint(every=20),
  )
