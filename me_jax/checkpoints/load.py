"""How does the name of a checkpoint become a model that can be called?

`open_checkpoint` reads only headers: what the model is, and where its tensors
lie. `Checkpoint.load_params` and `.load_tokenizer` do the work, so that a
caller may overlap them with compilation; `load` does all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import concurrent.futures
import dataclasses
import glob
import os
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from me_jax import errors
from me_jax import strict_json
from me_jax.checkpoints import assemble
from me_jax.checkpoints import gguf
from me_jax.checkpoints import gguf_config
from me_jax.checkpoints import gguf_names
from me_jax.checkpoints import gguf_tokenizer
from me_jax.checkpoints import leaves
from me_jax.checkpoints import locate
from me_jax.checkpoints import metadata as metadata_lib
from me_jax.checkpoints import names as names_lib
from me_jax.checkpoints import orbax_card
from me_jax.checkpoints import orbax_open
from me_jax.checkpoints import param_tree
from me_jax.checkpoints import safetensors
from me_jax.checkpoints import sink_leaves
from me_jax.checkpoints import tensors as tensors_lib
from me_jax.checkpoints import tokenizer as tokenizer_lib
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.models import params as params_lib

_ROWS = 1 << 12  # of an embedding that are compared at a time
_PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')


class LoadedModel(NamedTuple):
  """A model with all that is needed to run it.

  Attributes:
    model: the module; `model.apply({'params': params}, tokens_BT)`.
    params: its parameters, plain nested dicts of `jax.Array`.
    tokenizer: a `transformers` tokenizer; None when the checkpoint has none.
    config: what the model is.

  Examples:
    >>> import me_jax
    >>> lm = me_jax.load('smollm2')
    >>> model, params, tokenizer, config = lm
    >>> params['layers']['mlp']['down_proj']['kernel'].shape  # [L, F, D]
    (30, 1536, 576)
    >>> stock = lm._replace(tokenizer=None)  # a copy with another field
  """

  model: decoder.Decoder
  params: dict[str, Any]
  tokenizer: Any
  config: config_lib.ModelConfig

  def __repr__(self) -> str:
    config = self.config
    return (
      f'LoadedModel({config.model_type}, {config.num_hidden_layers} layers of'
      f' width {config.hidden_size}, parameters in'
      f' {self.params["embed_tokens"]["embedding"].dtype})'
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
  """A checkpoint whose headers have been read, and nothing else.

  Attributes:
    path: the file or folder.
    config: what the model is.
    tensors: what it holds, by name.
    names: which of them each parameter comes from.
    load_tokenizer: returns the tokenizer, None when there is none; imports
      transformers (a second).
    metadata: what was given to `export`; empty elsewhere.
  """

  path: str
  config: config_lib.ModelConfig
  tensors: Mapping[str, tensors_lib.StoredTensor] = dataclasses.field(
    repr=False
  )
  names: names_lib.NameTable = dataclasses.field(repr=False)
  load_tokenizer: Callable[[], Any] = dataclasses.field(repr=False)
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def stored_dtype(self) -> str:
    """The type that all tensors have; float32 where they differ.

    The mitigation's own do not count.
    """
    plain = tensors_lib.PLAIN_DTYPES
    return param_tree.common_dtype(
      plain.get(tensor.dtype)
      for name, tensor in self.tensors.items()
      if not sink_leaves.is_one(name)
    )

  def param_shapes(self, dtype: str = 'float32') -> dict[str, Any]:
    """Returns what `load_params` does, as `jax.ShapeDtypeStruct`s."""
    own = params_lib.param_shapes(self.config, dtype)
    optional = sink_leaves.stored(self.config, self.tensors, self.names)
    return leaves.unflatten(leaves.flatten(own) | optional)

  def check(self) -> None:
    """Raises MeJaxError unless the tensors are those of the model."""
    leaves.check_sizes(self.config, self.tensors, self.names)
    leaves.plan(self.param_shapes(), self.tensors, self.names)

  def load_params(
    self,
    dtype: str = 'float32',
    shardings: Mapping[str, Any] | None = None,
    progress: assemble.Progress | None = None,
  ) -> dict[str, Any]:
    """Reads the parameters; arguments and errors as in `load`."""
    param_tree.check_dtype(dtype)
    self._check_tie()
    params = assemble.assemble(
      self.param_shapes(dtype),
      self.tensors,
      self.names,
      shardings=shardings,
      progress=progress,
    )
    sink_leaves.check_values(params, self.path)
    return params

  def _check_tie(self) -> None:
    """Refuses a head that differs from the embedding it is said to be.

    transformers then uses the head after all, whatever the configuration says.
    """
    origins = self.names.origins
    head = self.tensors.get(origins['lm_head/kernel'].template)
    embedding = self.tensors[origins['embed_tokens/embedding'].template]
    if head is None or not self.config.tie_word_embeddings:
      return
    if head.shape != embedding.shape or not all(
      np.array_equal(head.read(i, i + _ROWS), embedding.read(i, i + _ROWS))
      for i in range(0, head.shape[0], _ROWS)
    ):
      raise errors.MeJaxError(
        f'{self.path} holds {head.name}, which differs from {embedding.name}'
        ' although tie_word_embeddings is true: set it to false to use the'
        ' head, or remove the tensor'
      )


def load(
  source: str | os.PathLike[str] = 'smollm2',
  *,
  dtype: str = 'float32',
  shardings: Mapping[str, Any] | None = None,
  progress: assemble.Progress | None = None,
) -> LoadedModel:
  """Loads a model.

  Args:
    source: the alias `smollm2`; a `.gguf` file; a folder with `config.json`
      and safetensors, or with one `.gguf` file, or one that `save` has
      written; or a hub id `owner/name`, optionally with `@revision`.
    dtype: of parameters and computation: `float32`, `bfloat16` or `float16`.
      The leaves of a mitigation (`models/sink.py`) are float32 in any case.
    shardings: a tree like the parameters of `jax.sharding.Sharding`; each
      device reads its own slice only. None: all on the default device. Where
      it lacks a mitigation's leaves, `sink_scale` lies as the norms' weights
      do and the others on every device.
    progress: called with bytes of parameters done and in total.

  Returns:
    Model, parameters, tokenizer and configuration.

  Raises:
    MeJaxError: no such checkpoint, or one that is broken, incomplete, not
      supported or not finite; one line says what and what to do.

  Examples:
    >>> import me_jax
    >>> me_jax.load('smollm2')
    LoadedModel(llama, 30 layers of width 576, parameters in float32)
  """
  param_tree.check_dtype(dtype)
  return load_opened(
    open_checkpoint(source), dtype=dtype, shardings=shardings, progress=progress
  )


def load_opened(
  checkpoint: Checkpoint | orbax_open.SavedModel,
  *,
  dtype: str = 'float32',
  shardings: Mapping[str, Any] | None = None,
  progress: assemble.Progress | None = None,
) -> LoadedModel:
  """Loads what `open_checkpoint` has opened; the rest as in `load`."""
  param_tree.check_dtype(dtype)
  # Importing transformers and reading weights wait for different things.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    tokenizer = pool.submit(checkpoint.load_tokenizer)
    params = checkpoint.load_params(dtype, shardings, progress)
    return LoadedModel(
      decoder.Decoder(
        checkpoint.config,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(dtype),
      ),
      params,
      tokenizer.result(),
      checkpoint.config,
    )


def open_checkpoint(
  source: str | os.PathLike[str] = 'smollm2',
) -> Checkpoint | orbax_open.SavedModel:
  """Reads the headers of a checkpoint.

  Args:
    source: as in `load`.

  Returns:
    The checkpoint, with its weights unread.

  Raises:
    MeJaxError: as in `load`, but for what only the weights can show.
  """
  path = locate.locate(source)
  if os.path.isdir(path):
    return _open_folder(path)
  if path.endswith('.safetensors'):
    raise errors.MeJaxError(
      f'{path} is weights without a configuration: give the folder that holds'
      ' it and its config.json'
    )
  if path.lower().endswith(_PICKLES):
    raise _pickle_error(path)
  if not os.path.isfile(path):
    raise errors.MeJaxError(f'{path} is neither a file nor a folder')
  return _open_gguf(path)


def _open_folder(folder: str) -> Checkpoint | orbax_open.SavedModel:
  """Finds out which kind of folder this is, and opens it."""
  try:
    present = sorted(os.listdir(folder))
  except OSError as error:
    raise errors.MeJaxError(
      f'cannot read {folder}: {error.strerror}'
    ) from error
  if orbax_card.is_saved(present):
    return orbax_open.open_folder(folder)
  ggufs = glob.glob(os.path.join(glob.escape(folder), '*.gguf'))
  if safetensors.INDEX in present or any(
    name.endswith('.safetensors') for name in present
  ):
    return _open_hf(folder)
  if len(ggufs) == 1:
    return _open_gguf(ggufs[0])
  if ggufs:
    raise errors.MeJaxError(
      f'{folder} holds {len(ggufs)} GGUF files: name one of them'
    )
  pickles = [name for name in present if name.lower().endswith(_PICKLES)]
  if pickles:
    raise _pickle_error(os.path.join(folder, pickles[0]))
  raise errors.MeJaxError(
    f'{folder} is not a checkpoint: it holds neither *.safetensors with a'
    ' config.json nor a *.gguf file, nor is it one that me_jax.save wrote'
  )


def _open_hf(folder: str) -> Checkpoint:
  config_path = os.path.join(folder, 'config.json')
  if not os.path.exists(config_path):
    raise errors.MeJaxError(
      f'{folder} holds weights but no config.json: download that too'
    )
  tensors = safetensors.open_folder(folder)
  config = _translate(strict_json.read(config_path), tensors, config_path)
  checkpoint = Checkpoint(
    path=folder,
    config=config,
    tensors=tensors,
    names=names_lib.hf_table(config, tensors),
    load_tokenizer=lambda: tokenizer_lib.load(folder),
    metadata=metadata_lib.beside(folder),
  )
  checkpoint.check()
  return checkpoint


def _open_gguf(path: str) -> Checkpoint:
  file = gguf.open_file(path)
  config = _translate(gguf_config.to_hf(file), file.tensors, path)
  checkpoint = Checkpoint(
    path=path,
    config=config,
    tensors=file.tensors,
    names=gguf_names.gguf_table(config),
    load_tokenizer=lambda: gguf_tokenizer.build(file),
  )
  checkpoint.check()
  return checkpoint


def _translate(
  hf: dict[str, Any],
  tensors: Mapping[str, tensors_lib.StoredTensor],
  path: str,
) -> config_lib.ModelConfig:
  """Returns our configuration; errors name the file it came from."""
  layers = hf.get('num_hidden_layers')
  # Before a billion layers are written down one by one.
  if isinstance(layers, int) and layers > len(tensors):
    raise errors.MeJaxError(
      f'{path} asks for {layers} layers, but the checkpoint holds only'
      f' {len(tensors)} tensors'
    )
  try:
    return config_lib.ModelConfig.from_hf(hf)
  except errors.MeJaxError as error:
    raise errors.MeJaxError(f'{path}: {error}') from error


def _pickle_error(path: str) -> errors.MeJaxError:
  return errors.MeJaxError(
    f'{path} is a pickle, which can run code when it is read: convert it to'
    ' safetensors (transformers: save_pretrained) and load that'
  )
