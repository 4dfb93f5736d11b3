"""Can a run be, as its settings say?"""

from __future__ import annotations

import math
from typing import Any

from me_jax import errors
from me_jax.mitigation import gates as gates_lib
from me_jax.models import decoder
from me_jax.training import examples
from me_jax.training import losses
from me_jax.training import settings as settings_lib
from me_jax.training import trained as trained_lib

SCHEDULES = ('constant', 'linear', 'cosine')
REFERENCES = ('stored', 'beside')
DTYPES = ('float32', 'bfloat16')


def check(run: settings_lib.Run) -> None:
  """Raises MeJaxError for settings that are impossible, or contradict.

  What the mesh, the data and the model say is left to `prepare.plan`.
  """
  trained_lib.check(run.train)
  if (run.steps > 0) == (run.epochs > 0) or min(run.steps, run.epochs) < 0:
    raise errors.MeJaxError(
      f'steps is {run.steps} and epochs {run.epochs:g}: one of them must be'
      ' positive, and the other 0.'
    )
  _among('optim.schedule', run.optim.schedule, SCHEDULES)
  _among('compute.dtype', run.compute.dtype, DTYPES)
  _among('compute.remat', run.compute.remat, decoder.REMAT_POLICIES)
  _among('data.answers', run.data.answers, examples.ANSWERS)
  for name, value, low, high in (
    ('epochs', run.epochs, 0, math.inf),
    ('optim.lr', run.optim.lr, 0, math.inf),
    ('optim.warmup', run.optim.warmup, 0, 1),
    ('optim.end', run.optim.end, 0, 1.001),
    ('optim.b1', run.optim.b1, 0, 1),
    ('optim.b2', run.optim.b2, 0, 1),
    ('optim.weight_decay', run.optim.weight_decay, 0, math.inf),
    ('optim.clip', run.optim.clip, 0, math.inf),
    ('penalty.weight', run.penalty.weight, 0, math.inf),
    ('seed', run.seed, 0, 2**31),
    ('monitor_every', run.monitor_every, 0, math.inf),
    ('evaluation.every', run.evaluation.every, 0, math.inf),
    ('evaluation.patience', run.evaluation.patience, 0, math.inf),
    ('checkpoint.every', run.checkpoint.every, 0, math.inf),
  ):
    if not low <= value < high:
      below = '' if high == math.inf else f' to below {high:g}'
      raise errors.MeJaxError(
        f'{name} is {value:g}, must be from {low:g}{below}.'
      )
  for name, value in (
    ('optim.eps', run.optim.eps),
    ('data.batch', run.data.batch),
    ('log_every', run.log_every),
    ('checkpoint.keep', run.checkpoint.keep),
    ('compute.parts', run.compute.parts),
    ('compute.attention_chunk', run.compute.attention_chunk),
    ('compute.vocabulary_chunk', run.compute.vocabulary_chunk),
    ('evaluation.batch', run.evaluation.batch),
  ):
    if not value > 0:
      raise errors.MeJaxError(f'{name} is {value:g}, must be positive.')
  if settings_lib.rows(run) % run.compute.parts:
    raise errors.MeJaxError(
      f'a step of {settings_lib.rows(run)} rows cannot be divided into'
      f' compute.parts={run.compute.parts}.'
    )
  if run.penalty.weight and 'gates' not in run.train.parts:
    raise errors.MeJaxError(
      'penalty.weight is set, but no gates are trained that it could be on.'
    )
  _among('penalty.form', run.penalty.form, gates_lib.PENALTIES)
  _check_held_out(run)
  if isinstance(run.method, settings_lib.Dpo):
    _among('method.reference', run.method.reference, REFERENCES)
    losses.check_dpo(
      beta=run.method.beta, label_smoothing=run.method.label_smoothing
    )
  if isinstance(run.method, settings_lib.Grpo):
    losses.check_grpo(
      clip=run.method.clip, kl=run.method.kl, normalize=run.method.normalize
    )
    if run.method.updates < 1:
      raise errors.MeJaxError(
        f'method.updates is {run.method.updates}, must be at least 1.'
      )
    if run.evaluation.choose and run.evaluation.every % run.method.updates:
      raise errors.MeJaxError(
        f'evaluation.every is {run.evaluation.every}, must be a multiple of'
        f' method.updates, {run.method.updates}: a step is saved only where new'
        ' answers begin.'
      )


def _check_held_out(run: settings_lib.Run) -> None:
  """Raises MeJaxError for held-out sets that cannot do what is asked."""
  names = [one.name for one in run.held_out]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise errors.MeJaxError(f'two held-out sets are called {twice[0]!r}.')
  for one in run.held_out:
    _among(f'the kind of {one.name}', one.kind, ('texts', 'pairs'))
    _among(f'answers of {one.name}', one.answers, examples.ANSWERS)
    # The start must keep every limit, so that there is a step to choose.
    if not one.limit >= 0:
      raise errors.MeJaxError(
        f'the limit of {one.name} is {one.limit:g}, must be 0 or more.'
      )
  steers = run.evaluation.choose or run.evaluation.patience
  if steers and not any(one.on_task and not one.report for one in run.held_out):
    raise errors.MeJaxError(
      'to choose a step, or to stop, a held-out set is needed that is on task'
      ' and not for the report alone.'
    )
  if steers and not run.evaluation.every:
    raise errors.MeJaxError(
      'to choose a step, or to stop, evaluation.every must be positive.'
    )


def _among(name: str, value: Any, known: Any) -> None:
  if value not in known:
    raise errors.MeJaxError(
      f'{name} is {value!r}, must be one of {", ".join(known)}'
      f'{errors.nearest(str(value), known)}.'
    )
