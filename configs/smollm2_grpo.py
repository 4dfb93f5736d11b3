"""GRPO with LoRA on GSM8K's questions: 2,442,240 numbers are trained.

  me-jax train --config=configs/smollm2_grpo.py --data=DIR

Four answers to each question are drawn, judged (is the result right; is it
marked as the result) and compared with each other. The answers are short and
the steps few, so that a laptop gets through; a model of this size seldom finds
a result, and hence mostly learns to mark one. The folder DIR is as in
smollm2_sft_gates.py; the judge needs pip install 'me-jax[eval]'.
"""

from __future__ import annotations

from me_jax.training import data as data_lib
from me_jax.training import lora
from me_jax.training import public_sets
from me_jax.training import rollouts
from me_jax.training import settings
from me_jax.training import trained


def config(data: str | None) -> settings.Run:
  """Returns the run; `data` is a folder with public sets, None for the hub."""
  gsm8k = public_sets.source(
    'gsm8k-train', data, rows=(None, public_sets.CHOOSING)
  )
  return settings.Run(
    model='smollm2',
    method=settings.Grpo(
      sampling=rollouts.Settings(
        answers=4,
        max_new_tokens=96,
        rewards=(('maths', 1.0), ('format', 0.2)),
      ),
      kl=0.04,
    ),
    # Questions have at most 224 tokens, 94 % of them at most 128.
    data=settings.Data(mix=data_lib.Mix(sources=(gsm8k,)), length=128, batch=4),
    train=trained.Trained(parts=('lora',), lora=lora.Lora(rank=8)),
    optim=settings.Optimizer(lr=1e-4, schedule='constant'),
    steps=12,
    held_out=public_sets.maths_held_out(data, answers='last'),
    monitor_every=6,
    checkpoint=settings.Checkpoint(every=4),
  )
