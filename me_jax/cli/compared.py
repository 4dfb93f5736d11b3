"""What do verbs share that set a mitigated model beside the stock one?"""

from __future__ import annotations

from collections.abc import Callable
import os
from typing import Any, NamedTuple

from absl import flags as absl_flags

from me_jax import errors
from me_jax.cli import flags as flags_lib
from me_jax.cli import session

WEMASK, _NONE = 'wemask', 'none'
_ORBAX = 'orbax'
STOCK, MITIGATED = 'stock', 'mitigated'


class Models(NamedTuple):
  """Two models of one architecture.

  Attributes:
    model: the decoder.
    params: by name, `stock` first; `mitigated` only if wanted.
    tokenizer: of both.
    config: of both.
    source: where the stock model was found.
  """

  model: Any
  params: dict[str, Any]
  tokenizer: Any
  config: Any
  source: str


def define(flags: absl_flags.FlagValues) -> None:
  """Declares the models."""
  flags_lib.define_model(flags)
  absl_flags.DEFINE_string(
    'mitigation',
    None,
    'a mitigated model to set beside --model: the folder orbax or baked that'
    " 'me-jax mitigate' or 'me-jax train' has written; or wemask for the"
    " paper's mask, without training: half of the channels at the first token, in"
    ' all layers after the ME Layer; or none.',
    flag_values=flags,
  )


def mitigation(flags: Any) -> str | None:
  """Returns what `--mitigation` asks for, None for the stock model alone."""
  return None if flags.mitigation == _NONE else flags.mitigation


def load(
  flags: Any,
  progress: session.Progress,
  check: Callable[[Any, Any], None],
) -> Models:
  """Loads what `--model` and `--mitigation` name.

  Args:
    flags: the verb's.
    progress: shows what is done.
    check: called with tokenizer and configuration before weights are read;
      raises MeJaxError for flags that do not go with them.

  Raises:
    MeJaxError: one of them is not sound, has no tokenizer, or does not belong
      to the other; or `check` says so.
  """
  from me_jax.checkpoints import load as load_lib

  wanted = mitigation(flags)
  checkpoint = load_lib.open_checkpoint(flags.model)
  other = None
  if wanted and wanted != WEMASK:
    for verb, place in (('mitigate', _ORBAX), ('train', f'model/{_ORBAX}')):
      written = os.path.join(wanted, place)
      if os.path.isdir(written):
        raise errors.MeJaxError(
          f'--mitigation={wanted} holds what {verb} has written: name'
          f' the model in it, --mitigation={written}.'
        )
    try:
      other = load_lib.open_checkpoint(wanted)
    except errors.MeJaxError as error:
      raise errors.MeJaxError(f'--mitigation: {error}') from error
    if other.config.vocab_size != checkpoint.config.vocab_size:
      raise errors.MeJaxError(
        f'--mitigation={wanted} has a vocabulary of'
        f' {other.config.vocab_size}, --model one of'
        f' {checkpoint.config.vocab_size}: they are not the same model.'
      )
    if other.config != checkpoint.config:
      raise errors.MeJaxError(
        f'--mitigation={wanted} has another configuration than'
        ' --model: they are not the same model.'
      )
  session.keep_compiled()
  progress.step('loading weights', 0, 1)
  tokenizer = checkpoint.load_tokenizer()
  if tokenizer is None:
    raise errors.MeJaxError(
      f'{flags.model} has no tokenizer: put its tokenizer.json beside it.'
    )
  check(tokenizer, checkpoint.config)
  import jax.numpy as jnp

  from me_jax.models import decoder
  from me_jax.models import params as params_lib

  if wanted and _is_masked(checkpoint):
    raise errors.MeJaxError(
      f'--model={flags.model} is a mitigated model, and is to be the stock one'
      ' here: name it as --mitigation, and the model it was made from as --model.'
    )
  dtype = jnp.dtype(flags.dtype)
  model = decoder.Decoder(checkpoint.config, dtype=dtype, param_dtype=dtype)
  params = {STOCK: checkpoint.load_params(flags.dtype)}
  if other is not None:
    params[MITIGATED] = other.load_params(flags.dtype)
    if len({*map(params_lib.fingerprint, params.values())}) == 1:
      raise errors.MeJaxError(
        f'--mitigation={wanted} is --model itself: it holds no mask'
        ' and no other weights.'
      )
  progress.step('loading weights', 1, 1)
  if wanted == WEMASK:
    params[MITIGATED] = _wemask(model, params[STOCK], checkpoint, progress)
  return Models(
    model=model,
    params=params,
    tokenizer=tokenizer,
    config=checkpoint.config,
    source=checkpoint.path,
  )


def _is_masked(checkpoint: Any) -> bool:
  """Says whether a checkpoint that was opened holds a mask."""
  from me_jax.models import sink

  return sink.SCALE in checkpoint.param_shapes()['layers']


def _wemask(
  model: Any, params: Any, checkpoint: Any, progress: session.Progress
) -> Any:
  """Returns the parameters with the paper's mask."""
  from me_jax.analysis import emergence
  from me_jax.analysis import prompts as prompts_lib
  from me_jax.checkpoints import encoding
  from me_jax.mitigation import wemask
  from me_jax.models import batch as batch_lib

  progress.step('finding the ME Layer', 0, 1)
  ids = encoding.token_ids(
    checkpoint.load_tokenizer(),
    checkpoint.config,
    prompts_lib.builtin(),
    'both',
    any_length=True,
  )
  ids = sorted(ids, key=len, reverse=True)
  batch = batch_lib.make_batch(ids, pack=True, length=max(128, len(ids[0])))
  report = emergence.find_me_layer(model, params, batch)
  masked = wemask.wemask(model, params, report)
  progress.step('finding the ME Layer', 1, 1)
  return masked
