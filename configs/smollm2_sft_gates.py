"""Gates after the emergence span, on GSM8K chats: 10,368 numbers are trained.

  me-jax train --config=configs/smollm2_sft_gates.py --data=DIR

DIR is a folder with gsm8k/train.jsonl, gsm8k/test.jsonl, math500/test.jsonl and
text/c4_demo.jsonl; without --data they come from the hub. A third of the rows
is text of the web, so that it keeps its loss, and of the steps that let it rise
by no more than 0.03 nats per token the best one on GSM8K is taken.

Expected, after six minutes on two cores: GSM8K chats 2.26 to 1.54 nats per
token, their answers alone 1.48 to 1.24, MATH-500 chats 1.84 to 1.43, C4 3.459
to 3.470.

A gain here says that gates are useful, not that they are so because they act on
the massive token: the controls, which differ in one thing each, are
smollm2_sft_gates_token5.py (another token), smollm2_sft_gates_before.py (other
layers) and smollm2_sft_lora_small.py (another kind of numbers, as many).
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
      parts=('gates',), gates=gates.Gates(layers='after', tokens='first')
    ),
    optim=settings.Optimizer(lr=0.2, schedule='cosine', end=0.05),
    steps=60,
    held_out=public_sets.maths_held_out(data),
    evaluation=settings.Evaluation(every=20, choose=True),
    monitor_every=30,
    checkpoint=settings.Checkpoint(every=20),
  )
