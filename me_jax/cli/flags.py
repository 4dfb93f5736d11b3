"""How are flags declared, read and explained? absl's, one set a verb.

A verb's flags live in a `FlagValues` of their own instead of absl's global
one, so that verbs can share names and tests can run several in a process.
Flags that mean the same in every verb are declared here.
"""

from __future__ import annotations

from collections.abc import Sequence
import shlex
import textwrap
from types import ModuleType
from typing import Any

from absl import flags as absl_flags

from me_jax import errors


def define_source(flags: absl_flags.FlagValues) -> None:
  """Declares which model is used."""
  absl_flags.DEFINE_string(
    'model',
    'smollm2',
    'the model: a folder with safetensors and config.json, a .gguf file, a '
    'folder written by me_jax.save, a hub id (owner/name), or the default '
    'model, smollm2.',
    flag_values=flags,
  )


def define_model(flags: absl_flags.FlagValues) -> None:
  """Declares which model is used, and how it is computed."""
  define_source(flags)
  absl_flags.DEFINE_enum(
    'dtype',
    'float32',
    ['float32', 'bfloat16', 'float16'],
    'type of the parameters and of the computation inside layers; the '
    'residual stream is always float32.',
    flag_values=flags,
  )


def define_prompts(flags: absl_flags.FlagValues) -> None:
  """Declares which texts are looked at."""
  absl_flags.DEFINE_string(
    'prompts',
    None,
    'a file of prompts: .jsonl with "text", "prompt" or "messages" in each '
    'row, or plain '
    'text with a prompt a line. Default: 24 built-in prompts of varied kind.',
    flag_values=flags,
  )
  absl_flags.DEFINE_enum(
    'bos',
    'both',
    ['auto', 'always', 'never', 'both'],
    'whether prompts start with the BOS token: as the tokenizer does it, '
    'always, never (a chat template may write one itself), or each prompt '
    'both ways where that makes a difference.',
    flag_values=flags,
  )


def define_outputs(flags: absl_flags.FlagValues) -> None:
  """Declares where results go."""
  absl_flags.DEFINE_string(
    'out', None, 'a folder for everything this verb writes.', flag_values=flags
  )
  absl_flags.DEFINE_string(
    'json', None, 'a file for the numbers, as JSON.', flag_values=flags
  )


def parse(
  verb: str, module: ModuleType, argv: Sequence[str]
) -> absl_flags.FlagValues:
  """Reads a verb's flags.

  Raises:
    MeJaxError: an unknown flag (the nearest is named), a value that does not
      fit, or an argument that is no flag.
  """
  flags = _declared(module)
  try:
    rest = flags([verb, *argv])[1:]
  except absl_flags.UnrecognizedFlagError as error:
    known = [name for name in flags if len(name) > 1]
    raise errors.MeJaxError(
      f"{verb} has no flag '--{error.flagname}'"
      f'{errors.nearest(error.flagname, known)}; me-jax {verb} --help lists '
      'them.'
    ) from None
  except absl_flags.Error as error:
    raise errors.MeJaxError(str(error)) from None
  for name in flags:
    value = flags[name].value
    if isinstance(value, str) and (not value or value.startswith('--')):
      raise errors.MeJaxError(f'--{name} lacks a value: write --{name}=VALUE.')
  if rest:
    raise errors.MeJaxError(
      f"'{rest[0]}' is no flag: values are given as --name=value."
    )
  return flags


def command_line(verb: str, flags: absl_flags.FlagValues) -> str:
  """Returns what a shell would be told to run a verb with these flags again."""
  given = []
  for name in flags:
    flag = flags[name]
    if flag.value == flag.default:
      continue
    # A flag that may be given again is, a value each.
    many = isinstance(flag, absl_flags.MultiFlag)
    values: Any = flag.value if many else [_spell(flag.value)]
    given += [f'--{name}={value}' for value in values]
  return shlex.join(['me-jax', verb, *given])


def help_text(verb: str, module: ModuleType) -> str:
  """Returns what `me-jax VERB --help` prints."""
  flags = _declared(module)
  lines = [f'Usage: me-jax {verb} [--flag=value ...]', '', module.HELP, '']
  for name in flags:
    flag = flags[name]
    default = flag.default
    none = default is None or default is False
    default = '' if none else f' [{_spell(default)}]'
    choices = getattr(flag.parser, 'enum_values', None)
    values = f'={"|".join(choices)}' if choices else '=...'
    if flag.boolean:
      name, values = f'[no]{name}' if flag.default else name, ''
    lines.append(f'  --{name}{values}{default}')
    # absl's own words on flags that may be repeated; ours say it already.
    words, *_ = flag.help.split(';\n')
    lines += textwrap.wrap(
      words, 72, initial_indent=' ' * 6, subsequent_indent=' ' * 6
    )
  return '\n'.join(lines)


def _spell(value: Any) -> str:
  """Writes a flag's value as a shell would be given it."""
  return ','.join(value) if isinstance(value, list) else str(value)


def _declared(module: ModuleType) -> absl_flags.FlagValues:
  flags = absl_flags.FlagValues()
  module.define(flags)
  return flags
