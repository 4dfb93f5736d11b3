"""Which rows make the batch of a step, on which host?

The order is a function of the step alone: nothing is read ahead, so that a run
that was stopped after any step goes on with the batches that an uninterrupted
one would see, on as many hosts as there are then. Every source repeats for
ever, in another order each epoch, and a mix takes from each in proportion to
its weight. Every host knows all rows, and lays out those of its share.

Letters: B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
import math
from typing import Any, NamedTuple

import numpy as np

from me_jax import errors
from me_jax.training import epoch as epoch_lib
from me_jax.training import examples as examples_lib
from me_jax.training import packing


class Prompts(NamedTuple):
  """Prompts to sample answers for.

  Attributes:
    tokens: int32 token ids of each prompt, of any length.
    rows: that the prompts were read from.
  """

  tokens: tuple[np.ndarray, ...]
  rows: tuple[Any, ...]


Batch = packing.Packed | packing.PackedPairs | Prompts


class Batches:
  """An endless iterator over a host's share of every batch.

  Attributes:
    counts: what each source gives.
    epoch: steps in which each row is seen, those of the source that takes
      longest included.
  """

  def __init__(
    self,
    sources: Sequence[examples_lib.Encoded],
    weights: Sequence[float],
    *,
    batch_size: int,
    seed: int = 0,
    pack: bool = True,
    hosts: int = 1,
    host: int = 0,
  ):
    """Lays out the rows of every epoch.

    Args:
      sources: of one kind and length.
      weights: share of the rows of batches that each source gets; they need
        not sum to one.
      batch_size: rows of a batch over all hosts.
      seed: of the order.
      pack: whether several texts share a row; pairs and prompts never do.
      hosts: how many processes read.
      host: index of this one.

    Raises:
      MeJaxError: an argument is out of range, or grain is not installed.
    """
    _check(sources, weights, batch_size, seed, hosts, host)
    grain = _grain()
    kind, length = sources[0].kind, sources[0].length
    rows = [epoch_lib.rows(source, pack) for source in sources]
    self.counts = tuple(
      epoch_lib.count(source, len(some)) for source, some in zip(sources, rows)
    )
    share = np.array(weights) / sum(weights) * batch_size
    self.epoch = max(
      math.ceil(len(some) / part) for some, part in zip(rows, share)
    )
    # Two sources of the same size must not be in the same order.
    seeds = np.random.SeedSequence(seed).generate_state(len(rows))
    order = grain.MapDataset.mix(
      [
        grain.MapDataset.source(some).shuffle(int(own)).repeat()
        for some, own in zip(rows, seeds)
      ],
      [float(weight) for weight in weights],
    )
    # Batches of a host's size, of which it takes every `hosts`-th: its share
    # of a batch is contiguous, as arrays that are sharded over hosts want it.
    shares = order.batch(
      batch_size // hosts,
      drop_remainder=True,
      batch_fn=functools.partial(_batch, kind=kind, length=length),
    )[host::hosts]
    # All is in memory: threads that read ahead would only be in the way.
    read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    self._iterator = iter(shares.to_iter_dataset(read))
    self._first = self._iterator.get_state()
    self._made_from = {
      'kind': kind,
      'length': length,
      'batch_size': int(batch_size),
      'seed': int(seed),
      'pack': pack,
      'weights': [float(weight) for weight in weights],
      'data': [epoch_lib.digest(source) for source in sources],
    }

  def __iter__(self) -> Batches:
    return self

  def __next__(self) -> Batch:
    return next(self._iterator)

  def state(self) -> dict[str, Any]:
    """Returns what `restore` needs, as JSON can hold it; equal on all hosts."""
    return {'order': self._iterator.get_state(), **self._made_from}

  def restart(self) -> None:
    """Goes back to the first batch."""
    self._iterator.set_state(self._first)

  def restore(self, state: dict[str, Any]) -> None:
    """Goes on where the iterator stood that `state` is of.

    Args:
      state: of an iterator over the same data with the same arguments; only
        the number of hosts may differ.

    Raises:
      MeJaxError: it is of another one (and what differs), or is no state.
    """
    order = state.get('order') if isinstance(state, dict) else None
    step = order.get('next_index') if isinstance(order, dict) else None
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
      raise errors.MeJaxError('this is no state of a data iterator.')
    other = [k for k, v in self._made_from.items() if state.get(k) != v]
    if other:
      raise errors.MeJaxError(
        f'the run was saved with another {" and ".join(other)}: it would go on'
        ' with other batches.'
      )
    self._iterator.set_state(order)


def _check(
  sources: Sequence[examples_lib.Encoded],
  weights: Sequence[float],
  batch_size: int,
  seed: int,
  hosts: int,
  host: int,
) -> None:
  """Raises MeJaxError for arguments that are out of range."""
  if not sources or len(sources) != len(weights):
    raise errors.MeJaxError(
      f'{len(sources)} sources with {len(weights)} weights: each needs one.'
    )
  if len({(source.kind, source.length) for source in sources}) > 1:
    raise errors.MeJaxError('sources of a mix must have one kind and length.')
  if not all(math.isfinite(w) and w > 0 for w in weights):
    raise errors.MeJaxError(
      f'weights are {", ".join(map(str, weights))}: each must be positive.'
    )
  if seed < 0:
    raise errors.MeJaxError(f'the seed is {seed}: it must not be negative.')
  if not 0 <= host < hosts:
    raise errors.MeJaxError(f'host {host} of {hosts}: there is none.')
  if batch_size < 1 or batch_size % hosts:
    raise errors.MeJaxError(
      f'a batch of {batch_size} rows cannot be shared by {hosts} hosts.'
    )


def _grain() -> Any:
  try:
    import grain
  except ImportError as error:
    raise errors.MeJaxError(
      f"training needs grain ({error}): pip install -e '.[train]' in a checkout"
    ) from error
  return grain


def _batch(rows: Sequence[Any], *, kind: str, length: int) -> Batch:
  """Returns rows as a batch."""
  if kind == 'texts':
    return packing.lay_out(rows, length)
  if kind == 'pairs':
    return packing.lay_out_pairs(rows, length)
  return Prompts(*zip(*rows))
