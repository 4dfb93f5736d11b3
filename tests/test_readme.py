"""Every command that the documentation shows is one that works.

Those of the command line run, in order, in one folder, on a tiny model and a few
rows. What needs a pod, a cluster or an installation is looked at: its target,
extra, module, flags and configuration exist.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import pathlib
import re
import subprocess
import tomllib

import pytest

import me_jax
from me_jax import cli
from me_jax.checkpoints import locate
from me_jax.cli import flags as flags_lib
from me_jax.cli import train_flags
from me_jax.planning import topology as topology_lib
from tests.support import documented
from tests.support import shell_blocks

ROOT = pathlib.Path(me_jax.__file__).parent.parent
PAGES = [
  path
  for path in (
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    *sorted(ROOT.glob('docs/*.md')),
    *sorted(ROOT.glob('colab/*.md')),
  )
  if path.exists()
]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text('utf-8'))
# Programs whose commands are other people's to test.
OTHERS = ('cd', 'git', 'jupyter', 'open', 'xdg-open')
HAS_LM_EVAL = importlib.util.find_spec('lm_eval') is not None


@pytest.fixture(scope='module', name='found')
def _found(tmp_path_factory):
  return documented.fixtures(tmp_path_factory.mktemp('documented'))


@pytest.fixture(name='place')
def _place(found, tmp_path, monkeypatch):
  """Moves to an empty folder where the default model is a tiny one."""
  monkeypatch.setattr(locate, '_installed', lambda _: str(found['model']))
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  return tmp_path


@pytest.fixture(scope='module', name='kinds')
def _kinds():
  """Collects what has run; what is like it is then only looked at."""
  return set()


def of_ours(command):
  """Returns what `me-jax` is given by a command, None if it is another's."""
  program = pathlib.PurePath(command[0]).name
  if program == 'me-jax':
    return list(command[1:])
  if program.startswith('python') and command[1:3] == ('-m', 'me_jax'):
    return list(command[3:])
  return None


def parsed(argv):
  verb = argv[0]
  assert verb in cli.VERBS, f'there is no verb {verb}'
  module = importlib.import_module(f'me_jax.cli.{verb}')
  return flags_lib.parse(verb, module, argv[1:])


def check_ours(argv):
  """Checks a command that is not run, as far as nothing need be read."""
  if argv[0].startswith('-') or argv[-1] in ('--help', '-h'):
    assert argv[0] in (*cli.VERBS, '--help', '--version')
    return
  flags = parsed(argv)
  if argv[0] not in ('train', 'plan'):
    return
  flags.data = None  # a path on the reader's machine
  if flags.config:
    flags.config = str(ROOT / flags.config)
  if 'help' in flags.set:
    return
  train_flags.run(flags)
  if argv[0] == 'plan':
    topology_lib.find(flags.topology)


def check_make(arguments):
  targets = [word for word in arguments if '=' not in word]
  ran = subprocess.run(
    ['make', '-n', *arguments], cwd=ROOT, capture_output=True, text=True
  )
  assert ran.returncode == 0 and targets, ran.stderr
  known = re.findall(r'^([^\s:=#]+):', (ROOT / 'Makefile').read_text(), re.M)
  known = [name.replace('$(VENV)', '.venv') for name in known]
  known = [name.replace('$(TPU)', '.tpu') for name in known]
  assert set(targets) <= set(known)


def check_pip(arguments):
  assert arguments[0] == 'install'
  extras = PROJECT['project']['optional-dependencies']
  for word in arguments[1:]:
    asked = re.match(r'(?:\.|me[-_]jax)\[(.+)\]$', word)
    assert not asked or set(asked[1].split(',')) <= set(extras), word


def check_python(arguments):
  assert arguments[0] == '-m', 'only modules are run here'
  name, *rest = arguments[1:]
  if name == 'pip':
    check_pip(rest)
    return
  if name in ('pytest', 'benchmarks') or name.startswith(('me_jax.', 'tests.')):
    assert importlib.util.find_spec(name), name
  else:
    pytest.fail(f'the test does not know {name}')
  for word in rest:
    if word.startswith('tests/'):
      assert (ROOT / word.split('::')[0]).exists(), word


def remote_of(arguments):
  """Returns what gcloud runs on a pod's hosts."""
  (remote,) = (
    word.partition('=')[2]
    for word in arguments
    if word.startswith('--command=')
  )
  return remote


def check(command):
  """Checks a command that is not run; fails if it is not known."""
  program, *arguments = command
  program = pathlib.PurePath(program).name
  ours = of_ours(command)
  if ours is not None:
    check_ours(ours)
  elif program == 'make':
    check_make(arguments)
  elif program == 'pip':
    check_pip(arguments)
  elif program.startswith('python'):
    check_python(arguments)
  elif program == 'ruff':
    assert arguments[0] in ('check', 'format')
  elif program == 'srun':
    while arguments[0].startswith('-'):
      arguments = arguments[1:]
    check(arguments)
  elif program == 'gcloud':
    remote = remote_of(arguments) or arguments[-1]
    for one in shell_blocks.split(remote):
      check(one)
  else:
    assert program in OTHERS, f'the test does not know {program}'


