"""`me-jax generate`: let the model speak, mitigated beside stock if wanted."""

from __future__ import annotations

from collections.abc import Iterator
import functools
import sys
from typing import Any

from absl import flags as absl_flags

from me_jax import errors
from me_jax.cli import compared
from me_jax.cli import session

HELP = """\
Answers one prompt (--prompt), or what you type, line by line, until an empty
line or the end of the input: a chat goes on, each line with all before it. With
--mitigation two models answer, side by side. With --chat=never each line is a
text of its own."""

_EXAMPLE = 'What is the capital of France?'
_MOST = 10**9


def define(flags: absl_flags.FlagValues) -> None:
  """Declares the verb's flags."""
  compared.define(flags)
  for name, what in (
    ('prompt', 'what to answer, instead of what is typed.'),
    ('system', 'a message to the model that comes before the first.'),
  ):
    absl_flags.DEFINE_string(name, None, what, flag_values=flags)
  absl_flags.DEFINE_enum(
    'chat',
    'auto',
    ['auto', 'always', 'never'],
    "whether prompts go through the model's chat template, or are texts that are"
    ' gone on with; by default if there is a template.',
    flag_values=flags,
  )
  absl_flags.DEFINE_integer(
    'max_new_tokens',
    256,
    'tokens of an answer, at most.',
    lower_bound=1,
    upper_bound=_MOST,
    flag_values=flags,
  )
  define_sampling(flags)
  # A list would split at commas and lose line breaks.
  absl_flags.DEFINE_multi_string(
    'stop',
    None,
    'a string that ends an answer; may be given several times.',
    flag_values=flags,
  )


def define_sampling(flags: absl_flags.FlagValues) -> None:
  """Declares how tokens are chosen."""
  for name, default, what in (
    ('temperature', 0.0, 'logits are divided by it; 0 takes the likeliest token.'),
    ('top_p', 1.0, 'only the likeliest tokens that have this probability together.'),
    ('min_p', 0.0, "only tokens with this share of the likeliest one's probability."),
    ('repetition_penalty', 1.0, 'makes tokens that were there less likely; 1 is none.'),
  ):  # fmt: skip
    absl_flags.DEFINE_float(name, default, what, flag_values=flags)
  absl_flags.DEFINE_integer(
    'top_k', 0, 'only so many likeliest tokens; 0 is all.', flag_values=flags
  )
  absl_flags.DEFINE_integer(
    'seed',
    0,
    'of what is sampled.',
    lower_bound=0,
    upper_bound=2**30,
    flag_values=flags,
  )


def run(flags: absl_flags.FlagValues) -> None:
  """Runs the verb."""
  from me_jax.generation import sampler
  from me_jax.generation import serve

  settings = {
    name: getattr(flags, name)
    for name in ('temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty')
  }
  sampler.Sampling(**settings)
  idle = [
    f'--{name}'
    for name in ('top_k', 'top_p', 'min_p', 'seed')
    if flags[name].value != flags[name].default
  ]
  if idle and not flags.temperature:
    print(
      f'me-jax: without --temperature, {" and ".join(idle)} will change nothing.',
      file=sys.stderr,
    )
  with session.progress() as progress:
    models = compared.load(
      flags, progress, check=functools.partial(_check, flags)
    )
  chat = _is_chat(flags, models.tokenizer)
  settings |= {
    'seed': flags.seed,
    'max_new_tokens': flags.max_new_tokens,
    'stop_strings': flags.stop or (),
  }
  # Once, and not for every answer.
  forms = {
    name: serve.decoding_form(models.model, models.params.pop(name))
    for name in [*models.params]
  }
  # Each model remembers its own answers.
  said = {
    name: [{'role': 'system', 'content': flags.system}] if flags.system else []
    for name in forms
  }
  for prompt in _prompts(flags):
    answers = {}
    for name, form in forms.items():
      said[name].append({'role': 'user', 'content': prompt})
      ids = _encode(models, said[name] if chat else prompt)
      answers[name] = _answer(
        form, models.tokenizer, ids, settings, shown=len(forms) == 1
      )
      said[name].append({'role': 'assistant', 'content': answers[name]})
    if len(answers) > 1:
      _beside(answers)


