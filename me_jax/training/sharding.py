"""Which part of a model lies on which device?

`Rules` is the one table: from the logical axes that the modules name to the
axes of a mesh, whose names are fixed:

  data      cuts rows of a batch; parameters are copied
  fsdp      cuts rows, and parameters, which are gathered layer by layer
  sequence  cuts the tokens of a row, and parameters as fsdp does
  tensor    cuts heads, FFN width and vocabulary

`fit` says before any work whether a model and a batch can be cut so. Where
batches and optimiser states lie is in `placement`.

Letters: L layers, D model width, N heads, K key-value heads.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
import contextlib
import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from me_jax import errors
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.models import params as params_lib
from me_jax.models import sink
from me_jax.training import grids

# The innermost axes exchange most and get the nearest devices.
MESH_AXES = ('data', 'fsdp', 'sequence', 'tensor')

# What a run has instead of another mesh, where that is a setting.
_OTHER = {
  'batch': 'another number of rows (data.batch)',
  'time': 'another length (data.length)',
}

# Logical axes of all arrays that modules lay out, but for those that are a part
# of another's. No two axes of an array may be cut along one axis of a mesh.
ARRAYS = (
  ('vocab', 'embed'),
  ('layers', 'embed', 'mlp'),
  ('layers', 'embed', 'heads'),
  ('layers', 'embed', 'kv_heads'),
  ('layers', 'norm'),
  ('layers', 'head_dim'),
  ('batch', 'time', 'act_embed'),
  ('batch', 'time', 'act_mlp'),
  ('batch', 'time', 'act_vocab'),
  ('batch', 'time', 'act_heads', 'act_head_dim'),
  ('batch', 'time', 'act_kv_heads', 'act_head_dim'),
  ('layers', 'batch', 'act_kv_heads', 'act_head_dim'),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """Along which mesh axes each logical axis is cut; along none if empty.

  Names that begin with `act_` are of activations, the others of parameters.
  Activations that are too short, as the one token of a step of decoding is,
  stay whole.

  Attributes:
    batch: rows.
    time: tokens of a row.
    vocab: of the embedding and the head.
    embed: model width of matrices.
    mlp: FFN width.
    heads: query heads, each whole.
    kv_heads: key-value heads, each whole.
    norm: weights of norms: so few that to gather them costs more than they do.
    head_dim: width of a head, where a norm has it.
    layers: the axis that is scanned.
    act_embed: of the residual stream and what a branch receives.
    act_mlp: of what the FFN's last matrix receives.
    act_heads: of queries.
    act_kv_heads: of keys, values and the cache.
    act_head_dim: of all three.
    act_vocab: of logits.
  """

  batch: tuple[str, ...] = ('data', 'fsdp')
  time: tuple[str, ...] = ('sequence',)
  vocab: tuple[str, ...] = ('tensor',)
  embed: tuple[str, ...] = ('fsdp', 'sequence')
  mlp: tuple[str, ...] = ('tensor',)
  heads: tuple[str, ...] = ('tensor',)
  kv_heads: tuple[str, ...] = ('tensor',)
  norm: tuple[str, ...] = ()
  head_dim: tuple[str, ...] = ()
  layers: tuple[str, ...] = ()
  act_embed: tuple[str, ...] = ()
  act_mlp: tuple[str, ...] = ('tensor',)
  act_heads: tuple[str, ...] = ('tensor',)
  act_kv_heads: tuple[str, ...] = ('tensor',)
  act_head_dim: tuple[str, ...] = ()
  act_vocab: tuple[str, ...] = ('tensor',)

  def __post_init__(self):
    """Raises MeJaxError for an unknown mesh axis and for collisions."""
    for axis, names in dataclasses.asdict(self).items():
      if not isinstance(names, tuple):
        raise errors.MeJaxError(
          f'the rule of {axis} is {names!r}, must be a tuple of mesh axes.'
        )
      for name in names:
        if name not in MESH_AXES:
          raise errors.MeJaxError(
            f'the rule of {axis} names {name!r}, which is no mesh axis'
            f'{errors.nearest(str(name), MESH_AXES)}: there are'
            f' {", ".join(MESH_AXES)}.'
          )
    for axes in ARRAYS:
      self.spec(axes)

  def spec(self, axes: Sequence[str | None]) -> jax.P:
    """Returns how an array is cut.

    Args:
      axes: logical names, one a dimension; None is in no part.

    Raises:
      MeJaxError: two of its dimensions would be cut along one mesh axis.
    """
    owner: dict[str, str | None] = {}
    for axis in axes:
      for name in getattr(self, axis) if axis else ():
        if name in owner:
          raise errors.MeJaxError(
            f'the rules cut both {owner[name]} and {axis} of an array'
            f' ({", ".join(map(str, axes))}) along {name}: only one can be.'
          )
        owner[name] = axis
    return jax.P(
      *((getattr(self, axis) or None) if axis else None for axis in axes)
    )

  def parts(
    self, axis: str, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
  ) -> int:
    """Returns into how many parts a mesh cuts a logical axis."""
    return math.prod(mesh.shape[name] for name in getattr(self, axis))


DEFAULT = Rules()


def mesh(
  *,
  data: int = 1,
  fsdp: int = -1,
  tensor: int = 1,
  sequence: int = 1,
  devices: Sequence[Any] | None = None,
) -> jax.sharding.Mesh:
  """Arranges devices, near ones along the axes that exchange most.

  Where devices are in several slices (TPU pods joined by a network, GPU hosts),
  the outer axes span slices as far as their sizes allow.

  Args:
    data: size of that axis; -1, in one of the four, is what the others leave.
    fsdp: the same.
    tensor: the same.
    sequence: the same.
    devices: all of which are used; None for all there are.

  Raises:
    MeJaxError: the sizes do not fit the devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = {'data': data, 'fsdp': fsdp, 'sequence': sequence, 'tensor': tensor}
  rest = [name for name, size in sizes.items() if size == -1]
  for name, size in sizes.items():
    if type(size) is not int or (size < 1 and size != -1):
      raise errors.MeJaxError(
        f'mesh axis {name} is {size!r}, must be 1 or more, or -1 for the rest.'
      )
  if len(rest) > 1:
    raise errors.MeJaxError(
      f'mesh axes {" and ".join(rest)} are -1: only one can be the rest.'
    )
  asked = math.prod(size for size in sizes.values() if size != -1)
  if (len(devices) % asked or not devices) if rest else asked != len(devices):
    product = ' × '.join(f'{k} {v}' for k, v in sizes.items() if v != -1)
    verb = 'does not divide' if rest else 'is not'
    raise errors.MeJaxError(
      f'a mesh of {product} = {asked} {verb} the number of devices,'
      f' {len(devices)}: change a size, make one -1 for the rest, or name'
      ' fewer devices.'
    )
  for name in rest:
    sizes[name] = len(devices) // asked
  shape = tuple(sizes[name] for name in MESH_AXES)
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  kinds = (jax.sharding.AxisType.Auto,) * len(shape)
  try:
    array = grids.arrange(shape, spans(shape, slices), devices)
    return jax.sharding.Mesh(array, MESH_AXES, axis_types=kinds)
  except (AssertionError, NotImplementedError, ValueError) as error:
    product = ' × '.join(f'{k} {v}' for k, v in sizes.items())
    raise errors.MeJaxError(
      f'these devices cannot be arranged as {product}: {error}'
    ) from error


