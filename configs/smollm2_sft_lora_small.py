"""Control: 10,368 numbers, as many as smollm2_sft_gates.py has, but of LoRA.

  me-jax train --config=configs/smollm2_sft_lora_small.py --data=DIR

Rank 1 on the output of attention (of single projections one of the two that do
best: Hu et al. 2021, arXiv 2106.09685, table 5), in every second layer after
the emergence span, which is the same number exactly. The learning rate is one
for LoRA; all else is as there.

Expected: GSM8K chats to 1.26 (30 rows), their answers alone to 0.96: better
than any gates.
"""

from __future__ import annotations

from me_jax.training import data as data_lib
from me_jax.training import lora
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
      parts=('lora',),
      lora=lora.Lora(
        rank=1, targets=('o_proj',), layers=tuple(range(12, 30, 2))
      ),
    ),
    optim=settings.Optimizer(lr=5e-3, schedule='cosine', end=0.05),
    steps=60,
    held_out=public_sets.maths_held_out(data),
    evaluation=settings.Evaluation(every=20, choose=True),
    monitor_every=30,
    checkpoint=settings.Checkpoint(every=20),
  )
