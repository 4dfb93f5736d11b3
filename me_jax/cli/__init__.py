"""The command line: `me-jax VERB --flags`, one file a verb.

This file only chooses the verb and turns what went wrong into an exit status,
so that `me-jax --help` answers without importing JAX.
"""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import importlib
import os
import sys

from me_jax import errors

# Each is a module here with `HELP`, `define(flags)` and `run(flags)`.
VERBS = {
  'find': 'find the layer that creates the massive activations',
  'explain': 'say why, with controls, in a page to read and to send',
  'mitigate': 'relax them with a mask, measured on texts that did not choose it',
  'generate': 'answer prompts, mitigated beside stock if wanted',
  'evaluate': 'run tasks on both, and say whether they differ',
  'train': 'fine-tune, with the mitigation in the loop',
  'plan': 'say whether a run fits a pod, before paying for one',
  'export': 'write a model as a Hugging Face folder',
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a verb.

  Args:
    argv: what follows the program's name; by default the process's own.

  Returns:
    0 on success; 1 where a verb's question has a bad answer, as a run that
    does not fit; 2 on bad input, after one line that says what is wrong; 130
    if interrupted.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    status = _main(argv)
    sys.stdout.flush()
    return status
  except errors.MeJaxError as error:
    print(f'me-jax: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('me-jax: interrupted', file=sys.stderr)
    return 130
  except BrokenPipeError:
    # The reader of our output has gone; flushing would complain once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def entry() -> None:
  """Runs a verb as a process and ends it.

  JAX takes half a second to take down what the end of the process frees, so
  the interpreter's own ending is left out; everything is written by then.
  """
  if sys.argv[1:2] == ['train']:
    _use_large_pages()
  status = main()
  sys.stderr.flush()
  os._exit(status)


def _use_large_pages() -> None:
  """Starts this process once more, with large pages for large buffers.

  XLA gets the buffers of a step anew from glibc, which then touches each of
  their pages: with small ones that is a sixth of a step's time on a CPU. glibc
  reads the setting when a process starts.
  """
  if 'linux' not in sys.platform or 'GLIBC_TUNABLES' in os.environ:
    return
  os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
  with contextlib.suppress(OSError):
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _main(argv: list[str]) -> int:
  from me_jax.cli import flags as flags_lib

  if not argv or argv[0] in ('-h', '--help', '-help', 'help'):
    if argv and argv[0] == 'help' and argv[1:]:
      argv = [argv[1], '--help']
    else:
      print(_usage())
      return 0
  if argv[0] == '--version':
    from me_jax import __version__

    print(f'me-jax {__version__}')
    return 0
  verb, rest = argv[0], argv[1:]
  if verb not in VERBS:
    raise errors.MeJaxError(
      f"there is no verb '{verb}'{errors.nearest(verb, VERBS)}; "
      f'verbs: {", ".join(VERBS)}.'
    )
  module = importlib.import_module(f'me_jax.cli.{verb}')
  if any(arg in ('-h', '--help', '-help') for arg in rest):
    print(flags_lib.help_text(verb, module))
    return 0
  # Most verbs have nothing to say about their end but that it was reached.
  return module.run(flags_lib.parse(verb, module, rest)) or 0


def _usage() -> str:
  width = max(map(len, VERBS))
  verbs = [f'  {verb:<{width}}  {what}' for verb, what in VERBS.items()]
  return '\n'.join(
    [
      'me-jax finds, explains and relaxes massive activations in language models.',
      '',
      'Usage: me-jax VERB [--flag=value ...]',
      '',
      *verbs,
      '',
      'me-jax VERB --help lists the flags of a verb. No verb needs any: without',
      'them it is about the default model.',
    ]
  )
