r"""The paper's GRPO: Qwen3-4B, all weights, WeMask in every forward pass.

On the 64 chips of a TPU v5e-64, from any machine with gcloud (every host of the
slice runs the same command, and they find each other):

  gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all \
    --command='cd me_jax && .venv/bin/me-jax train --config=configs/qwen3_4b_grpo.py \
    --out=/mnt/shared/qwen3_4b_grpo'

On one machine with 8 GPUs of 80 GB, and on the same under Slurm:

  me-jax train --config=configs/qwen3_4b_grpo.py \
    --mesh=fsdp=8 --set compute.parts=16
  srun --nodes=1 --ntasks=8 --gpus-per-node=8 \
    me-jax train --config=configs/qwen3_4b_grpo.py \
    --mesh=fsdp=8 --set compute.parts=16

--out must be a folder that all hosts share. --set mask.rate=0 is the
control, the same without the mask. The judge needs pip install 'me-jax[eval]'.
The paper's hyperparameters; for the number of steps, which we do not know, an
epoch stands. We have had no such machines: nothing of this was run as it stands
here.
"""

from __future__ import annotations

from me_jax.training import data as data_lib
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
    model='Qwen/Qwen3-4B',
    method=settings.Grpo(
      sampling=rollouts.Settings(
        answers=4, max_new_tokens=256, rewards=(('maths', 1.0),)
      ),
      kl=0.001,
    ),
    data=settings.Data(
      mix=data_lib.Mix(sources=(gsm8k,)), length=512, batch=256
    ),
    train=trained.Trained(parts=('full',)),
    mask=settings.Mask(rate=0.5),
    optim=settings.Optimizer(lr=1e-6, schedule='constant'),
    epochs=1.0,
    held_out=public_sets.maths_held_out(data, answers='last'),
    evaluation=settings.Evaluation(batch=64),
    # Master weights stay float32. 256 prompts with 4 answers are 1,024 rows.
    # Chunks as `me-jax plan` finds them good on 64 chips: few large products,
    # and scores of 100 MB at most.
    compute=settings.Compute(
      dtype='bfloat16',
      remat='full',
      parts=4,
      attention_chunk=256,
      vocabulary_chunk=16384,
    ),
    mesh=settings.Mesh(fsdp=64),
    checkpoint=settings.Checkpoint(every=10),
  )