def spans(shape: Sequence[int], slices: int) -> tuple[int, ...]:
  """Returns how many slices each mesh axis spans, the outer ones first.

  Args:
    shape: sizes of the axes.
    slices: divides their product.
  """
  result = []
  for size in shape:
    result.append(math.gcd(size, slices))
    slices //= result[-1]
  return tuple(result)


def fit(
  config: config_lib.ModelConfig,
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
  rules: Rules = DEFAULT,
  *,
  rows: int | None = None,
  length: int | None = None,
) -> Rules:
  """Returns the rules by which a model can be cut.

  They are those that are given, but where there are fewer key-value heads than
  parts of them, every part gets them all: to refuse would bar models with few
  of them from meshes that suit the rest of them. It costs N / K times less than
  the same would of queries, and the cache.

  Args:
    config: of the model.
    mesh: with all four axes, from `mesh`.
    rules: wanted.
    rows: of a global batch; None if there is none.
    length: tokens of a row.

  Raises:
    MeJaxError: a size is not divided by the parts that it is cut into.
  """
  missing = set(MESH_AXES) - set(mesh.axis_names)
  if missing:
    raise errors.MeJaxError(
      f'the mesh has no axis {min(missing)}: make it with sharding.mesh.'
    )
  for axis in ('kv_heads', 'act_kv_heads'):
    parts, heads = rules.parts(axis, mesh), config.num_key_value_heads
    if parts > heads and parts % heads == 0:
      rules = dataclasses.replace(rules, **{axis: ()})
  for axis, (size, what) in _sizes(config, rows, length).items():
    parts = rules.parts(axis, mesh)
    if size is not None and size % parts:
      names = ' × '.join(f'{n} {mesh.shape[n]}' for n in getattr(rules, axis))
      raise errors.MeJaxError(
        f'{names} does not divide {size} {what}: choose another mesh, or'
        f' {_OTHER.get(axis, f"leave that axis whole: Rules({axis}=(), ...)")}.'
      )
  return rules


