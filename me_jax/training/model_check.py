"""Does a run fit its model, as far as the model's configuration says?

So that nobody waits for weights to hear that there is no layer 99.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from me_jax import errors
from me_jax.mitigation import activation
from me_jax.mitigation import channels
from me_jax.mitigation import gates as gates_lib
from me_jax.mitigation import wemask
from me_jax.models import config as config_lib
from me_jax.models import decoder
from me_jax.training import settings as settings_lib


def check(run: settings_lib.Run, config: config_lib.ModelConfig) -> None:
  """Raises MeJaxError for layers, tokens or channels that do not exist.

  Whether a model has the emergence span that `after` and the like are about is
  found out later, from its weights.

  Args:
    run: the settings.
    config: of the model.
  """
  model = decoder.Decoder(config)
  train = run.train
  if 'gates' in train.parts:
    gates_lib.check(train.gates)
    _layers(model, 'train.gates', train.gates.layers, gates_lib.LAYERS)
    _tokens(model, 'train.gates', train.gates.tokens, gates_lib.TOKENS)
  if 'lora' in train.parts:
    _layers(model, 'train.lora', train.lora.layers, gates_lib.LAYERS)
  mask = run.mask
  if not mask.rate:
    return
  if not 0 < mask.rate <= 1:
    raise errors.MeJaxError(
      f'mask.rate is {mask.rate:g}, must be between 0 and 1.'
    )
  _among('mask.select', mask.select, channels.SELECTIONS)
  layers = _layers(model, 'mask', mask.layers, wemask.LAYERS)
  _tokens(model, 'mask', mask.tokens, wemask.TOKENS)
  count = int(mask.rate * config.hidden_size)
  activation.check_mask(config, layers, count, mask.strength)


def _layers(
  model: decoder.Decoder,
  owner: str,
  layers: str | Sequence[int],
  known: Sequence[str],
) -> tuple[int, ...]:
  """Returns the layers that are listed, or one that stands for a name."""
  if isinstance(layers, str):
    _among(f'{owner}.layers', layers, known, ', or a list')
    return (0,)
  return _named(owner, lambda: wemask.chosen_layers(model, None, layers))


def _tokens(
  model: decoder.Decoder,
  owner: str,
  tokens: str | Sequence[int],
  known: Sequence[str],
) -> None:
  if isinstance(tokens, str):
    _among(f'{owner}.tokens', tokens, known, ', or positions')
  else:
    _named(owner, lambda: wemask.positions(model, tokens))


def _named(owner: str, step: Any) -> Any:
  """Runs a check whose message is to begin with whose settings these are."""
  try:
    return step()
  except errors.MeJaxError as error:
    raise errors.MeJaxError(f'{owner}: {error}.') from None


def _among(name: str, value: str, known: Sequence[str], also: str = '') -> None:
  if value not in known:
    raise errors.MeJaxError(
      f'{name} is {value!r}, must be one of {", ".join(known)}{also}'
      f'{errors.nearest(value, known)}.'
    )
