"""DPO with LoRA on pairs of answers: 2,442,240 numbers are trained.

  me-jax train --config=configs/smollm2_dpo.py --data=DIR

DIR holds preferences/dpo_en_demo.jsonl and text/c4_demo.jsonl; without --data
they come from the hub. Answers there are long: of pairs with more than 768
tokens, which are left out, the beginning of the run says how many there are.
First the model that is started from scores all pairs, once. What to look at
is the share of held-out pairs that are told, and that C4 stays where it was.
"""

from __future__ import annotations

from me_jax.training import data as data_lib
from me_jax.training import lora
from me_jax.training import public_sets
from me_jax.training import settings
from me_jax.training import trained

_HELD_OUT = 60  # pairs


def config(data: str | None) -> settings.Run:
  """Returns the run; `data` is a folder with public sets, None for the hub."""
  pairs = public_sets.source('preferences', data, rows=(None, -_HELD_OUT))
  return settings.Run(
    model='smollm2',
    method=settings.Dpo(beta=0.1),
    data=settings.Data(mix=data_lib.Mix(sources=(pairs,)), length=768, batch=2),
    train=trained.Trained(parts=('lora',), lora=lora.Lora(rank=8)),
    optim=settings.Optimizer(lr=5e-5, schedule='linear', warmup=0.1),
    epochs=1.0,
    held_out=(
      settings.HeldOut(
        name='pairs',
        kind='pairs',
        source=public_sets.source('preferences', data, rows=(-_HELD_OUT, None)),
      ),
      public_sets.web_held_out(data),
    ),
    evaluation=settings.Evaluation(every=20, length=768),
    monitor_every=20,
    checkpoint=settings.Checkpoint(every=20),
  )
