"""What does a run of training hand to the compiler?

The functions are those that `me-jax train` runs; their arguments are shapes with
the places that they would have: no weights, no data and no device are needed.

Letters: B rows, T time, L layers, D model width, G layers with gates.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from me_jax import errors
from me_jax.mitigation import gates as gates_lib
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.models import params as params_lib
from me_jax.models import sink
from me_jax.training import feed
from me_jax.training import flops
from me_jax.training import held_out
from me_jax.training import objectives
from me_jax.training import optimizer as optimizer_lib
from me_jax.training import packing
from me_jax.training import placement
from me_jax.training import prepare
from me_jax.training import settings as settings_lib
from me_jax.training import sharding as sharding_lib
from me_jax.training import step as step_lib
from me_jax.training import trained as trained_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A jitted function with what it is called with.

  Attributes:
    name: what it does.
    function: has `lower`.
    args: shapes with shardings; static ones as they are.
    mesh: of the devices.
    rules: fitted to the model.
    config: of the model.
    tokens: of a call over all devices; 0 where it is not about tokens.
    model_flops: what the model's own products need in a call over all devices,
      see `flops.of_step`; 0 where it is not a step.
    state: where a training state is among `args`, its index.
  """

  name: str
  function: Any
  args: tuple[Any, ...]
  mesh: jax.sharding.Mesh
  rules: sharding_lib.Rules
  config: config_lib.ModelConfig
  tokens: int
  model_flops: float = 0.0
  state: int | None = None

  @property
  def held(self) -> Any:
    """The training state of a step, in shapes."""
    assert self.state is not None, self.name
    return self.args[self.state]


class Held(NamedTuple):
  """What a run holds on its devices, as shapes with shardings.

  Attributes:
    state: of training.
    frozen: what is not trained.
    places: shardings of the state.
  """

  state: step_lib.State
  frozen: trained_lib.Frozen
  places: step_lib.State


def train(
  run: settings_lib.Run,
  config: config_lib.ModelConfig,
  mesh: jax.sharding.Mesh,
  rules: sharding_lib.Rules = sharding_lib.DEFAULT,
) -> tuple[Program, ...]:
  """Returns the step, and what scores rows around it.

  Layers that are meant by where the ME Layer is are taken to be all: which they
  are is known once the model has been looked at.

  Args:
    run: the settings; nothing that they name is read.
    config: of the model.
    mesh: the devices, from `sharding.mesh`.
    rules: other ones than a run has, to see what they would do.

  Raises:
    MeJaxError: the model or the batch does not fit the mesh.
  """
  run = everywhere(run)
  rows, length = settings_lib.rows(run), length_of(run)
  rules = sharding_lib.fit(
    config, mesh, rules, rows=rows // run.compute.parts, length=length
  )
  model = prepare.model_of(run, config)
  with sharding_lib.use(mesh, rules):
    optimizer = optimizer_lib.make(run.optim, max(run.steps, 1))
    held = hold(run, config, mesh, rules, optimizer)
  texts = placed(
    packed(rows, length), functools.partial(_batch_places, mesh, rules)
  )
  program = functools.partial(Program, mesh=mesh, rules=rules, config=config)
  batch, tokens, found = texts, rows * length, []
  method = run.method
  if isinstance(method, settings_lib.Dpo):
    pairs = packing.PackedPairs(texts, texts)
    sums = jax.ShapeDtypeStruct((rows,), jnp.float32)
    batch = placed(
      objectives.Pairs(pairs, sums, sums),
      functools.partial(_batch_places, mesh, rules),
    )
    tokens *= 2
    found.append(
      program(
        name='reference',
        function=feed.pair_scorer(model, run, mesh),
        args=(held.state.tree, held.frozen, pairs),
        tokens=tokens,
      )
    )
  elif isinstance(method, settings_lib.Grpo):
    each = jax.ShapeDtypeStruct((rows, length), jnp.float32)
    batch = placed(
      objectives.Answers(
        texts,
        jax.ShapeDtypeStruct((rows, 1), jnp.float32),
        each if method.updates > 1 else None,
        each if method.kl else None,
      ),
      functools.partial(_batch_places, mesh, rules),
    )
    if method.updates > 1 or method.kl:
      found.append(
        program(
          name='score',
          function=feed.token_scorer(model, run),
          args=(held.state.tree, held.frozen, texts),
          tokens=tokens,
        )
      )
  full = 'full' in run.train.parts
  step = program(
    name='step',
    function=step_lib.jitted(model, run, optimizer, held.places, mesh),
    args=(held.state, held.frozen, batch),
    tokens=tokens,
    model_flops=flops.of_step(config, tokens, length, full),
    state=0,
  )
  if run.held_out:
    found.append(_held_out(run, model, step))
  return (step, *found)


def length_of(run: settings_lib.Run) -> int:
  """Returns the tokens of a row of a step."""
  if isinstance(run.method, settings_lib.Grpo):
    return run.data.length + run.method.sampling.max_new_tokens
  return run.data.length


def keeps_start(run: settings_lib.Run) -> bool:
  """Says whether a copy of what is trained stays as it was at the start."""
  method = run.method
  if isinstance(method, settings_lib.Dpo):
    return method.reference == 'beside'
  return isinstance(method, settings_lib.Grpo) and method.kl > 0