def _sizes(
  config: config_lib.ModelConfig, rows: int | None, length: int | None
) -> dict[str, tuple[int | None, str]]:
  """Returns what the mesh must divide, and how a message names it."""
  heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
  normed = config.hidden_size
  if config.qk_norm == 'projection':
    width = config.head_dim
    normed = math.gcd(normed, heads * width, kv_heads * width)
  both = {
    'embed': (config.hidden_size, 'channels'),
    'mlp': (config.intermediate_size, 'neurons of an FFN'),
    'heads': (heads, 'attention heads'),
    'kv_heads': (kv_heads, 'key-value heads'),
    'head_dim': (config.head_dim, 'dimensions of a head'),
    'vocab': (config.vocab_size, 'tokens of the vocabulary'),
  }
  return (
    both
    | {f'act_{axis}': size for axis, size in both.items()}
    | {
      'norm': (normed, 'weights of a norm'),
      'layers': (config.num_hidden_layers, 'layers'),
      'batch': (rows, 'rows of a batch'),
      'time': (length, 'tokens of a row'),
    }
  )


def shardings(
  config: config_lib.ModelConfig,
  mesh: jax.sharding.Mesh,
  rules: Rules = DEFAULT,
  *,
  params: Mapping[str, Any] | None = None,
) -> Any:
  """Returns where each parameter lies.

  Args:
    config: of the model.
    mesh: from `mesh`.
    rules: are fitted to the model.
    params: a tree of arrays or shapes for which it is wanted, if it has other
      leaves than the stock model's. `sink_scale` lies as norms do. A leaf
      beside a kernel, with as many dimensions (a low-rank factor), is cut as
      the kernel is in the dimensions that are as long; any other is on every
      device.

  Returns:
    A tree of `NamedSharding`, which is what `me_jax.load` takes.

  Raises:
    MeJaxError: the model does not fit the mesh.
  """
  rules = fit(config, mesh, rules)
  stock = params_lib.param_shapes(config, 'float32')
  axes = logical_axes(config)
  known = {
    names(path): (leaf.shape, tuple(spec))
    for (path, leaf), (_, spec) in zip(
      jax.tree.leaves_with_path(stock), jax.tree.leaves_with_path(axes)
    )
  }

  def place(path: Any, leaf: Any) -> jax.NamedSharding:
    spec = rules.spec(_axes(names(path), leaf.shape, known))
    return jax.NamedSharding(mesh, spec)

  tree = stock if params is None else params
  return jax.tree.map_with_path(place, tree)


def logical_axes(config: config_lib.ModelConfig) -> Any:
  """Returns the logical axes of a model's parameters, a tree of PartitionSpecs.

  Args:
    config: of the model.
  """
  key = jax.eval_shape(jax.random.key, 0)  # a real one would start the device
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(decoder.Decoder(config).init, key, tokens)
  return nn.get_partition_spec(shapes['params'])


def names(path: Sequence[Any]) -> tuple[str, ...]:
  """Returns the names on a leaf's path, of dictionaries and attributes."""
  return tuple(
    str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key))))
    for key in path
  )


def _axes(
  path: tuple[str, ...],
  shape: tuple[int, ...],
  known: Mapping[tuple[str, ...], tuple[tuple[int, ...], tuple]],
) -> tuple[str | None, ...]:
  """Returns a leaf's logical axes, guessed from its neighbours if need be."""
  if path in known and known[path][0] == shape:
    return known[path][1]
  if path[-1] == sink.SCALE and len(shape) == 2:
    return ('layers', 'norm')
  for end in range(len(path) - 1, 0, -1):
    for name in ('kernel', 'embedding'):
      full, axes = known.get((*path[:end], name), ((), ()))
      if full and len(full) == len(shape):
        return tuple(
          axis if size == whole else None
          for axis, size, whole in zip(axes, shape, full)
        )
  return (None,) * len(shape)


@contextlib.contextmanager
def use(mesh: jax.sharding.Mesh, rules: Rules = DEFAULT) -> Generator[None]:
  """Makes a mesh and rules those that modules and `logical_axes` see.

  What is traced inside is laid out so. A jitted function that was traced under
  other rules with the same mesh is not traced again.

  Args:
    mesh: from `mesh`.
    rules: fitted to the model by `fit`.
  """
  pairs = [(k, v or None) for k, v in dataclasses.asdict(rules).items()]
  with jax.set_mesh(mesh), nn.logical_axis_rules(pairs):
    yield
