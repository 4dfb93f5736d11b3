"""Which numbers does training change, and where do all others stay?

The parameters are split into what is trained, which is all that an optimiser
ever sees, and what is frozen, which hence has neither a gradient nor a state;
`merge` puts together what `model.apply` takes:

  tree, frozen = trained.split(model, params, settings, key, report)
  state = optimiser.init(tree)

  def loss(tree):
    return f(model, trained.merge(tree, frozen, settings))

  updates, state = optimiser.update(jax.grad(loss)(tree), state, tree)
  tree = trained.project(optax.apply_updates(tree, updates), settings)

Three parts can be trained: `gates` (mitigation/gates.py), `lora` (lora.py) and
`full`, all of the model's own parameters; gates together with either. A mask
that the parameters hold is frozen unless there are gates: it acts in every
forward pass, which is fine-tuning with WeMask in the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from me_jax import errors
from me_jax.analysis import me_report
from me_jax.mitigation import gates as gates_lib
from me_jax.models import decoder
from me_jax.models import params as params_lib
from me_jax.models import sink
from me_jax.training import lora as lora_lib

PARTS = ('gates', 'lora', 'full')
_SINK = (sink.SCALE, sink.BOUND, sink.POSITIONS)

Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """What is trained.

  Attributes:
    parts: some of `gates`, `lora` and `full`, the last two not together.
    gates: where they are.
    lora: of which kernels.
  """

  parts: tuple[str, ...] = ('gates',)
  gates: gates_lib.Gates = gates_lib.Gates()
  lora: lora_lib.Lora = lora_lib.Lora()


@struct.dataclass
class Frozen:
  """What is not trained; a pytree.

  Attributes:
    params: the model's parameters, less those that are trained.
    gate_layers: that have gates.
    lora_layers: that have adapters.
  """

  params: decoder.Params
  gate_layers: tuple[int, ...] = struct.field(pytree_node=False, default=())
  lora_layers: tuple[int, ...] = struct.field(pytree_node=False, default=())


def split(
  model: decoder.Decoder,
  params: decoder.Params,
  settings: Trained,
  key: jax.Array | None = None,
  report: me_report.MEReport | None = None,
) -> tuple[dict[str, Any], Frozen]:
  """Takes apart what is trained and what is not.

  Args:
    model: the decoder, scanned.
    params: its parameters, masked or not, in any type.
    settings: what is trained.
    key: of random numbers, for LoRA.
    report: of `find_me_layer`, for layers that are meant by name.

  Returns:
    The trained tree by part, float32 and in arrays of its own, which a training
    step may therefore donate; and the frozen one, which shares its arrays with
    `params`. Merged, they are the model that was given, to the last bit.

  Raises:
    MeJaxError: the settings are impossible, or lack a key or a report.
  """
  check(settings)
  if 'layers' not in params:
    raise errors.MeJaxError('the parameter tree holds no stacked layers')
  tree: dict[str, Any] = {}
  gate_layers: tuple[int, ...] = ()
  lora_layers: tuple[int, ...] = ()
  if 'gates' in settings.parts:
    start = gates_lib.start(model, params, settings.gates, report)
    tree['gates'], gate_layers, params = (
      start.raw_GD,
      start.layers,
      start.params,
    )
  if 'lora' in settings.parts:
    if key is None:
      raise errors.MeJaxError('LoRA starts at random and needs a key')
    lora_layers = gates_lib.chosen_layers(model, settings.lora.layers, report)
    tree['lora'] = lora_lib.init(params, settings.lora, lora_layers, key)
  if 'full' in settings.parts:
    layers = params['layers']
    params, own = _apart(params)
    params['layers'], own['layers'] = _apart(layers)
    tree['full'] = jax.tree.map(
      lambda leaf: jnp.array(leaf, jnp.float32, copy=True), own
    )
  return tree, Frozen(params, gate_layers, lora_layers)


def merge(
  tree: Tree, frozen: Frozen, settings: Trained, dtype: Any = None
) -> decoder.Params:
  """Returns the parameters that `model.apply` takes, and an export writes.

  Pure, for jit, and differentiable in `tree`.

  Args:
    tree: of `split`, trained or not.
    frozen: of the same.
    settings: that both were made with.
    dtype: of all parameters but the mask's, which are float32: bfloat16 with a
      float32 `tree` are master weights. None for each one's own type: float32
      of what is trained in full, else what the parameters had.

  Raises:
    MeJaxError: `tree` has other parts than the settings.
  """
  if set(tree) != set(settings.parts):
    raise errors.MeJaxError(
      f'the tree has {", ".join(sorted(tree)) or "nothing"} to train, the'
      f' settings say {", ".join(sorted(settings.parts))}'
    )
  params = _together(frozen.params, tree.get('full', {}))
  if 'lora' in tree:
    params = lora_lib.merge(
      params, tree['lora'], settings.lora, frozen.lora_layers, dtype
    )
  if 'gates' in tree:
    params = gates_lib.apply(
      params, tree['gates'], settings.gates, frozen.gate_layers
    )
  if dtype is None:
    return params
  return jax.tree.map_with_path(
    lambda path, leaf: leaf if _name(path) in _SINK else leaf.astype(dtype),
    params,
  )


def project(tree: Tree, settings: Trained) -> dict[str, Any]:
  """Returns the tree after an optimiser's step, gates back in their interval."""
  if 'gates' not in tree:
    return dict(tree)
  return {**tree, 'gates': gates_lib.project(tree['gates'], settings.gates)}


