"""One step of training: from a batch to a new state, compiled as a whole.

Letters: B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from me_jax.mitigation import gates as gates_lib
from me_jax.models import decoder
from me_jax.training import objectives
from me_jax.training import settings as settings_lib
from me_jax.training import trained as trained_lib


@struct.dataclass
class State:
  """What changes from step to step; a pytree.

  Attributes:
    step: int32, steps done.
    tree: what is trained, float32, by part.
    optimizer: the optimiser's.
  """

  step: jax.Array
  tree: Any
  optimizer: Any


def start(optimizer: Any, tree: Any) -> State:
  """Returns the state before the first step."""
  return State(jnp.zeros((), jnp.int32), tree, optimizer.init(tree))


def make(
  model: decoder.Decoder,
  run: settings_lib.Run,
  optimizer: Any,
  objective: objectives.Objective,
) -> Callable[[State, trained_lib.Frozen, Any], tuple[State, dict[str, Any]]]:
  """Returns the function of a step, to be jitted; the state may be donated.

  Args:
    model: the decoder; scanned.
    run: whose parts, penalty and precision are used.
    optimizer: from `optimizer.make`.
    objective: from `objectives.of`.

  Returns:
    A pure function of state, frozen parameters and batch. It returns the new
    state and float32 scalars: the means of the objective's sums, the norm of
    the gradient before it is cut, `counted` (what the loss is divided by),
    `penalty` where there is one, and `finite`, whether loss and gradient are;
    where they are not, the state is as it was.
  """

  def sums_of(tree: Any, frozen: Any, part: Any) -> tuple[jax.Array, Any]:
    params = trained_lib.merge(
      tree, frozen, run.train, jnp.dtype(run.compute.dtype)
    )
    below = trained_lib.first_layer(frozen, run.train)
    sums = objective(model.clone(frozen_layers=below), params, part)
    return sums['loss'][0], sums

  def step(
    state: State, frozen: trained_lib.Frozen, batch: Any
  ) -> tuple[State, dict[str, Any]]:
    gradient, sums = accumulated(
      jax.grad(sums_of, has_aux=True), run.compute.parts
    )(state.tree, frozen, batch)
    gradient = jax.tree.map(lambda g: g / _some(sums['loss'][1]), gradient)
    means = {name: a / _some(b) for name, (a, b) in sums.items()}
    if run.penalty.weight:
      cost, slope = jax.value_and_grad(_penalty)(state.tree['gates'], run)
      gradient = {**gradient, 'gates': gradient['gates'] + slope}
      means['penalty'] = cost
    import optax

    norm = optax.tree.norm(gradient)
    updates, moved = optimizer.update(gradient, state.optimizer, state.tree)
    tree: Any = optax.apply_updates(state.tree, updates)
    tree = trained_lib.project(tree, run.train)
    finite = jnp.isfinite(means['loss'] + norm)
    means |= {
      'grad_norm': norm, 'finite': finite, 'counted': sums['loss'][1]
    }  # fmt: skip
    # What is not finite is not taken, so that the run can say which rows it was.
    return jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      State(state.step + 1, tree, moved),
      state,
    ), means

  return step


def jitted(
  model: decoder.Decoder,
  run: settings_lib.Run,
  optimizer: Any,
  places: State,
  mesh: jax.sharding.Mesh,
) -> Any:
  """Returns the compiled form of a step, which uses up the state.

  Args:
    model: the decoder; scanned.
    run: the settings.
    optimizer: from `optimizer.make`.
    places: where each leaf of the state lies, before and after.
    mesh: that they lie on.
  """
  return jax.jit(
    make(model, run, optimizer, objectives.of(run)),
    donate_argnums=0,
    out_shardings=(places, jax.NamedSharding(mesh, jax.P())),
  )


def accumulated(gradient: Callable[..., Any], parts: int) -> Callable[..., Any]:
  """Returns a gradient that takes a batch in parts, one after the other.

  Args:
    gradient: of a sum over rows, with sums beside it: `(tree, frozen, batch)`
      to `(gradient, sums)`.
    parts: divide the rows.

  Returns:
    The same for the whole batch, in the memory of a part and a second gradient.
  """
  if parts == 1:
    return gradient

  def in_parts(tree: Any, frozen: Any, batch: Any) -> tuple[Any, Any]:
    # Every parts-th row: each device takes apart the rows that it holds.
    split = jax.tree.map(
      lambda x: jnp.swapaxes(
        x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1
      ),
      batch,
    )

    def add(total: Any, part: Any) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, total, gradient(tree, frozen, part)), None

    shapes = jax.eval_shape(
      gradient, tree, frozen, jax.tree.map(lambda x: x[0], split)
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, split)[0]

  return in_parts


def _penalty(raw_GD: jax.Array, run: settings_lib.Run) -> jax.Array:
  cost = gates_lib.penalty(raw_GD, run.train.gates, run.penalty.form)
  return run.penalty.weight * cost


def _some(count: jax.Array) -> jax.Array:
  """Returns a count that can be divided by: of nothing the sum is 0, too."""
  return jnp.maximum(count, 1.0)
