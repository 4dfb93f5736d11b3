r"""LoRA of rank 8 on all projections, on GSM8K: 2,442,240 numbers are trained.

  me-jax train --config=configs/smollm2_sft_lora.py --data=DIR

with the paper's mask fixed in every forward pass, to compare the two:

  me-jax train --config=configs/smollm2_sft_lora.py --data=DIR --set mask.rate=0.5 \
    --out=train/smollm2_sft_lora_wemask

Only the answers are learnt, from GSM8K alone; C4 shows what it costs. The
folder DIR is as in smollm2_sft_gates.py.

Expected, from shorter runs (20 steps of 2 rows, three seeds): held-out answers
of GSM8K fall from 1.43 to 0.93 nats a token, C4's texts by 0.02; with the mask to
0.94, and C4 as much.
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
    'gsm8k-train', data, rows=(None, public_sets.CHOOSING)
  )
  return settings.Run(
    model='smollm2',
    data=settings.Data(
      mix=data_lib.Mix(sources=(gsm8k,)), length=512, batch=2, answers='last'
    ),
    train=trained.Trained(parts=('lora',), lora=lora.Lora(rank=8)),
    optim=settings.Optimizer(lr=1e-3, schedule='cosine', end=0.1),
    steps=40,
    held_out=public_sets.maths_held_out(data, answers='last'),
    evaluation=settings.Evaluation(every=10),
    monitor_every=20,
    checkpoint=settings.Checkpoint(every=20),
  )