def hold(
  run: settings_lib.Run,
  config: config_lib.ModelConfig,
  mesh: jax.sharding.Mesh,
  rules: sharding_lib.Rules,
  optimizer: Any,
) -> Held:
  """Returns what `prepare.place` would put on the devices.

  Args:
    run: whose layers are listed.
    config: of the model.
    mesh: the devices.
    rules: fitted to the model; in use.
    optimizer: from `optimizer.make`.
  """
  tree, frozen = split(run, config)
  tree_places, frozen_places, places = prepare.places_of(
    config, run, tree, frozen, optimizer, mesh, rules
  )
  del tree_places
  start = functools.partial(step_lib.start, optimizer)
  return Held(
    with_places(jax.eval_shape(start, tree), places),
    with_places(frozen, frozen_places),
    places,
  )


def split(
  run: settings_lib.Run, config: config_lib.ModelConfig
) -> tuple[dict[str, Any], trained_lib.Frozen]:
  """Returns the shapes of what `trained.split` does."""
  params = params_lib.param_shapes(config, prepare.params_dtype(run))
  if run.mask.rate:
    params = _with_scale(config, params, run.mask.tokens)
  model, train = prepare.model_of(run, config), run.train
  rest = tuple(part for part in train.parts if part != 'gates')
  gated: tuple[int, ...] = ()
  if 'gates' in train.parts:
    gated = gates_lib.chosen_layers(model, train.gates.layers)
    tokens = train.gates.tokens
    params = _with_scale(
      config, params, 'first' if tokens == 'marked' else tokens
    )
  tree: dict[str, Any] = {}
  frozen = trained_lib.Frozen(params)
  if rest:
    key = jax.eval_shape(jax.random.key, 0)
    tree, frozen = jax.eval_shape(
      lambda params, key: trained_lib.split(
        model, params, dataclasses.replace(train, parts=rest), key
      ),
      params,
      key,
    )
  if gated:
    shape = len(gated), config.hidden_size
    tree['gates'] = jax.ShapeDtypeStruct(shape, jnp.float32)
  return tree, dataclasses.replace(frozen, gate_layers=gated)


def packed(rows: int, length: int) -> packing.Packed:
  """Returns the shapes of rows of text."""
  shape = rows, length
  return packing.Packed(
    jax.ShapeDtypeStruct(shape, jnp.int32),
    jax.ShapeDtypeStruct(shape, jnp.int32),
    jax.ShapeDtypeStruct(shape, jnp.bool_),
  )


def placed(shapes: Any, places: Callable[[Any], Any]) -> Any:
  """Returns shapes with the places that a function of them gives."""
  return with_places(shapes, places(shapes))


def with_places(shapes: Any, places: Any) -> Any:
  """Returns shapes with shardings, one for each."""
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    shapes,
    places,
  )


def merged(run: settings_lib.Run, step: Program) -> Any:
  """Returns the shapes of what a run computes with, where they lie.

  Args:
    run: the settings.
    step: of the run.
  """
  state, frozen, _ = step.args
  shapes = jax.eval_shape(
    lambda tree, frozen: trained_lib.merge(tree, frozen, run.train),
    state.tree,
    frozen,
  )
  return placed(
    shapes,
    lambda tree: sharding_lib.shardings(
      step.config, step.mesh, step.rules, params=tree
    ),
  )


def everywhere(run: settings_lib.Run) -> settings_lib.Run:
  """Returns a run whose layers are known without its ME Layer: all of them.

  Raises:
    MeJaxError: `compute.parts` does not divide the rows of a step.
  """
  train = run.train
  for part in ('gates', 'lora'):
    own = getattr(train, part)
    if own.layers in ('after', 'next', 'before'):
      all_of_them = dataclasses.replace(own, layers='all')
      train = dataclasses.replace(train, **{part: all_of_them})
  if settings_lib.rows(run) % run.compute.parts:
    raise errors.MeJaxError(
      f'compute.parts {run.compute.parts} does not divide'
      f' {settings_lib.rows(run)} rows of a step.'
    )
  return dataclasses.replace(run, train=train)


def _held_out(
  run: settings_lib.Run, model: decoder.Decoder, step: Program
) -> Program:
  """Returns the pass that scores held-out rows."""
  mesh, rules = step.mesh, step.rules
  parts = rules.parts('batch', mesh)
  rows = -(-run.evaluation.batch // parts) * parts
  length = min(run.evaluation.length, model.config.context_length)
  texts = placed(
    packed(rows, length), functools.partial(_batch_places, mesh, rules)
  )
  return Program(
    name='held out',
    # How many texts share a row is known from the data; it changes little.
    function=held_out.scorer(model, run, mesh, 8),
    args=(merged(run, step), texts),
    mesh=mesh,
    rules=rules,
    config=step.config,
    tokens=rows * length,
  )


def _with_scale(
  config: config_lib.ModelConfig, params: dict[str, Any], tokens: Any
) -> dict[str, Any]:
  """Returns shapes with the mask's leaves, as `wemask` adds them."""
  layers = params['layers']
  shape = config.num_hidden_layers, config.hidden_size
  scale = jax.ShapeDtypeStruct(shape, jnp.float32)
  leaves: dict[str, Any] = {'layers': {**layers, sink.SCALE: scale}}
  if tokens == 'massive':
    leaves[sink.BOUND] = jax.ShapeDtypeStruct(shape[:1], jnp.float32)
  elif not isinstance(tokens, str):
    leaves[sink.POSITIONS] = jax.ShapeDtypeStruct(
      (max(tokens) + 1,), jnp.float32
    )
  return {**params, **leaves}


def _batch_places(
  mesh: jax.sharding.Mesh, rules: sharding_lib.Rules, batch: Any
) -> Any:
  return placement.batch_shardings(batch, mesh, rules)
