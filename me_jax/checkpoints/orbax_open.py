"""How does a saved folder become parameters on any mesh, in any type?

Orbax writes the tree as zarr arrays in one TensorStore database, by names such
as `layers.mlp.up_proj.kernel`. They are read by TensorStore itself: Orbax's
own `restore` does not say what a cast has lost, and after an error in one of
several arrays its closed event loop writes tracebacks to the terminal.

The database checks its index by checksums but not the values: a flipped bit
that leaves them finite cannot be noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent import futures
import dataclasses
import functools
import itertools
import math
import os
from typing import Any

import jax
import numpy as np

from me_jax import errors
from me_jax.checkpoints import assemble
from me_jax.checkpoints import finite
from me_jax.checkpoints import leaves as leaves_lib
from me_jax.checkpoints import memory
from me_jax.checkpoints import orbax_card
from me_jax.checkpoints import param_tree
from me_jax.checkpoints import sink_leaves
from me_jax.checkpoints import tokenizer as tokenizer_lib
from me_jax.models import config as config_lib

_ARRAY = '/.zarray'
# Each holds a chunk twice for a moment.
_THREADS = min(2, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True, eq=False)
class StoredLeaf:
  """One parameter in the database.

  Attributes:
    path: its place in the tree, such as `layers/mlp/up_proj/kernel`.
    folder: the database, for messages.
    store: the open array, of TensorStore.
  """

  path: str
  folder: str
  store: Any = dataclasses.field(repr=False)

  @property
  def shape(self) -> tuple[int, ...]:
    """In the tree."""
    return tuple(self.store.shape)

  @property
  def dtype(self) -> np.dtype:
    """As it is stored."""
    return self.store.dtype.numpy_dtype

  def read(
    self, index: tuple[slice, ...], dtype: np.dtype, pool: futures.Executor
  ) -> np.ndarray:
    """Returns a part of the values in a fresh buffer.

    Args:
      index: which, a slice with start and stop for each axis.
      dtype: to cast to.
      pool: reads the chunks, which are stored and checked one by one.

    Raises:
      MeJaxError: they cannot be read, or are not finite in this type.
    """
    buffer = memory.allocate(
      tuple(part.stop - part.start for part in index), dtype
    )
    chunk = self.store.chunk_layout.read_chunk.shape
    cells = itertools.product(*map(_cut, index, chunk))

    def fill(cell: tuple[slice, ...]) -> None:
      place = tuple(
        slice(part.start - whole.start, part.stop - whole.start)
        for part, whole in zip(cell, index)
      )
      buffer[place] = self._read_chunk(cell, dtype)

    for _ in pool.map(fill, cells):
      pass
    return buffer

  def _read_chunk(self, cell: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
    """Returns values of one chunk, checked and cast."""
    try:
      values = self.store[cell].read().result()
    # TensorStore tells what is wrong by ValueError and others.
    except Exception as error:
      raise orbax_card.failure(
        f'cannot read {self.path} in {self.folder}, which is damaged', error
      ) from error
    if not finite.in_pieces(values):
      raise errors.MeJaxError(
        f'{self.folder}: {self.path} holds NaN or infinite values: the'
        ' checkpoint is broken'
      )
    with np.errstate(over='ignore'):
      result = values.astype(dtype, copy=False)
    if dtype != values.dtype and not finite.in_pieces(result):
      raise errors.MeJaxError(
        f'{self.folder}: {self.path} holds values too large for {dtype}: load'
        ' it as float32 or bfloat16'
      )
    return result


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SavedModel:
  """A folder that `save` has written, with its headers read.

  Attributes:
    path: the folder.
    config: what the model is.
    metadata: what was given to `save`.
    leaves: its parameters by path, unread.
  """

  path: str
  config: config_lib.ModelConfig
  metadata: dict[str, Any]
  leaves: Mapping[str, StoredLeaf] = dataclasses.field(repr=False)

  @property
  def stored_dtype(self) -> str:
    """The type that all parameters have; float32 where they differ.

    The mitigation's own do not count.
    """
    return param_tree.common_dtype(
      leaf.dtype
      for path, leaf in self.leaves.items()
      if not sink_leaves.is_one(path)
    )

  def param_shapes(self, dtype: str = 'float32') -> dict[str, Any]:
    """Returns what `load_params` does, as `jax.ShapeDtypeStruct`s."""
    shapes = {
      path: jax.ShapeDtypeStruct(leaf.shape, sink_leaves.dtype_of(path, dtype))
      for path, leaf in self.leaves.items()
    }
    return leaves_lib.unflatten(shapes)

  def load_tokenizer(self) -> Any:
    """Returns the tokenizer, None when there is none."""
    folder = os.path.join(self.path, orbax_card.TOKENIZER)
    return tokenizer_lib.load(folder) if os.path.isdir(folder) else None

  def load_params(
    self,
    dtype: str = 'float32',
    shardings: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
  ) -> dict[str, Any]:
    """Reads the parameters; arguments and errors as in `load.load`."""
    param_tree.check_dtype(dtype)
    shapes = leaves_lib.flatten(self.param_shapes(dtype))
    places = {}
    if shardings is not None:
      sizes = {path: shape.shape for path, shape in shapes.items()}
      places = leaves_lib.check_shardings(sizes, shardings)
    total = sum(map(_nbytes, shapes.values()))
    done = 0
    result = {}
    with futures.ThreadPoolExecutor(_THREADS) as pool:
      for path, leaf in self.leaves.items():
        kind = shapes[path].dtype
        result[path] = assemble.place(
          leaf.shape,
          places.get(path),
          functools.partial(leaf.read, dtype=kind, pool=pool),
        )
        done += _nbytes(shapes[path])
        if progress is not None:
          progress(done, total)
    sink_leaves.check_values(result, self.path)
    return leaves_lib.unflatten(result)


def open_folder(folder: str) -> SavedModel:
  """Reads the headers of a folder that `save` has written.

  Args:
    folder: an Orbax checkpoint.

  Raises:
    MeJaxError: it is not complete, not ours, or broken.
  """
  folder = os.path.abspath(folder)
  config, metadata = orbax_card.read(folder)
  where = os.path.join(folder, orbax_card.PARAMS)
  # A database that is to be opened would else be made where there is none.
  if not os.path.isdir(where):
    raise errors.MeJaxError(f'{folder} holds no parameters: it is broken')
  try:
    found = _open_arrays(where)
  # As in `StoredLeaf.read`.
  except Exception as error:
    raise orbax_card.failure(
      f'cannot read {where}, which is damaged', error
    ) from error
  leaves = param_tree.check(
    config, leaves_lib.unflatten(found), f'the parameters in {where}'
  )
  return SavedModel(
    path=folder, config=config, metadata=metadata, leaves=leaves
  )


def _open_arrays(folder: str) -> dict[str, StoredLeaf]:
  """Returns all arrays of a database, unread."""
  import tensorstore

  base = {'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{folder}/'}}
  context = tensorstore.Context()
  database = tensorstore.KvStore.open(base, context=context).result()
  found = {}
  for key in database.list().result():
    name = key.decode()
    if not name.endswith(_ARRAY):
      continue
    name = name.removesuffix(_ARRAY)
    spec = {
      'driver': 'zarr',
      'kvstore': base | {'path': f'{name}/'},
      # What is missing is an error, not zeros.
      'fill_missing_data_reads': False,
    }
    store = tensorstore.open(spec, read=True, context=context).result()
    path = name.replace('.', '/')
    found[path] = StoredLeaf(path, folder, store)
  return found


def _nbytes(shape: jax.ShapeDtypeStruct) -> int:
  return math.prod(shape.shape) * shape.dtype.itemsize


def _cut(part: slice, step: int) -> list[slice]:
  """Cuts a slice at the multiples of `step`."""
  borders = range(part.start // step * step + step, part.stop, step)
  return [
    slice(*pair)
    for pair in itertools.pairwise([part.start, *borders, part.stop])
  ]
