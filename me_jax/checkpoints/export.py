"""What does a model look like as a Hugging Face checkpoint?

A folder with safetensors, config.json and the tokenizer's files, which
transformers and everything that reads its format can load. Tensors are made
one piece at a time, so an export needs little memory besides the parameters.

A mitigation is written as tensors that only me_jax knows: `model.layers.{i}.
sink_scale`, `model.sink_bound`, `model.sink_positions`.

Letters: L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
import os
import re
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from me_jax import errors
from me_jax.checkpoints import atomic
from me_jax.checkpoints import finite
from me_jax.checkpoints import metadata as metadata_lib
from me_jax.checkpoints import names as names_lib
from me_jax.checkpoints import param_tree
from me_jax.checkpoints import safetensors_write
from me_jax.checkpoints import sink_leaves
from me_jax.checkpoints import tokenizer as tokenizer_lib
from me_jax.models import config as config_lib

if TYPE_CHECKING:
  from me_jax.checkpoints import load

MAX_SHARD_BYTES = 5_000_000_000
_CONFIG = 'config.json'
# What a folder of this kind holds.
_OURS = re.compile(
  r'config\.json|generation_config\.json|model(-\d+-of-\d+)?\.safetensors'
  r'|model\.safetensors\.index\.json|tokenizer\.json|tokenizer_config\.json'
  r'|special_tokens_map\.json|added_tokens\.json|chat_template\.jinja'
  r'|additional_chat_templates|tokenizer\.model|vocab\.json|merges\.txt'
  r'|me_jax_metadata\.json'
)
# Values that are cast and written at a time: 16 MB of float32.
_PIECE = 1 << 22


def export(
  lm: load.LoadedModel,
  folder: str | os.PathLike[str],
  *,
  metadata: Mapping[str, Any] | None = None,
  dtype: str | None = None,
  max_shard_size: int = MAX_SHARD_BYTES,
  overwrite: bool = False,
  progress: Callable[[int, int], None] | None = None,
) -> None:
  """Writes a model as a folder that transformers loads.

  The folder is complete or absent, whenever the process ends.

  A mitigation goes with it, as a few tensors that `me_jax.load` reads back.
  transformers names them in a warning, passes over them and computes the model
  without its mitigation; a stricter reader may refuse them. To export that
  model and nothing else, remove the leaves `sink_*`. A mitigation that changes
  nothing, its scale being all ones, is not written.

  Args:
    lm: the model; parameters (on any devices of this process), configuration
      and tokenizer (or None) are written.
    folder: where.
    metadata: anything that JSON can hold, as in `save`; `read_metadata` returns
      it. It has a file of its own, `me_jax_metadata.json`, unless it is empty.
    dtype: of the tensors; None keeps each parameter's own. Those of a
      mitigation are float32 in any case.
    max_shard_size: bytes of tensors in a file; a model that is larger is
      split, with an index beside the parts.
    overwrite: replace an earlier export, which stays until the new one is
      complete.
    progress: called with bytes of tensors done and in total.

  Raises:
    MeJaxError: the folder exists or cannot be written, or the model cannot be
      loaded from such a folder: its parameters do not fit its configuration,
      are not finite or mean nothing. Nothing is left behind.

  Examples:
    >>> import me_jax
    >>> lm = me_jax.load('smollm2')
    >>> me_jax.export(lm, 'exported', dtype='bfloat16', overwrite=True)
    >>> me_jax.load('exported').config == lm.config
    True
  """
  if dtype is not None:
    param_tree.check_dtype(dtype)
  metadata = metadata_lib.check(metadata)
  if type(max_shard_size) is not int or max_shard_size <= 0:
    raise errors.MeJaxError(
      f'max_shard_size is {max_shard_size!r:.40}, must be a number of bytes'
    )
  target = check_target(folder, overwrite=overwrite)
  tensors = _tensors(lm.config, lm.params, dtype)
  texts = {
    name: json.dumps(content, indent=2, ensure_ascii=False) + '\n'
    for name, content in _configs(lm.config, tensors).items()
  }
  if metadata:
    texts[metadata_lib.FILE] = metadata_lib.text(metadata)
  atomic.check_space(target, sum(tensor.nbytes for tensor in tensors))
  with atomic.writing(target) as partial:
    for name, text in texts.items():
      path = os.path.join(partial, name)
      with open(path, 'w', encoding='utf-8') as file:
        file.write(text)
    if lm.tokenizer is not None:
      tokenizer_lib.save(lm.tokenizer, partial)
    safetensors_write.write_folder(partial, tensors, max_shard_size, progress)


def check_target(folder: str | os.PathLike[str], *, overwrite: bool) -> str:
  """Returns the absolute path of a folder that may be written.

  Args:
    folder: where to export to.
    overwrite: whether an earlier export may stand there.

  Raises:
    MeJaxError: it cannot, or may not, be written.
  """
  return atomic.check_target(
    folder, overwrite=overwrite, ours=_OURS.fullmatch, mark=_CONFIG
  )


def _configs(
  config: config_lib.ModelConfig, tensors: list[safetensors_write.Tensor]
) -> dict[str, dict[str, Any]]:
  """Returns the JSON files by name."""
  content = config.to_hf()
  _check_translation(config, content)
  # transformers casts all parameters to this type when it loads them.
  content['dtype'] = param_tree.common_dtype(
    t.dtype for t in tensors if not sink_leaves.is_one(t.name)
  )
  tokens = ('bos_token_id', 'eos_token_id', 'pad_token_id')
  generation = {
    name: content[name] for name in tokens if content.get(name) is not None
  }
  return {_CONFIG: content, 'generation_config.json': generation}


def _check_translation(
  config: config_lib.ModelConfig, content: dict[str, Any]
) -> None:
  """Raises MeJaxError if a config.json would stand for another model."""
  back = config_lib.ModelConfig.from_hf(content)
  for field in dataclasses.fields(config):
    ours, theirs = getattr(config, field.name), getattr(back, field.name)
    if ours != theirs:
      raise errors.MeJaxError(
        f'a config.json of model_type {config.model_type!r} cannot say that'
        f' {field.name} is {str(ours):.120}: such a model is kept by'
        ' me_jax.save alone'
      )


def _tensors(
  config: config_lib.ModelConfig, params: Mapping[str, Any], dtype: str | None
) -> list[safetensors_write.Tensor]:
  """Returns what to write, layer by layer, after checking all there is."""
  found = param_tree.check(config, params, 'the parameters')
  _refuse(found)
  if not sink_leaves.act(found):
    # All of them: a bound of zeros, say, is no bound, but without it the first
    # tokens would be marked.
    found = {p: v for p, v in found.items() if not sink_leaves.is_one(p)}
  origins = names_lib.hf_table(config).origins
  # Tensors by name, each of its parts stored below the one before.
  outside: dict[str, list[str]] = {}
  inside: dict[str, list[str]] = {}
  for path in sorted(found, key=lambda path: origins[path].first_row):
    group = inside if path.startswith('layers/') else outside
    group.setdefault(origins[path].template, []).append(path)
  result = {}

  def add(template: str, paths: list[str], layer: int | None) -> None:
    leaves = [found[path] for path in paths]
    shapes = [
      leaf.shape if layer is None else leaf.shape[1:] for leaf in leaves
    ]
    transpose = origins[paths[0]].transpose
    shapes = [shape[::-1] if transpose else shape for shape in shapes]
    name = template.format(layer=layer)
    kind = sink_leaves.dtype_of(paths[0], dtype or leaves[0].dtype)

    def pieces() -> Iterator[np.ndarray]:
      for leaf in leaves:
        yield from _pieces(name, leaf, layer, transpose, kind)

    rows = sum(shape[0] for shape in shapes)
    result[name] = safetensors_write.Tensor(
      name, (rows, *shapes[0][1:]), kind, pieces
    )

  for template, paths in outside.items():
    add(template, paths, None)
  for layer in range(config.num_hidden_layers):
    for template, paths in inside.items():
      add(template, paths, layer)
  return list(result.values())


def _refuse(found: Mapping[str, Any]) -> None:
  """Raises MeJaxError for parameters that an export would lose or break."""
  for path, leaf in found.items():
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      raise errors.MeJaxError(
        f'{path} is spread over several processes: write the model with'
        ' me_jax.save, load it in one process and export it there'
      )
  for path in finite.offenders(found):
    raise errors.MeJaxError(
      f'{path} holds NaN or infinite values: such a model is not exported'
    )
  sink_leaves.check_values(found, 'the parameters')


def _pieces(
  name: str, leaf: Any, layer: int | None, transpose: bool, dtype: np.dtype
) -> Iterator[np.ndarray]:
  """Yields the rows of one parameter of one layer as they are stored."""
  values = _on_host(leaf, layer)
  values = values.T if transpose else values
  step = max(1, _PIECE // max(1, values[0].size))
  for start in range(0, len(values), step):
    piece = values[start : start + step]
    with np.errstate(over='ignore'):
      piece = np.ascontiguousarray(piece, dtype)
    if dtype != values.dtype and not finite.in_pieces(piece):
      raise errors.MeJaxError(
        f'{name} holds values too large for {dtype}: export it as float32'
      )
    yield piece


def _on_host(leaf: Any, layer: int | None) -> np.ndarray:
  """Returns a leaf, or one layer of it, copying no more than that."""
  take = slice(None) if layer is None else layer
  if not isinstance(leaf, jax.Array):
    return np.asarray(leaf)[take]
  shards = [s for s in leaf.addressable_shards if s.replica_id == 0]
  if len(shards) == 1:
    return _fetch(shards[0].data, take)
  shape = leaf.shape if layer is None else leaf.shape[1:]
  result = np.empty(shape, leaf.dtype)
  for shard in shards:
    if layer is None:
      result[shard.index] = _fetch(shard.data, take)
      continue
    start, stop, _ = shard.index[0].indices(leaf.shape[0])
    if start <= layer < stop:
      result[shard.index[1:]] = _fetch(shard.data, layer - start)
  return result


def _fetch(data: jax.Array, take: int | slice) -> np.ndarray:
  """Returns a part of an array that lies on one device."""
  if next(iter(data.devices())).platform == 'cpu':
    return np.asarray(data)[take]
  # The part alone crosses over: JAX would keep a copy of the whole here.
  return np.asarray(data[take])
