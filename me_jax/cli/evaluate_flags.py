"""The flags of `me-jax evaluate`: which tasks, which data, how much of them."""

from __future__ import annotations

from absl import flags as absl_flags

from me_jax.cli import compared

_OUT = 'evaluate'
_MOST = 10**9


def define(flags: absl_flags.FlagValues) -> None:
  """Declares the verb's flags."""
  compared.define(flags)
  flags.mitigation = compared.WEMASK
  flags['mitigation'].default = compared.WEMASK
  absl_flags.DEFINE_list(
    'tasks',
    'gsm8k,math500,aime24,ifeval,mmlu,xstest,loss',
    'what to run.',
    flag_values=flags,
  )
  absl_flags.DEFINE_string(
    'data',
    None,
    'a folder with gsm8k/test.jsonl, math500/test.jsonl, aime24/test.jsonl,'
    ' ifeval/prompts.jsonl, mmlu/test.jsonl (and dev.jsonl), xstest/prompts.csv;'
    ' or hub, to download them. Default: samples that come with me_jax.',
    flag_values=flags,
  )
  absl_flags.DEFINE_boolean(
    'full',
    False,
    'all items, with answers as long as each task allows; else the first few,'
    ' cut short, to see that everything works.',
    flag_values=flags,
  )
  absl_flags.DEFINE_integer(
    'limit',
    None,
    'items of each task, at most.',
    lower_bound=1,
    upper_bound=_MOST,
    flag_values=flags,
  )
  absl_flags.DEFINE_integer(
    'max_new_tokens',
    None,
    'tokens of an answer, where a task allows more.',
    lower_bound=1,
    upper_bound=_MOST,
    flag_values=flags,
  )
  absl_flags.DEFINE_integer(
    'rows',
    64,
    'texts in the making at a time.',
    lower_bound=1,
    upper_bound=4096,
    flag_values=flags,
  )
  absl_flags.DEFINE_boolean(
    'released_matcher',
    False,
    "grade maths by the paper's published matcher too, which takes '1' for"
    " '12'; for comparison only.",
    flag_values=flags,
  )
  absl_flags.DEFINE_boolean(
    'anew',
    False,
    'forget what an earlier run has left in --out.',
    flag_values=flags,
  )
  absl_flags.DEFINE_string(
    'out', _OUT, 'the folder to write into.', flag_values=flags
  )
  absl_flags.DEFINE_integer(
    'seed',
    0,
    'of the bootstrap, and of tasks that sample.',
    lower_bound=0,
    upper_bound=_MOST,
    flag_values=flags,
  )
