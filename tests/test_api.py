"""What users write stays valid, and importing the package costs nothing."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys

import pytest

from me_jax import cli
from tests.support import api

# Each takes a good part of a second to import.
HEAVY = ('flax', 'jax', 'matplotlib', 'optax', 'orbax', 'transformers')


def test_the_public_interface_is_the_one_that_is_written_down():
  written, here = api.FILE.read_text('utf-8'), api.describe()
  changes = difflib.unified_diff(
    written.splitlines(), here.splitlines(), 'tests/api.txt', 'me_jax'
  )
  assert written == here, '\n'.join(
    [
      'the public interface has changed. If it was meant to, run',
      '  .venv/bin/python -m tests.support.api',
      'and say so in CHANGELOG.md:',
      *changes,
    ]
  )


def imported(program):
  """Returns which of `HEAVY` a program has imported in the end."""
  # The last line, because the program may print, too.
  tail = f'print(*[name for name in {HEAVY!r} if name in sys.modules])'
  ran = subprocess.run(
    [sys.executable, '-c', f'import sys\n{program}\n{tail}'],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    check=True,
    timeout=60,
  )
  return ran.stdout.splitlines()[-1].split()


def test_importing_the_package_imports_nothing_heavy():
  assert imported('import me_jax; dir(me_jax); me_jax.MeJaxError') == []
  assert 'jax' in imported('import me_jax; me_jax.wemask')


@pytest.mark.parametrize('argument', ['--help', '--version', 'help'])
def test_asking_what_there_is_imports_nothing_heavy(argument):
  assert imported(f'from me_jax import cli; cli.main([{argument!r}])') == []


def test_the_help_names_every_verb(capsys):
  assert cli.main(['--help']) == 0
  listed = [line.split()[:1] for line in capsys.readouterr().out.splitlines()]
  assert all([verb] in listed for verb in cli.VERBS)
