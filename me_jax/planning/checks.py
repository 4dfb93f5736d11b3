"""Is a compiled program sound at scale?

Each check returns findings, a line each; none is good. They read what the
compiler made, so a bad rule of sharding shows here and not on a pod.
"""

from __future__ import annotations

import collections
import math

import jax

from me_jax.models import params as params_lib
from me_jax.planning import amounts
from me_jax.planning import compile as compile_lib
from me_jax.planning import hlo
from me_jax.planning import hlo_text
from me_jax.planning import programs
from me_jax.training import sharding as sharding_lib

# What the scan over layers is called in a program's source.
_LAYERS = '_layers/while'
# Bytes for each token of a device that a measurement may exchange: a few
# numbers of it, never its state.
_MEASURED = 64
# Of an optimiser's bytes, what may be on several devices: norms, counts.
_SMALL = 0.01


def all_checks(
  program: programs.Program, compiled: compile_lib.Compiled, least: int = 0
) -> tuple[str, ...]:
  """Returns the findings of all checks that need one program.

  Args:
    program: what was compiled.
    compiled: the result.
    least: bytes of a device that are worth a finding: of a small model's
      arrays each may be whole.
  """
  if compiled.refused:
    return ()
  found = gathers(program, compiled, least) + logits(program, compiled, least)
  if program.state is not None:
    found += optimizer_state(program, compiled, least)
  return found


def gathers(
  program: programs.Program, compiled: compile_lib.Compiled, least: int = 0
) -> tuple[str, ...]:
  """Finds parameters that are gathered whole outside of the loop over layers.

  There each device would hold all of them at a time. Parts of the head, in the
  loop over the vocabulary, are no whole ones, and one layer may be fetched
  before its turn. A sum is a gather if what is summed are parts among
  zeros; sums of gradients, as of the head after its loop, are none.

  Args:
    program: what was compiled.
    compiled: the result.
    least: bytes that are worth a finding.
  """
  kernels, tables = [], []
  shapes = params_lib.param_shapes(program.config, 'bfloat16')
  cut = program.rules.parts('mlp', program.mesh)
  for path, leaf in jax.tree.leaves_with_path(shapes):
    if leaf.ndim < 2 or sharding_lib.names(path)[-1] == 'weight':
      continue
    inside = sharding_lib.names(path)[0] == 'layers'
    size = math.prod(leaf.shape) // (leaf.shape[0] if inside else 1)
    (kernels if inside else tables).append(size // cut)
  found = []
  for one in hlo.collectives(compiled.text, program.mesh):
    if not one.gathers or not _floats(one.shape):
      continue
    if one.size < least or in_layers(one):
      continue
    bound = min(kernels)
    if f'{_LAYERS}/body' in one.op_name:
      bound = max(kernels) + 1
    elif one.inside_loop:
      # Half of a table and more is no part of it.
      bound = max(min(tables) / 2, bound)
    # Numbers, not bytes: of stand-ins' bfloat16 the compiler makes float32.
    (array,) = hlo_text.arrays(one.shape)
    if one.size / array.bytes * array.elements >= bound:
      found.append(
        f'{one.shape} ({amounts.size(one.size)}) is gathered on every device'
        f' along {", ".join(one.axes)}, outside of the loop over layers'
        f' ({one.op_name or one.name})'
      )
  return tuple(found)


def in_layers(one: hlo.Collective) -> bool:
  """Says whether the loop over layers repeats an exchange.

  Which loop it is in decides: what the compiler moves out of one keeps its name.
  """
  return any(loop.endswith(_LAYERS) for loop in one.loops)


def logits(
  program: programs.Program, compiled: compile_lib.Compiled, least: int = 0
) -> tuple[str, ...]:
  """Finds arrays as large as the logits of all tokens.

  Args:
    program: what was compiled.
    compiled: the result.
    least: bytes that are worth a finding.
  """
  rules, mesh = program.rules, program.mesh
  tokens = program.tokens // (
    rules.parts('batch', mesh) * rules.parts('time', mesh)
  )
  vocabulary = program.config.vocab_size // rules.parts('act_vocab', mesh)
  # Of a head that is whole on a device there may be as much.
  own = {
    tuple(sorted((program.config.hidden_size, size)))
    for size in (program.config.vocab_size, vocabulary)
  }
  found, bound = [], max(2 * tokens * vocabulary, least)
  for buffer in hlo.buffers(compiled.text, bound - 1):
    (array,) = hlo_text.arrays(buffer.shape)
    dims = tuple(sorted(size for size in array.dims if size > 1))
    if not array.dtype.startswith(('f', 'bf')) or dims in own:
      continue
    if any(size % vocabulary == 0 for size in dims):
      found.append(
        f'{buffer.shape} ({amounts.size(buffer.bytes)}) are the logits of all'
        f' tokens ({", ".join(buffer.op_names[:1]) or buffer.names[0]})'
      )
  return tuple(found)


