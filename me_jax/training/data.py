"""What does a run train on?

Local files or datasets of the hub, alone or mixed, as batches: `read` gives the
rows, `load` everything down to the iterator.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import os
import re
from typing import Any

from me_jax import errors
from me_jax import rows as rows_lib
from me_jax.models import config as config_lib
from me_jax.training import batches as batches_lib
from me_jax.training import examples as examples_lib
from me_jax.training import records as records_lib

# owner/name, and maybe a configuration and a split.
_HUB = re.compile(r'([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?::([\w.-]+))?')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """Some data of a mix.

  Attributes:
    data: as `read` takes it.
    weight: share of the rows of batches, compared with the other sources'.
    rows: the first of its rows that is used and the first that is not, as in
      a slice; None for all.
  """

  data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
  weight: float = 1.0
  rows: tuple[int | None, int | None] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
  """Several sources; each is repeated for as long as the run lasts.

  Attributes:
    sources: of one kind.
  """

  sources: tuple[Source, ...]


def load(
  mix: Mix | Source | str | os.PathLike[str] | Sequence[str],
  kind: str,
  tokenizer: Any,
  config: config_lib.ModelConfig,
  *,
  length: int,
  batch_size: int,
  seed: int = 0,
  pack: bool = True,
  answers: str = 'last',
  hosts: int = 1,
  host: int = 0,
) -> batches_lib.Batches:
  """Reads data and returns an iterator over batches of it.

  Args:
    mix: the data; what `read` takes is a mix of one source.
    kind: `texts` gives batches of type `packing.Packed`, `pairs`
      `packing.PackedPairs`, `prompts` `batches.Prompts`.
    tokenizer: of the model.
    config: of the model.
    length: tokens of a row; longer texts are left out and counted.
    batch_size: rows of a batch over all hosts.
    seed: of the order.
    pack: whether several texts share a row.
    answers: which tokens of a chat are learnt, see `examples.encode`.
    hosts: how many processes read; `jax.process_count()`.
    host: index of this one; `jax.process_index()`.

  Raises:
    MeJaxError: the data or an argument is not sound; see `read`,
      `examples.encode` and `batches.Batches`.
  """
  if isinstance(mix, Mix):
    sources = mix.sources
  else:
    sources = (mix if isinstance(mix, Source) else Source(data=mix),)
  encoded = [
    examples_lib.encode(
      tokenizer,
      config,
      rows_of(source, kind),
      kind=kind,
      length=length,
      answers=answers,
    )
    for source in sources
  ]
  return batches_lib.Batches(
    encoded,
    [source.weight for source in sources],
    batch_size=batch_size,
    seed=seed,
    pack=pack,
    hosts=hosts,
    host=host,
  )


def rows_of(source: Source, kind: str) -> list[records_lib.Record]:
  """Returns the rows of a source that are used.

  Args:
    source: the data.
    kind: as for `read`.

  Raises:
    MeJaxError: as `read`, or there is no row in the slice.
  """
  found = read(source.data, kind)
  used = found[slice(*source.rows)] if source.rows else found
  if not used:
    raise errors.MeJaxError(
      f'{source.data} has {len(found)} rows, none of them in the slice'
      f' {source.rows}: give more rows, or other ends of the slice.'
    )
  return used


def read(
  data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], kind: str
) -> list[records_lib.Record]:
  """Reads rows.

  Args:
    data: one or several of: a `.jsonl` or `.txt` file, a folder of such files,
      or a dataset of the hub as `owner/name`, `owner/name:configuration` or
      `owner/name:configuration:split` (by default `train`).
    kind: what the rows are, one of `records.KINDS`.

  Returns:
    The rows, in order.

  Raises:
    MeJaxError: there is nothing to read, the hub does not answer, or a row does
      not hold what its kind needs (which row of which file).
  """
  records_lib.check_kind(kind)
  places = [data] if isinstance(data, str | os.PathLike) else list(data)
  if not places:
    raise errors.MeJaxError('there is no data to train on: name a file.')
  return [
    records_lib.parse(kind, where, row)
    for place in places
    for where, row in _rows(os.path.expanduser(os.fspath(place)))
  ]


def _rows(place: str) -> list[tuple[str, Any]]:
  """Returns the rows of a file, folder or dataset, and where they stand."""
  if os.path.exists(place):
    files = rows_lib.files(place)
    if not files:
      raise errors.MeJaxError(f'{place} holds no .jsonl or .txt file.')
    return [row for file in files for row in rows_lib.read(file)]
  hub = _HUB.fullmatch(place)
  if hub is None or place.endswith(('.jsonl', '.txt')):
    raise errors.MeJaxError(f'{place}: no such file or folder.')
  return _hub_rows(place, *hub.groups())


def _hub_rows(
  place: str, name: str, configuration: str | None, split: str | None
) -> list[tuple[str, Any]]:
  """Returns the rows of a dataset of the hub."""
  try:
    import datasets
  except ImportError as error:
    raise errors.MeJaxError(
      f"{place} is no file, and datasets of the hub need 'datasets' ({error}):"
      " pip install -e '.[train]' in a checkout"
    ) from error
  try:
    found = datasets.load_dataset(name, configuration, split=split or 'train')
    rows = [(f'{place}, row {i}', row) for i, row in enumerate(found, 1)]
  # The hub's client raises what it likes.
  except Exception as error:
    raise errors.MeJaxError(
      f'{place} is no file, and the hub does not give it'
      f' ({type(error).__name__}: {error}): give a local .jsonl file.'
    ) from error
  if not rows:
    raise errors.MeJaxError(f'{place} is empty: it holds no row.')
  return rows