def _is_chat(flags: Any, tokenizer: Any) -> bool:
  """Says whether what is answered are chats."""
  return flags.chat == 'always' or (
    flags.chat == 'auto' and bool(tokenizer.chat_template)
  )


def _check(flags: Any, tokenizer: Any, config: Any) -> None:
  """Raises MeJaxError for flags that do not go with the model."""
  if flags.system and flags.chat == 'never':
    raise errors.MeJaxError('--system has no place with --chat=never.')
  chat = _is_chat(flags, tokenizer)
  if chat and not tokenizer.chat_template:
    raise errors.MeJaxError(
      f'{flags.model} has no chat template: --chat=never goes on with texts.'
    )
  if flags.system and not chat:
    raise errors.MeJaxError('--system needs a chat template.')
  if flags.max_new_tokens >= config.context_length:
    raise errors.MeJaxError(
      f'--max_new_tokens={flags.max_new_tokens} leaves no room for a prompt: the'
      f' context is {config.context_length}.'
    )


def _prompts(flags: Any) -> Iterator[str]:
  """Yields what is to be answered."""
  if flags.prompt:
    yield flags.prompt
    return
  terminal = sys.stdin.isatty()
  if terminal:
    print('Type a message; an empty line ends.', file=sys.stderr)
  some = False
  while True:
    if terminal:
      print('> ', end='', file=sys.stderr, flush=True)
    try:
      line = sys.stdin.readline()
      line.encode()
    except UnicodeError:
      raise errors.MeJaxError('what is typed is not UTF-8 text.') from None
    if not line.strip():
      break
    some = True
    yield line.strip()
  if not some and not terminal:
    print(f'me-jax: no input; an example: {_EXAMPLE}', file=sys.stderr)
    yield _EXAMPLE


def _encode(models: compared.Models, what: Any) -> list[int]:
  """Returns the ids of a text, or of a chat whose answer is to come."""
  from me_jax.checkpoints import encoding

  if isinstance(what, str):
    return encoding.token_ids(models.tokenizer, models.config, [what])[0]
  return encoding.chat_ids(models.tokenizer, models.config, what)


def _answer(
  form: tuple[Any, Any],
  tokenizer: Any,
  ids: list[int],
  settings: dict[str, Any],
  *,
  shown: bool,
) -> str:
  """Returns an answer, and prints it as it comes if it is shown."""
  from me_jax.generation import generate
  from me_jax.generation import stopping
  from me_jax.models import batch as batch_lib

  printed = ''

  def spell(tokens: list[int]) -> str:
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return stopping.cut(text, settings['stop_strings'])

  def on_tokens(_: int, tokens: list[int]) -> None:
    nonlocal printed
    # Part of a character, or what may become a stop string, waits.
    text = spell(tokens).rstrip('\ufffd')
    text = text[: len(text) - stopping.begun(text, settings['stop_strings'])]
    if text.startswith(printed):
      print(text[len(printed) :], end='', flush=True)
      printed = text

  out = generate.generate(
    *form,
    batch_lib.make_batch([ids]),
    decode=tokenizer.decode,
    on_tokens=on_tokens if shown else None,
    **settings,
  )
  text = spell(out.ids()[0])
  if shown:
    print(text[len(printed) :] if text.startswith(printed) else text)
  return text


def _beside(answers: dict[str, str]) -> None:
  """Prints answers in columns."""
  from rich import console as console_lib
  from rich import table as table_lib
  from rich import text as text_lib

  table = table_lib.Table(expand=True)
  for name in answers:
    table.add_column(name, ratio=1)
  table.add_row(*(text_lib.Text(answer.strip()) for answer in answers.values()))
  console_lib.Console().print(table)