def optimizer_state(
  program: programs.Program, compiled: compile_lib.Compiled, least: int = 0
) -> tuple[str, ...]:
  """Finds what an optimiser keeps on more devices than the data axis says.

  Args:
    program: a step.
    compiled: the result, by whose word of where arguments lie.
    least: bytes that are worth a finding.
  """
  assert program.state is not None, program.name
  state, placed = program.held, compiled.places[program.state]
  leaves = jax.tree.leaves_with_path(state.optimizer)
  places = jax.tree.leaves(
    placed.optimizer, is_leaf=lambda x: x is None or _is_place(x)
  )
  total = sum(_size(leaf) for _, leaf in leaves)
  allowed = program.mesh.shape['data']
  found = []
  for (path, leaf), place in zip(leaves, places, strict=True):
    if place is None or _size(leaf) < max(_SMALL * total, least):
      continue
    local = math.prod(place.shard_shape(leaf.shape))
    copies = local * len(place.device_set) // math.prod(leaf.shape)
    if copies > allowed:
      found.append(
        f'{jax.tree_util.keystr(path)} {list(leaf.shape)} of the optimiser is'
        f' on {copies} devices of {len(place.device_set)}'
      )
  return tuple(found)


def measuring(
  program: programs.Program,
  compiled: compile_lib.Compiled,
  plain: compile_lib.Compiled,
) -> tuple[str, ...]:
  """Finds exchanges that an analysis adds to a plain pass.

  Reductions to a few numbers a token are as they must be; whole states and
  parameters are not.

  Args:
    program: the analysis.
    compiled: the result.
    plain: of the pass that measures nothing, on the same rows and mesh.
  """
  rules, mesh = program.rules, program.mesh
  tokens = program.tokens // (
    rules.parts('batch', mesh) * rules.parts('time', mesh)
  )
  least = tokens * _MEASURED
  left = _sent(plain, mesh)
  found = []
  for key, (size, times, where) in _large(compiled, mesh, least).items():
    more = times - left[key]
    if more > 0:
      kind, shape, axes = key
      found.append(
        f'{more} × {kind} of {shape} ({amounts.size(size)}) along'
        f' {", ".join(axes)}, which a plain pass has not ({where})'
      )
  return tuple(found)


def _sent(
  compiled: compile_lib.Compiled, mesh: jax.sharding.Mesh
) -> collections.Counter:
  """Counts exchanges by kind, shape and axes."""
  counted: collections.Counter = collections.Counter()
  for one in hlo.collectives(compiled.text, mesh):
    counted[one.kind, one.shape, one.axes] += one.times
  return counted


def _large(
  compiled: compile_lib.Compiled, mesh: jax.sharding.Mesh, least: int
) -> dict[tuple[str, str, tuple[str, ...]], tuple[int, int, str]]:
  """Returns size, times and origin of exchanges by kind, shape and axes."""
  found: dict = {}
  for one in hlo.collectives(compiled.text, mesh):
    if one.size <= least:
      continue
    key = one.kind, one.shape, one.axes
    size, times, where = found.get(key, (one.size, 0, one.op_name or one.name))
    found[key] = size, times + one.times, where
  return found


def _is_place(x: object) -> bool:
  return isinstance(x, jax.sharding.Sharding)


def _size(leaf: jax.ShapeDtypeStruct) -> int:
  return math.prod(leaf.shape) * leaf.dtype.itemsize


def _floats(shape: str) -> bool:
  return any(
    array.dtype.startswith(('f', 'bf')) for array in hlo_text.arrays(shape)
  )
