"""From a run's settings to a model on its devices, ready for the first step.

Whatever can be wrong is found out before weights are read: `plan` needs only
headers and data, `place` does the work.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp

from me_jax import errors
from me_jax.analysis import emergence
from me_jax.analysis import me_report
from me_jax.analysis import prompts as prompts_lib
from me_jax.checkpoints import encoding
from me_jax.checkpoints import load as load_lib
from me_jax.checkpoints import processes
from me_jax.mitigation import wemask
from me_jax.models import batch as batch_lib
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.models import params as params_lib
from me_jax.training import batches as batches_lib
from me_jax.training import data as data_lib
from me_jax.training import held_out as held_out_lib
from me_jax.training import model_check
from me_jax.training import optimizer as optimizer_lib
from me_jax.training import placement
from me_jax.training import rewards as rewards_lib
from me_jax.training import settings as settings_lib
from me_jax.training import settings_check
from me_jax.training import sharding as sharding_lib
from me_jax.training import step as step_lib
from me_jax.training import trained as trained_lib

Progress = Callable[[str, int, int], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """A run that is sound as far as can be known without weights.

  Attributes:
    run: with `steps` even where `epochs` said it.
    config: of the model.
    checkpoint: with its weights.
    tokenizer: of the model.
    mesh: of all devices.
    rules: fitted to the model.
    batches: what is learnt from, this process's share.
    held_out: what is measured.
    length: tokens of a row of a step.
  """

  run: settings_lib.Run
  config: config_lib.ModelConfig
  checkpoint: Any
  tokenizer: Any
  mesh: jax.sharding.Mesh
  rules: sharding_lib.Rules
  batches: batches_lib.Batches
  held_out: tuple[held_out_lib.Set, ...]
  length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placed:
  """A model on its devices.

  Attributes:
    model: the decoder.
    report: where its massive activations come from; None where nobody asked.
    frozen: what is not trained.
    state: before the first step.
    places: where each leaf of the state lies.
    optimizer: from optax.
    trained: how many numbers are trained, and how many there are.
    fingerprint: of the weights that were read.
  """

  model: decoder.Decoder
  report: me_report.MEReport | None
  frozen: trained_lib.Frozen
  state: step_lib.State
  places: step_lib.State
  optimizer: Any
  trained: tuple[int, int]
  fingerprint: str


def plan(run: settings_lib.Run, progress: Progress | None = None) -> Plan:
  """Reads headers and data, and checks what can be checked.

  Args:
    run: the settings.
    progress: called with what is done, and how far it is.

  Raises:
    MeJaxError: the settings, the checkpoint, the mesh or the data is not sound,
      here or in another process.
  """
  settings_check.check(run)
  # A file may be missing on one host alone.
  return processes.together(functools.partial(_plan, run, progress))


def place(plan: Plan, progress: Progress | None = None) -> Placed:
  """Reads the weights, masks them where that is asked for, and splits them.

  Args:
    plan: from `plan`.
    progress: called with what is done, and how far it is.

  Raises:
    MeJaxError: the weights are not sound, or have no ME Layer where one is
      needed.
  """
  run, mesh, rules = plan.run, plan.mesh, plan.rules
  dtype, model = params_dtype(run), model_of(run, plan.config)
  tell = progress or (lambda *_: None)
  with sharding_lib.use(mesh, rules):
    params = plan.checkpoint.load_params(
      dtype,
      shardings=sharding_lib.shardings(plan.config, mesh, rules),
      progress=functools.partial(tell, 'loading weights'),
    )
    fingerprint = params_lib.fingerprint(params)
    total = trained_lib.count(params)
    report = None
    if _needs_report(run):
      report = emergence.find_me_layer(
        model,
        params,
        _probes(plan),
        bos_token_id=plan.tokenizer.bos_token_id,
        progress=functools.partial(tell, 'finding the ME Layer'),
      )
    if run.mask.rate:
      params = _masked(run.mask, model, params, report, plan)
    tree, frozen = trained_lib.split(
      model, params, run.train, jax.random.key(run.seed), report
    )
    del params
    optimizer = optimizer_lib.make(run.optim, run.steps)
    tree_places, frozen_places, places = places_of(
      plan.config, run, tree, frozen, optimizer, mesh, rules
    )
    tree = jax.device_put(tree, tree_places)
    frozen = jax.device_put(frozen, frozen_places)
    start = functools.partial(step_lib.start, optimizer)
    state = jax.jit(start, out_shardings=places, donate_argnums=0)(tree)
  return Placed(
    model=model,
    report=report,
    frozen=frozen,
    state=state,
    places=places,
    optimizer=optimizer,
    trained=(trained_lib.count(state.tree), total),
    fingerprint=fingerprint,
  )


def model_of(
  run: settings_lib.Run, config: config_lib.ModelConfig
) -> decoder.Decoder:
  """Returns the decoder as a run computes with it."""
  compute = run.compute
  return decoder.Decoder(
    config,
    dtype=jnp.dtype(compute.dtype),
    param_dtype=jnp.dtype(compute.dtype),
    remat=compute.remat,
    attention_chunk=compute.attention_chunk,
  )


def params_dtype(run: settings_lib.Run) -> str:
  """Returns the type that weights are read in."""
  # Master weights are not rounded on their way in.
  return 'float32' if 'full' in run.train.parts else run.compute.dtype


def places_of(
  config: config_lib.ModelConfig,
  run: settings_lib.Run,
  tree: Any,
  frozen: trained_lib.Frozen,
  optimizer: Any,
  mesh: jax.sharding.Mesh,
  rules: sharding_lib.Rules,
) -> tuple[Any, Any, step_lib.State]:
  """Returns where what is trained lies, what is frozen, and the whole state.

  Args:
    config: of the model.
    run: the settings.
    tree: what is trained, as arrays or shapes.
    frozen: what is not, likewise.
    optimizer: from `optimizer.make`.
    mesh: the devices.
    rules: fitted to the model.
  """
  tree_places, frozen_places = placement.trained_shardings(
    config, frozen, run.train, mesh, rules
  )
  shapes = jax.eval_shape(functools.partial(step_lib.start, optimizer), tree)
  return (
    tree_places,
    frozen_places,
    placement.state_shardings(shapes, tree, tree_places),
  )


def merged(placed: Placed, run: settings_lib.Run, tree: Any) -> decoder.Params:
  """Returns the model's parameters with what was trained, in one tree.

  Args:
    placed: from `place`.
    run: the settings.
    tree: what was trained; of the state.
  """
  return trained_lib.merge(tree, placed.frozen, run.train)


def computed(
  run: settings_lib.Run, tree: Any, frozen: trained_lib.Frozen
) -> decoder.Params:
  """Returns the parameters that a step computes with; for jit.

  Args:
    run: the settings.
    tree: what is trained.
    frozen: what is not.
  """
  return trained_lib.merge(
    tree, frozen, run.train, jnp.dtype(run.compute.dtype)
  )


def _plan(run: settings_lib.Run, progress: Progress | None) -> Plan:
  checkpoint = load_lib.open_checkpoint(run.model)
  config = checkpoint.config
  # One of me_jax's own was compared with its model when it was opened.
  if isinstance(checkpoint, load_lib.Checkpoint):
    checkpoint.check()
  model_check.check(run, config)
  mesh = sharding_lib.mesh(**dataclasses.asdict(run.mesh))
  length = run.data.length
  if isinstance(run.method, settings_lib.Grpo):
    length += run.method.sampling.max_new_tokens
    if length > config.context_length:
      raise errors.MeJaxError(
        f'data.length and method.sampling.max_new_tokens are {length} together,'
        f' more than the context of {config.context_length}.'
      )
  rules = sharding_lib.fit(
    config,
    mesh,
    rows=settings_lib.rows(run) // run.compute.parts,
    length=length,
  )
  hosts, host = placement.row_share(mesh, rules)
  if progress is not None:
    progress('reading data', 0, 1)
  tokenizer = checkpoint.load_tokenizer()
  batches = data_lib.load(
    run.data.mix,
    run.method.kind,
    tokenizer,
    config,
    length=run.data.length,
    batch_size=run.data.batch,
    seed=run.seed,
    pack=run.data.pack,
    answers=run.data.answers,
    hosts=hosts,
    host=host,
  )
  if isinstance(run.method, settings_lib.Grpo):
    _check_rewards(run)
  held_out = tuple(
    held_out_lib.read(one, run, tokenizer, config) for one in run.held_out
  )
  for one in held_out:
    length_there = one.packed[0].tokens_BT.shape[1]
    sharding_lib.fit(config, mesh, rules, length=length_there)
  if progress is not None:
    progress('reading data', 1, 1)
  if not run.steps:
    updates = settings_lib.updates(run)
    # Of 0.07 × 100 a computer makes a little more than 7.
    steps = math.ceil(round(run.epochs * batches.epoch, 6)) * updates
    run = dataclasses.replace(run, steps=steps)
  return Plan(
    run=run,
    config=config,
    checkpoint=checkpoint,
    tokenizer=tokenizer,
    mesh=mesh,
    rules=rules,
    batches=batches,
    held_out=held_out,
    length=length,
  )


def _check_rewards(run: settings_lib.Run) -> None:
  """Raises MeJaxError for a row that the rewards cannot judge."""
  records = [
    record
    for source in run.data.mix.sources
    for record in data_lib.rows_of(source, run.method.kind)
  ]
  rewards_lib.check_rows(
    cast(settings_lib.Grpo, run.method).sampling.rewards,
    [record.row for record in records],
    [record.where for record in records],
  )


def _needs_report(run: settings_lib.Run) -> bool:
  """Says whether a setting is about the emergence span."""
  parts = {'gates': run.train.gates, 'lora': run.train.lora}
  named = {parts[part].layers for part in run.train.parts if part in parts}
  return bool(run.mask.rate) or not named.isdisjoint(
    {'after', 'next', 'before'}
  )


def _probes(plan: Plan) -> batch_lib.Batch:
  """Returns the built-in prompts as a batch."""
  ids = encoding.token_ids(
    plan.tokenizer, plan.config, prompts_lib.builtin(), 'auto'
  )
  return batch_lib.make_batch(sorted(ids, key=len, reverse=True), pack=True)


def _masked(
  mask: settings_lib.Mask,
  model: decoder.Decoder,
  params: decoder.Params,
  report: me_report.MEReport | None,
  plan: Plan,
) -> decoder.Params:
  """Returns parameters with WeMask."""
  # As `_needs_report` says of a rate.
  assert report is not None
  return wemask.wemask(
    model,
    params,
    report,
    rate=mask.rate,
    strength=mask.strength,
    select=mask.select,
    layers=mask.layers,
    tokens=mask.tokens,
    seed=mask.seed,
    batch=_probes(plan) if mask.select == 'activation' else None,
  )