def put(found, verb, flags):
  """Puts what the flags name, and no earlier command wrote, where they say."""
  if verb == 'mitigate':
    found = found | {'data': found['corpus']}
  for name, fixture in found.items():
    if name not in flags or not flags[name].value:
      continue
    value = flags[name].value
    path = pathlib.Path(value)
    if path.is_symlink():  # of an earlier command
      path.unlink()
    if value in ('smollm2', 'wemask', 'hub') or path.exists():
      continue
    assert not path.is_absolute(), f'--{name}={value}'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(fixture)


def is_run(argv):
  if argv is None or argv[0] not in documented.SHORT:
    return False
  flags = parsed(argv)
  # The configurations of large models are planned, here and elsewhere.
  large = argv[0] == 'train' and 'qwen' in (flags.config or '')
  listing = argv[0] == 'train' and 'help' in flags.set
  return not large and not listing and (argv[0] != 'evaluate' or HAS_LM_EVAL)


def kind(argv):
  """Returns what runs once: a verb, and training that a file describes."""
  return argv[0], argv[0] == 'train' and bool(parsed(argv).config)


def ran(found, argv, monkeypatch):
  """Runs a command and returns the folders and files that it wrote."""
  flags = parsed(argv)
  put(found, argv[0], flags)
  said = io.StringIO()
  monkeypatch.setattr('sys.stdin', io.StringIO())
  with contextlib.redirect_stdout(said):
    more = [flag.format(**found) for flag in documented.SHORT[argv[0]]]
    status = cli.main([*argv, *more])
  assert status == 0, f'{argv} ends with {status}'
  wrote = re.findall(r'^wrote ([^\s,]+)', said.getvalue(), re.MULTILINE)
  assert wrote or argv[0] == 'generate', f'{argv} says nothing of what it wrote'
  for path in wrote:
    assert pathlib.Path(path).exists(), f'{argv} did not write {path}'
  if 'out' not in flags:
    return []
  return [flags.out or train_flags.out(flags)] if flags.out or wrote else []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_command_works(page, found, place, monkeypatch, kinds):
  outs = []
  for command in dict.fromkeys(shell_blocks.commands(page)):
    argv = of_ours(command)
    if is_run(argv) and kind(argv) not in kinds:
      kinds.add(kind(argv))
      outs += ran(found, argv, monkeypatch)
    else:
      check(command)
  # What the sentences say lies in these folders does.
  for span in shell_blocks.spans(page):
    for out in outs:
      if span.startswith(f'{out}/') and re.fullmatch(r'[\w./-]+', span):
        assert (place / span).exists(), f'no command wrote {span}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_exist(page):
  for span in shell_blocks.spans(page):
    if re.match(r'(make|pip install|me-jax) ', span) and 'VERB' not in span:
      for command in shell_blocks.split(span):
        argv = of_ours(command)
        # A verb's name alone runs it without flags.
        check(command if argv != [] else ('me-jax', '--help'))


def test_what_gcloud_runs_is_a_word_with_its_flag():
  for command in shell_blocks.commands(ROOT / 'README.md'):
    assert command[0] != 'gcloud' or remote_of(command), command


def test_every_path_that_contributors_are_told_of_exists():
  named = [
    span
    for span in shell_blocks.spans(ROOT / 'CONTRIBUTING.md')
    if re.fullmatch(r'(me_jax|tests|configs|constraints)(/[\w.]+)*', span)
  ]
  assert named
  for path in named:
    assert (ROOT / path).exists(), path


def test_every_target_for_a_reader_is_in_the_help():
  text = (ROOT / 'Makefile').read_text('utf-8').replace('\\\n', ' ')
  phony = {
    name
    for line in re.findall(r'^\.PHONY:(.*)', text, re.MULTILINE)
    for name in line.split()
    # Files that are made anew under a condition are no commands.
    if not name.startswith('$')
  }
  printed = subprocess.run(
    ['make', '-s', 'help'], cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout
  listed = set(re.findall(r'^make (\S+)', printed, re.MULTILINE))
  assert phony - {'help'} == listed


def test_a_command_that_is_not_known_fails():
  for line in ('conda install me_jax', 'make nothing', "pip install '.[nope]'",
               'me-jax find --modle=x', 'srun -n2 me-jax fly',
               'me-jax train --config=configs/none.py'):  # fmt: skip
    (command,) = shell_blocks.split(line)
    with pytest.raises((AssertionError, me_jax.MeJaxError)):
      check(command)
