"""How do stored tensors become the parameter tree?

Each leaf gets one buffer, layers stacked, which a few threads fill piece by
piece: read, decode, check, cast, transpose. A piece is small enough to stay in
a core's cache, so a load costs about one pass over the data, and peaks near
the size of the parameters. On the CPU, JAX takes the buffers over as they are.

Letters: L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import concurrent.futures
import functools
import math
import os
import threading
from typing import Any

import jax
import numpy as np

from me_jax import errors
from me_jax.checkpoints import finite
from me_jax.checkpoints import leaves as leaves_lib
from me_jax.checkpoints import memory
from me_jax.checkpoints import names as names_lib
from me_jax.checkpoints import tensors as tensors_lib

Progress = Callable[[int, int], None]

# Values a piece: 1 MB of float32 stays in a level-two cache.
_PIECE = 1 << 18
# Rows that are transposed together: a cache line's worth, a few times over.
_BAND = 64
_ALIGNMENT = 64


def assemble(
  shapes: Mapping[str, Any],
  tensors: Mapping[str, tensors_lib.StoredTensor],
  names: names_lib.NameTable,
  *,
  shardings: Mapping[str, Any] | None = None,
  progress: Progress | None = None,
) -> dict[str, Any]:
  """Reads the parameters of a model.

  Args:
    shapes: the tree to fill, of `jax.ShapeDtypeStruct`; layers are stacked
      `[L, ...]` under `layers`. Values are cast to its dtypes.
    tensors: what the checkpoint holds, by name.
    names: which of them each leaf comes from.
    shardings: a tree like `shapes` of `jax.sharding.Sharding`. Each device
      then reads its own slice only. None: all on the default device.
    progress: called with bytes of parameters done and in total.

  Returns:
    The tree, as plain nested dicts of `jax.Array`.

  Raises:
    MeJaxError: a tensor is missing, unused, of the wrong shape, of a type that
      cannot be loaded, or holds values that are not finite.
  """
  leaves = leaves_lib.plan(shapes, tensors, names)
  placements = {}
  if shardings is not None:
    sizes = {leaf.path: leaf.shape for leaf in leaves}
    placements = leaves_lib.check_shardings(sizes, shardings)
  total = sum(leaf.nbytes for leaf in leaves)
  done = 0
  result = {}
  threads = min(4, os.cpu_count() or 1)
  _keep_freed_pieces()
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for leaf in leaves:
      result[leaf.path] = place(
        leaf.shape,
        placements.get(leaf.path),
        functools.partial(_read, leaf, pool),
      )
      done += leaf.nbytes
      if progress is not None:
        progress(done, total)
  return leaves_lib.unflatten(result)


class _Scratch(threading.local):
  """A buffer for each thread: fresh memory costs more than what fills it."""

  _buffer = np.empty(0, np.uint8)

  def take(self, nbytes: int) -> np.ndarray:
    """Returns a buffer whose contents last until the thread asks again."""
    if self._buffer.size < nbytes:
      self._buffer = np.empty(nbytes, np.uint8)
    return self._buffer


# Of the threads that read, which end with the load.
_scratch = _Scratch()


def place(
  shape: tuple[int, ...],
  sharding: jax.sharding.Sharding | None,
  read: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
  """Reads an array onto devices, each distinct slice of it once.

  Args:
    shape: of the whole array.
    sharding: where it shall lie; None is the default device.
    read: returns a slice, given start and stop of each axis, in a buffer that
      nobody else uses.
  """
  if sharding is None:
    whole = tuple(slice(0, size) for size in shape)
    return jax.device_put(read(whole), may_alias=True)

  @functools.cache
  def once(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
    return read(tuple(slice(*bound) for bound in bounds))

  def callback(index: Any) -> np.ndarray:
    pairs = zip(index, shape, strict=True)
    return once(tuple(part.indices(size)[:2] for part, size in pairs))

  return jax.make_array_from_callback(shape, sharding, callback)


def _read(
  leaf: leaves_lib.Leaf,
  pool: concurrent.futures.ThreadPoolExecutor,
  index: tuple[slice, ...],
) -> np.ndarray:
  """Returns one slice of a leaf in a fresh buffer."""
  shape = tuple(part.stop - part.start for part in index)
  buffer = memory.allocate(shape, leaf.dtype)
  layers = [(buffer, leaf.tensors[0])]
  if leaf.stacked:
    layers = list(zip(buffer, leaf.tensors[index[0]], strict=True))
    index = index[1:]
  rows, *columns = index[::-1] if leaf.origin.transpose else index
  jobs = [
    (target, tensor, start, stop)
    for target, tensor in layers
    for start, stop in _pieces(rows, tensor.shape, leaf.origin.rotary_rows)
  ]

  def fill(job) -> None:
    target, tensor, start, stop = job
    if start == rows.start:
      memory.populate(target)
    target = target.T if leaf.origin.transpose else target
    values = _rows(tensor, leaf.origin, start, stop)[:, *columns]
    values = _cast(values, leaf.dtype, tensor)
    if leaf.origin.transpose:
      values = _spread(values)
    target = target[start - rows.start : stop - rows.start]
    for band in range(0, len(values), _BAND):
      target[band : band + _BAND] = values[band : band + _BAND]

  for _ in pool.map(fill, jobs):
    pass
  return buffer


def _pieces(
  rows: slice, shape: tuple[int, ...], rotary_rows: int
) -> Iterator[tuple[int, int]]:
  """Splits rows into pieces, at the borders of heads where that matters."""
  step = max(1, _PIECE // max(1, math.prod(shape[1:])))
  if rotary_rows:
    step = -(-step // rotary_rows) * rotary_rows
  start = rows.start
  while start < rows.stop:
    stop = min(rows.stop, (start // step + 1) * step)
    yield start, stop
    start = stop


def _rows(
  tensor: tensors_lib.StoredTensor,
  origin: names_lib.Origin,
  start: int,
  stop: int,
) -> np.ndarray:
  """Returns rows `[start, stop)` of a parameter as our tree orders them."""
  head = origin.rotary_rows or 1
  first, last = start // head * head, -(-stop // head) * head
  values = tensor.read(
    origin.first_row + first,
    origin.first_row + last,
    _scratch.take((last - first) * tensor.row_nbytes),
  )
  if origin.rotary_rows:
    # Row 2 i + j of a head is row i + j H / 2 here.
    pairs = values.reshape(-1, head // 2, 2, *values.shape[1:])
    values = pairs.swapaxes(1, 2).reshape(values.shape)
  if origin.offset:
    values = values.astype(np.float32) + np.float32(origin.offset)
  return values[start - first : stop - first]


def _cast(
  values: np.ndarray, dtype: np.dtype, tensor: tensors_lib.StoredTensor
) -> np.ndarray:
  """Casts, and raises when a value is not finite afterwards."""
  with np.errstate(over='ignore', invalid='ignore'):
    result = values.astype(dtype, copy=False)
  if not finite.all_finite(result):
    what = 'NaN or infinite values: the checkpoint is broken'
    if finite.all_finite(values):
      what = f'values too large for {dtype}: load it as float32 or bfloat16'
    raise errors.MeJaxError(
      f'{tensor.file.path}: tensor {tensor.name} holds {what}'
    )
  return result


def _keep_freed_pieces() -> None:
  """Lets the threads use the memory of one piece again for the next.

  glibc hands buffers above a size (128 kB at first) back to the system when
  they are freed, to be taken and zeroed anew: half a million pages for a model
  in K-quants. It raises that size to the largest buffer it saw freed.
  """
  np.empty(16 * _PIECE, np.uint8)


def _spread(values: np.ndarray) -> np.ndarray:
  """Moves rows apart whose first bytes meet in a few sets of the cache.

  A transpose reads a band of rows side by side. At a distance of a multiple of
  1 kB they push each other out: 4 to 6 times slower at widths like 4096.
  """
  count, columns = values.shape
  line = _ALIGNMENT // values.itemsize
  if columns % (16 * line):
    return values
  spread = np.empty((count, columns + line), values.dtype)[:, :columns]
  np.copyto(spread, values)
  return spread