def decay_mask(tree: Tree) -> dict[str, Any]:
  """Says what weight decay may shrink, a tree of bools: `optax.adamw(mask=)`.

  Kernels, the embedding and adapters, whose zero is the model that was given;
  no norm, no bias, and no gate, whose zero would be the full mask.
  """
  return jax.tree.map_with_path(
    lambda path, _: (
      path[0].key != 'gates' and _name(path) not in ('weight', 'bias')
    ),
    dict(tree),
  )


def first_layer(frozen: Frozen, settings: Trained) -> int:
  """Returns the first layer in which something is trained.

  Args:
    frozen: of `split`.
    settings: that it was made with.
  """
  if 'full' in settings.parts:
    return 0
  return min(frozen.gate_layers + frozen.lora_layers)


def count(tree: Any) -> int:
  """Returns how many numbers a tree of arrays, or of shapes, has."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def size(
  model: decoder.Decoder,
  settings: Trained,
  report: me_report.MEReport | None = None,
) -> int:
  """Returns how many numbers would be trained, computing nothing.

  With it a control of equal size is found, such as the rank and the layers of
  LoRA that come nearest to some gates.

  Args:
    model: the decoder.
    settings: what is trained.
    report: of `find_me_layer`, for layers that are meant by name.
  """
  check(settings)
  total = 0
  if 'gates' in settings.parts:
    layers = gates_lib.chosen_layers(model, settings.gates.layers, report)
    total += len(layers) * model.config.hidden_size
  if 'lora' in settings.parts:
    layers = gates_lib.chosen_layers(model, settings.lora.layers, report)
    total += lora_lib.size(model.config, settings.lora, len(layers))
  if 'full' in settings.parts:
    total += count(params_lib.param_shapes(model.config, 'float32'))
  return total


def axes(
  frozen: Frozen, settings: Trained, params_axes: Mapping[str, Any]
) -> tuple[dict[str, Any], Frozen]:
  """Returns the logical axes of both trees, for sharding.

  Args:
    frozen: of `split`.
    settings: that it was made with.
    params_axes: logical axes of the model's own parameters, PartitionSpecs.
  """
  spec = jax.sharding.PartitionSpec
  found: dict[str, Any] = {}
  if 'gates' in settings.parts:
    found['gates'] = spec(None, 'norm')
  if 'lora' in settings.parts:
    found['lora'] = lora_lib.axes(params_axes, settings.lora)
  if 'full' in settings.parts:
    found['full'] = params_axes

  def of_frozen(path: Any, _: Any) -> jax.sharding.PartitionSpec:
    if _name(path) in _SINK:
      return spec(None, 'norm') if _name(path) == sink.SCALE else spec(None)
    axes: Any = params_axes
    for key in path:
      axes = axes[key.key]
    return axes

  of_params = jax.tree.map_with_path(of_frozen, frozen.params)
  return found, dataclasses.replace(frozen, params=of_params)


def check(settings: Trained) -> None:
  """Raises MeJaxError for parts that do not exist or do not go together."""
  parts = settings.parts
  if isinstance(parts, str) or not parts or len(set(parts)) < len(parts):
    raise errors.MeJaxError(
      f'parts is {parts!r}, must be a tuple of some of {", ".join(PARTS)}'
    )
  for part in parts:
    if part not in PARTS:
      raise errors.MeJaxError(
        f'there is no part {part!r} to train, only {", ".join(PARTS)}'
        f'{errors.nearest(str(part), PARTS)}'
      )
  if {'lora', 'full'} <= set(parts):
    raise errors.MeJaxError(
      'lora and full cannot be trained together: the kernels that full trains'
      ' are those that lora adds to'
    )
  if 'lora' in parts:
    lora_lib.check(settings.lora)


def _apart(
  params: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the mask's leaves of one level, and the model's own."""
  mask = {name: leaf for name, leaf in params.items() if name in _SINK}
  return mask, {k: v for k, v in params.items() if k not in _SINK}


def _together(some: Any, others: Any) -> dict[str, Any]:
  """Returns the union of two nested dicts that share no leaf."""
  union = {**others, **some}
  for name in some.keys() & others.keys():
    union[name] = _together(some[name], others[name])
  return union


def _name(path: Any) -> str:
  return path[-1].key
