"""Where can a block be read and written, and how?

A block passes its named values, the *sites*, through `Sites.visit`. Two kinds
of small frozen dataclasses meet them there:

* An *observer* reads: it reduces the value inside the scanned block, and what
  it returns is stacked over layers. `Capture` is the observer that reduces
  nothing and therefore keeps chosen layers only, in a buffer that goes from
  layer to layer; any observer with its methods `start` and `store` has one.
* An *edit* writes: it returns the value that the block goes on with.

Both see a `SiteContext`, whose layer index and operands are traced arrays: a
sweep over layers, channels or positions is one compile. Nothing is computed
unless the call asks for the collection `intermediates`:

  model = model.clone(sites=Sites(observers=(TokenNorm(),)))
  _, state = model.apply(variables, tokens, segments, mutable='intermediates')
  norm_LBT = read(state)['token_norm']

Letters: L layers, C captured layers, B batch, N heads, T time (query), S time
(key), D model width, F FFN width.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any, Protocol

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

# In the order in which a block computes them. `[B, T, D]` unless noted.
SITES = (
  'resid_pre',  # the residual stream as the block receives it
  'attn_unscaled',  # `attn_in` before the mitigation acts, see `sink.py`
  'attn_in',  # what the query, key and value projections receive
  'attn_probs',  # [B, N, T, S] in chunks of queries, see `Sites.measure`
  'attn_out',  # what attention adds to the residual stream
  'resid_mid',
  'ffn_in',  # what the gate and up projections receive
  'ffn_act',  # [B, T, F], act(gate) * up
  'ffn_out',  # what the FFN adds to the residual stream
  'resid_post',
)
# What matrices receive, and what therefore exists as a whole.
_RECEIVED = ('attn_in', 'ffn_in')


@struct.dataclass
class SiteContext:
  """What an observer or edit may know besides the value.

  Attributes:
    layer: int32 scalar, traced; the index of the block being run.
    segments_BT: int32, 0 for padding, else the number of the text.
    operands: arrays given at call time, by name.
    marked_BT: bool, the tokens whose attention input the mitigation scales in
      this block, if there is a scale; None in a step of decoding.
    query_start: index of the first query in a chunk of `attn_probs`.
    captured: values put aside in this block, by `Capture` or by an edit for an
      observer of its own.
  """

  layer: jax.Array
  segments_BT: jax.Array
  operands: Mapping[str, jax.Array]
  marked_BT: jax.Array | None = None
  query_start: int = struct.field(pytree_node=False, default=0)
  captured: dict[str, jax.Array] = struct.field(
    pytree_node=False, default_factory=dict
  )


class Observer(Protocol):
  """Reads one site. Frozen, so that equal observers share one compile.

  Attributes:
    site: one of `SITES`.
    name: the key under which `read` returns the result.
  """

  @property
  def site(self) -> str:
    """One of `SITES`."""

  @property
  def name(self) -> str:
    """The key of the result."""

  def __call__(self, value: jax.Array, context: SiteContext, /) -> Any:
    """Reduces the value of one layer; the results are stacked over layers.

    What an observer of `attn_probs` returns is added up over chunks of queries.
    If it has a method `finish(total, context)`, what that makes of the sum is
    stacked instead.
    """


class Edit(Protocol):
  """Writes one site.

  Attributes:
    site: one of `SITES`.
  """

  @property
  def site(self) -> str:
    """One of `SITES`."""

  def __call__(self, value: jax.Array, context: SiteContext, /) -> jax.Array:
    """Returns the value that the block goes on with, of the same shape."""


@dataclasses.dataclass(frozen=True)
class Capture:
  """Keeps the whole value of chosen layers, and of no other.

  `operands[name]` is int32 `[C]`, the layers wanted: traced, so that other
  layers need no new compile. `read(state)[name]` is `[C, *value.shape]`, in
  float32.

  Attributes:
    site: one of `SITES`.
    name: key of the operand and of the result.
  """

  site: str
  name: str

  def __call__(self, value: jax.Array, context: SiteContext) -> jax.Array:
    """Returns the value; a chunk of `attn_probs` padded to all of it."""
    if self.site != 'attn_probs':
      return value
    time = context.segments_BT.shape[1]
    before = context.query_start
    after = time - before - value.shape[2]
    pads = ((0, 0), (0, 0), (before, after), (0, time - value.shape[3]))
    return jnp.pad(value, pads)

  def start(
    self, shape: tuple[int, ...], operands: Mapping[str, jax.Array]
  ) -> jax.Array:
    """Returns the empty buffer `[C, *shape]`."""
    return jnp.zeros((operands[self.name].shape[0], *shape), jnp.float32)

  def store(
    self, buffer: jax.Array, value: jax.Array, context: SiteContext
  ) -> jax.Array:
    """Returns the buffer with `value` where this layer is wanted."""
    hit_C = context.operands[self.name] == context.layer
    hit = hit_C.reshape((-1,) + (1,) * value.ndim)
    return jnp.where(hit, value.astype(jnp.float32)[None], buffer)


@dataclasses.dataclass(frozen=True)
class Sites:
  """The observers and edits of a model. Static: part of what is compiled.

  Attributes:
    observers: readers, each under a name of its own.
    edits: writers, applied in order.
  """

  observers: tuple[Observer, ...] = ()
  edits: tuple[Edit, ...] = ()

  def __post_init__(self):
    names = [observer.name for observer in self.observers]
    if len(set(names)) < len(names):
      raise ValueError(f'two observers share a name: {sorted(names)}')
    for user in (*self.observers, *self.edits):
      if user.site not in SITES:
        raise ValueError(f'{user.site!r} is no site; sites are {SITES}')

  @property
  def captures(self) -> tuple[Any, ...]:
    """The observers with a buffer: `Capture` and what has its methods."""
    return tuple(o for o in self.observers if hasattr(o, 'store'))

  def touches(self, site: str, *, reading: bool) -> bool:
    """Whether anyone writes the site, or reads it while `reading`."""
    users = (*self.edits, *(self.observers if reading else ()))
    return any(user.site == site for user in users)

  def write(
    self, site: str, value: jax.Array, context: SiteContext
  ) -> jax.Array:
    """Returns the value after the site's edits."""
    for edit in self.edits:
      if edit.site == site:
        value = edit(value, context)
    return value

  def measure(
    self, site: str, value: jax.Array, context: SiteContext
  ) -> dict[str, jax.Array]:
    """Returns what the site's observers make of the value, by name.

    `attn_probs` comes in chunks `[B, N, queries, keys]` with the keys up to
    the last query of the chunk; results of chunks are added up, so an
    observer of it returns the chunk's part of a sum.
    """
    return {o.name: o(value, context) for o in self.observers if o.site == site}

  def finish(
    self, measured: Mapping[str, Any], context: SiteContext
  ) -> dict[str, Any]:
    """Returns what the observers of `attn_probs` make of their sums."""
    done = dict(measured)
    for observer in self.observers:
      finish = getattr(observer, 'finish', None)
      if observer.name in done and finish is not None:
        done[observer.name] = finish(done[observer.name], context)
    return done

  def keep(
    self,
    module: nn.Module,
    measured: Mapping[str, jax.Array],
    context: SiteContext,
  ) -> None:
    """Hands measurements out of the block: captures aside, the rest sown."""
    for observer in self.observers:
      if observer.name not in measured:
        continue
      if hasattr(observer, 'store'):
        context.captured[observer.name] = measured[observer.name]
      else:
        sow(module, observer.name, measured[observer.name])

  def visit(
    self, module: nn.Module, site: str, value: jax.Array, context: SiteContext
  ) -> jax.Array:
    """Lets the edits, then the observers, meet the value of a site."""
    value = self.write(site, value, context)
    # Under jit XLA would drop what nobody reads; eagerly it would be computed.
    if module.is_mutable_collection('intermediates'):
      measured = self.measure(site, value, context)
      if measured and site in _RECEIVED:
        # Before the matrices: a TPU would put the value away until after them.
        value, measured = jax.lax.optimization_barrier((value, measured))
      self.keep(module, measured, context)
    return value


