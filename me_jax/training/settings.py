"""What is a run? Everything that decides what comes out of it, in one value.

A file in `configs` returns one, `overrides` changes single fields, and it is
kept beside the checkpoints, so that a run that is resumed is the same run.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from me_jax.analysis import monitor
from me_jax.training import data as data_lib
from me_jax.training import rollouts as rollouts_lib
from me_jax.training import trained as trained_lib

# What a resumed run may say anew: none of it changes the steps' results.
FREE = (
  'log_every', 'checkpoint', 'mesh', 'monitor_every', 'tensorboard'
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sft:
  """Supervised fine-tuning: the likelihood of the answers."""

  kind = 'texts'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dpo:
  """Direct preference optimization, see `losses.dpo`.

  Attributes:
    beta: how dear it is to leave the model that was started from.
    label_smoothing: the share of pairs whose order is taken to be wrong.
    reference: `stored` scores all pairs once, before the first step; `beside`
      scores each batch in its step, by what was trained as it was at the start
      (adapters disabled, gates at their start), which is kept beside.
  """

  beta: float = 0.1
  label_smoothing: float = 0.0
  reference: str = 'stored'
  kind = 'pairs'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grpo:
  """Group relative policy optimization, see `losses.grpo`.

  Attributes:
    sampling: how answers are drawn and judged.
    kl: weight of the divergence from the model that was started from; 0 needs
      no reference.
    clip: how far the ratio to the policy that drew may go from 1.
    updates: steps of the optimiser on each batch of answers.
    normalize: whether `texts` or `tokens` weigh equally.
  """

  sampling: rollouts_lib.Settings = rollouts_lib.Settings()
  kl: float = 0.04
  clip: float = 0.2
  updates: int = 1
  normalize: str = 'texts'
  kind = 'prompts'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
  """WeMask in every forward pass, before anything is trained.

  Attributes:
    rate: the share of channels; 0 is no mask.
    select: see `me_jax.wemask`, as for the others.
    strength: how much of a channel.
    layers: which layers.
    tokens: which tokens.
    seed: of `random`.
  """

  rate: float = 0.0
  select: str = 'weight'
  strength: float = 1.0
  layers: str | tuple[int, ...] = 'after'
  tokens: str | tuple[int, ...] = 'first'
  seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) and its schedule.

  Attributes:
    lr: the largest learning rate.
    schedule: how it falls after the warm-up: `constant`, `linear`, `cosine`.
    warmup: the share of the steps in which it rises from 0; below 1.
    end: what it falls to, as a share of `lr`.
    b1: decay of the mean of gradients.
    b2: decay of the mean of their squares.
    eps: added to the root of that.
    weight_decay: of kernels and adapters, never of gates or norms.
    clip: global norm that gradients are cut to; 0 does not cut.
  """

  lr: float = 1e-3
  schedule: str = 'cosine'
  warmup: float = 0.05
  end: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  clip: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalty:
  """What it costs gates to leave one, see `gates.penalty`.

  Attributes:
    weight: 0 is no penalty.
    form: `l1` or `squared`.
  """

  weight: float = 0.0
  form: str = 'l1'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """What is learnt from.

  Attributes:
    mix: the rows.
    length: tokens of a row; of `Grpo`, of a prompt. Longer ones are left out.
    batch: rows of a step over all devices; of `Grpo`, prompts.
    pack: whether texts share rows.
    answers: which of a chat's answers are learnt, the `last` or `all`; or the
      `whole` chat.
  """

  mix: data_lib.Mix
  length: int = 512
  batch: int = 8
  pack: bool = True
  answers: str = 'last'


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
  """Rows that nothing is learnt from.

  Attributes:
    name: in tables.
    source: the rows.
    kind: `texts` or `pairs`.
    answers: which tokens of a chat count, as in `Data`.
    on_task: whether it is what the training is for.
    limit: how far the loss may rise, in nats per token, for a step to be the
      best one; infinite for as far as it will.
    report: whether the rows are only measured, at the start and at the end,
      and never choose a step.
  """

  name: str
  source: data_lib.Source
  kind: str = 'texts'
  answers: str = 'last'
  on_task: bool = True
  limit: float = math.inf
  report: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """When the held-out rows are measured, and what follows from it.

  Attributes:
    every: steps; 0 only at the start and at the end.
    length: tokens of a row; longer texts are left out.
    batch: rows of a pass.
    patience: evaluations without a better one after which the run stops; 0
      never does.
    choose: whether the result is the best step, by the mean loss of the sets
      that are on task among the steps that keep every limit, or the last one.
  """

  every: int = 0
  length: int = 1024
  batch: int = 4
  patience: int = 0
  choose: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """When the run is saved.

  Attributes:
    every: steps; 0 only at the end and when it is told to stop.
    keep: newest ones that stay, beside the best.
  """

  every: int = 100
  keep: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
  """How it is computed.

  Attributes:
    dtype: of the computation, and of parameters that are frozen; what is
      trained is float32 in any case.
    remat: what backward computes again, see `decoder.REMAT_POLICIES`.
    parts: into which a batch is divided whose gradients are added up.
    attention_chunk: queries whose scores exist at a time.
    vocabulary_chunk: tokens of the vocabulary whose logits do.
  """

  dtype: str = 'float32'
  remat: str = 'dots'
  parts: int = 1
  attention_chunk: int = 64
  vocabulary_chunk: int = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
  """Sizes of the mesh's axes, see `sharding.mesh`; -1 in one is the rest."""

  data: int = 1
  fsdp: int = -1
  tensor: int = 1
  sequence: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """A run of training.

  Attributes:
    data: what is learnt from.
    model: that is started from, as `me_jax.load` takes it.
    method: how it is learnt.
    train: which numbers are.
    mask: WeMask in the forward pass.
    penalty: on gates.
    optim: the optimiser.
    steps: of the optimiser; 0 where `epochs` says it.
    epochs: how often each row is seen; 0 where `steps` says it.
    seed: of the order, of adapters and of samples.
    held_out: what is measured.
    evaluation: when.
    monitor_every: steps between looks at the ME Layer; 0 for none.
    checkpoint: when it is saved.
    compute: how it is computed.
    mesh: on which devices.
    log_every: steps between lines of the log.
    tensorboard: whether events are written for it too.
  """

  data: Data
  model: str = 'smollm2'
  method: Sft | Dpo | Grpo = Sft()
  train: trained_lib.Trained = trained_lib.Trained()
  mask: Mask = Mask()
  penalty: Penalty = Penalty()
  optim: Optimizer = Optimizer()
  steps: int = 0
  epochs: float = 0.0
  seed: int = 0
  held_out: tuple[HeldOut, ...] = ()
  evaluation: Evaluation = Evaluation()
  monitor_every: int = monitor.EVERY
  checkpoint: Checkpoint = Checkpoint()
  compute: Compute = Compute()
  mesh: Mesh = Mesh()
  log_every: int = 1
  tensorboard: bool = False


def rows(run: Run) -> int:
  """Returns how many rows a step of the optimiser has, over all devices."""
  if isinstance(run.method, Grpo):
    return run.data.batch * run.method.sampling.answers
  return run.data.batch


def updates(run: Run) -> int:
  """Returns how many steps of the optimiser each batch of rows serves."""
  return getattr(run.method, 'updates', 1)


def to_json(run: Run) -> dict[str, Any]:
  """Returns the run as JSON types, a method by its name."""
  content = _plain(run)
  content['method'] = {'name': type(run.method).__name__} | content['method']
  return content


def _plain(value: Any) -> Any:
  if dataclasses.is_dataclass(value):
    return {
      field.name: _plain(getattr(value, field.name))
      for field in dataclasses.fields(value)
    }
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  if callable(value):
    return getattr(value, '__qualname__', repr(value))
  return value if isinstance(value, bool | int | float | None) else str(value)
