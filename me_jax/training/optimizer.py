"""By how much does a step change what is trained?"""

from __future__ import annotations

from typing import Any

from me_jax.training import settings as settings_lib
from me_jax.training import trained as trained_lib


def make(optim: settings_lib.Optimizer, steps: int) -> Any:
  """Returns AdamW with its schedule and clipping, for optax's interface.

  Args:
    optim: the settings.
    steps: of the whole run.
  """
  import optax

  parts = [] if not optim.clip else [optax.clip_by_global_norm(optim.clip)]
  adamw = optax.adamw(
    schedule(optim, steps),
    b1=optim.b1,
    b2=optim.b2,
    eps=optim.eps,
    weight_decay=optim.weight_decay,
    mask=trained_lib.decay_mask,
  )
  return optax.chain(*parts, adamw)


def schedule(optim: settings_lib.Optimizer, steps: int) -> Any:
  """Returns the learning rate as a function of the steps that are done.

  It is `lr` at the end of the warm-up and reaches `end` after the last step.
  """
  import optax

  warmup = round(optim.warmup * steps)
  rest = max(steps - warmup, 1)
  last = optim.lr * optim.end
  after = {
    'constant': lambda: optax.constant_schedule(optim.lr),
    'linear': lambda: optax.linear_schedule(optim.lr, last, rest),
    'cosine': lambda: optax.cosine_decay_schedule(optim.lr, rest, optim.end),
  }[optim.schedule]()
  if not warmup:
    return after
  # From the first step on it moves: a rate of zero would waste it.
  rise = optax.linear_schedule(optim.lr / warmup, optim.lr, warmup - 1)
  return optax.join_schedules([rise, after], [warmup])