def sow(module: nn.Module, name: str, value: jax.Array) -> None:
  """Sows one value under `intermediates`, overwriting instead of appending."""
  module.sow(
    'intermediates',
    name,
    value,
    init_fn=lambda: None,
    reduce_fn=lambda _, new: new,
  )


def read(state: Mapping[str, Any]) -> dict[str, jax.Array]:
  """Returns what the observers saw in a call of `apply`, by their names.

  Args:
    state: the second result of `apply(..., mutable='intermediates')`.

  Returns:
    `[L, ...]` arrays by observer name; `[C, ...]` for a `Capture`. The same
    for the scanned and the unrolled decoder.

  Examples:
    >>> import dataclasses
    >>> import jax.numpy as jnp
    >>> import me_jax
    >>> from me_jax.models import sites
    >>> @dataclasses.dataclass(frozen=True)
    ... class Largest:
    ...   site: str = 'resid_post'
    ...   name: str = 'largest'
    ...
    ...   def __call__(self, value, context):
    ...     return jnp.max(jnp.abs(value))
    >>> lm = me_jax.load('smollm2')
    >>> batch = me_jax.encode(lm, ['The quick brown fox'])
    >>> model = lm.model.clone(sites=sites.Sites(observers=(Largest(),)))
    >>> _, state = model.apply(
    ...   {'params': lm.params}, *batch, mutable='intermediates'
    ... )
    >>> sites.read(state)['largest'].shape  # a number a layer
    (30,)
  """
  found: dict[str, Any] = {}

  def walk(tree: Mapping[str, Any], into: dict[str, Any]) -> None:
    for key, value in tree.items():
      if isinstance(value, Mapping):
        walk(value, into)
      else:
        into[key] = value

  per_layer: dict[int, dict[str, Any]] = {}
  for key, value in state.get('intermediates', {}).items():
    if key.startswith('layers_'):
      walk(value, per_layer.setdefault(int(key.removeprefix('layers_')), {}))
    else:
      walk({key: value}, found)
  for name in per_layer[0] if per_layer else ():
    found[name] = jnp.stack([per_layer[i][name] for i in sorted(per_layer)])
  return found
