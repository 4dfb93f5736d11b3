"""The flags of `me-jax mitigate`: which masks, which texts, what is written."""

from __future__ import annotations

from typing import Any

from absl import flags as absl_flags

from me_jax import errors
from me_jax.cli import flags as flags_lib

OUT = 'mitigate'
FORMS = ('orbax', 'hf', 'baked')
_MOST = 10**9


def define(flags: absl_flags.FlagValues) -> None:
  """Declares the verb's flags."""
  flags_lib.define_model(flags)
  flags_lib.define_prompts(flags)
  absl_flags.DEFINE_string(
    'data',
    None,
    'texts to choose and to measure on: a folder with gsm8k/train.jsonl, '
    'gsm8k/test.jsonl, math500/test.jsonl, text/c4_demo.jsonl, '
    'wikitext2/valid.txt, of which those that are there are used; or a folder '
    'of other .jsonl and .txt files (a text a line), or one, of which the first '
    'half is for choosing. Default: the built-in prompts, which are few.',
    flag_values=flags,
  )
  _define_settings(flags)
  for name, default, what in (
    ('calibration', 24, 'texts that a mask is chosen on: chats, and as many '
     'plain ones.'),
    ('texts', 24, 'texts of each corpus that it is measured on, at most.'),
    ('length', 320, 'tokens of a text: plain ones are cut there, longer chats '
     'are left out.'),
  ):  # fmt: skip
    absl_flags.DEFINE_integer(
      name, default, what, lower_bound=2, upper_bound=_MOST, flag_values=flags
    )
  absl_flags.DEFINE_float(
    'budget',
    0.005,
    'nats per token that plain text may lose on calibration texts.',
    flag_values=flags,
  )
  absl_flags.DEFINE_list(
    'write',
    'orbax,baked',
    'forms of the model to write, any of: orbax (a folder for me_jax, the mask '
    'a parameter), hf (a Hugging Face folder with the mask as extra tensors, '
    'which me_jax reads and others ignore), baked (a Hugging Face folder whose '
    'weights hold the mask, for any runtime); none for none.',
    flag_values=flags,
  )
  absl_flags.DEFINE_string(
    'out',
    OUT,
    'the folder to write into. What an earlier run has written there is '
    'replaced.',
    flag_values=flags,
  )
  absl_flags.DEFINE_integer(
    'seed',
    0,
    'of random channels and of the bootstrap.',
    lower_bound=0,
    upper_bound=_MOST,
    flag_values=flags,
  )


def _define_settings(flags: absl_flags.FlagValues) -> None:
  """Declares which masks are tried."""
  for name, default, what in (
    ('select', 'weight,me_weight', 'how channels are chosen, any of: weight, '
     'me_weight, activation, random, weight_bottom.'),
    ('layers', 'after,next', 'which layers are masked: after (all after the '
     'span), next (the one after it), or one set as numbers joined by +, such '
     'as 12+13+20.'),
    ('rate', '0.25,0.5,1', 'shares of the channels that are masked.'),
    ('strength', '0.5,1', 'how much of a masked channel is taken away.'),
  ):  # fmt: skip
    absl_flags.DEFINE_list(
      name, default, f'{what} Every combination is tried.', flag_values=flags
    )
  absl_flags.DEFINE_string(
    'tokens',
    'first',
    'which tokens are masked: first (of every text), massive (found while the '
    'model runs), or positions joined by +, such as 0+1.',
    flag_values=flags,
  )
  absl_flags.DEFINE_boolean(
    'by_layer',
    True,
    'also look for a strength for each layer. Not done when the flags leave one '
    'setting only, which is then taken as it is.',
    flag_values=flags,
  )


def check(flags: Any) -> list[str]:
  """Returns the forms to write, after looking over the flags.

  Raises:
    MeJaxError: one of them cannot be.
  """
  forms = [] if flags.write == ['none'] else list(dict.fromkeys(flags.write))
  for form in forms:
    if form not in FORMS:
      raise errors.MeJaxError(
        f'--write={form!s:.40}: must be some of {", ".join(FORMS)}, or none'
        f'{errors.nearest(form, FORMS)}'
      )
  if not flags.budget >= 0:
    raise errors.MeJaxError(
      f'--budget={flags.budget}: nats per token, must be 0 or more'
    )
  for name in ('rate', 'strength'):
    values = floats(flags, name)
    if not values or not all(0 <= value <= 1 for value in values):
      raise errors.MeJaxError(
        f'--{name}={",".join(getattr(flags, name))}: must be numbers from 0 to 1'
      )
  for name in ('select', 'layers'):
    if not getattr(flags, name):
      raise errors.MeJaxError(f'--{name} lacks a value: write --{name}=VALUE.')
  from me_jax.mitigation import channels
  from me_jax.mitigation import wemask

  for name, values, words in (
    ('select', flags.select, channels.SELECTIONS),
    ('layers', [numbers(x) for x in flags.layers], wemask.LAYERS),
    ('tokens', [numbers(flags.tokens)], wemask.TOKENS),
  ):
    for value in values:
      if isinstance(value, str) and value not in words:
        also = '' if name == 'select' else ', or numbers joined by +'
        raise errors.MeJaxError(
          f'--{name}={value:.40}: must be {", ".join(words)}{also}'
          f'{errors.nearest(value, words)}'
        )
  return forms


def check_model(flags: Any, config: Any) -> None:
  """Raises MeJaxError for a layer or position that the model does not have."""
  depth, longest = config.num_hidden_layers, config.context_length
  for given, layers in zip(flags.layers, map(numbers, flags.layers)):
    if not isinstance(layers, list):
      continue
    if max(layers) >= depth:
      raise errors.MeJaxError(
        f'--layers: there is no layer {max(layers)}, the model has 0 to'
        f' {depth - 1}'
      )
    if len(set(layers)) < len(layers):
      raise errors.MeJaxError(f'--layers={given:.40}: lists one twice')
  tokens = numbers(flags.tokens)
  if isinstance(tokens, list) and max(tokens) >= longest:
    raise errors.MeJaxError(
      f'--tokens: there is no position {max(tokens)}, texts have 0 to'
      f' {longest - 1}'
    )


def floats(flags: Any, name: str) -> list[float]:
  """Reads a list of numbers."""
  try:
    return [float(value) for value in getattr(flags, name)]
  except ValueError:
    raise errors.MeJaxError(
      f'--{name}={",".join(getattr(flags, name))}: must be numbers from 0 to 1'
    ) from None


def numbers(value: str) -> str | list[int]:
  """Reads 12+13+20 as a list; leaves a word as it is."""
  parts = value.split('+')
  return [int(x) for x in parts] if all(map(str.isdecimal, parts)) else value
