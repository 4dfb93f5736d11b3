"""`me-jax explain`, from flags to a page, and what it says to bad input."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import shlex
import shutil
from typing import NamedTuple

import pytest

from me_jax import cli
from me_jax.cli import explain
from me_jax.cli import flags as flags_lib
from me_jax.plotting import static
from tests.support import folder as folder_lib
from tests.support import planted


@pytest.fixture(scope='module', name='planted_folder')
def _planted_folder(tmp_path_factory):
  model, params = planted.build(planted.VERDICTS['single'])
  return folder_lib.write(model, params, tmp_path_factory.mktemp('planted'))


@pytest.fixture(scope='module', name='prompts')
def _prompts(tmp_path_factory):
  path = tmp_path_factory.mktemp('prompts') / 'prompts.txt'
  path.write_text('the first prompt\nanother one, 123\nand a third\n')
  return path


class Written(NamedTuple):
  argv: list[str]
  out: pathlib.Path
  stdout: str
  stderr: str


@pytest.fixture(scope='module', name='written')
def _written(planted_folder, prompts, tmp_path_factory):
  """Runs the verb once."""
  out = tmp_path_factory.mktemp('out') / 'new' / 'page'
  argv = [
    'explain', f'--model={planted_folder}', f'--prompts={prompts}',
    f'--out={out}', '--seed=3',
  ]  # fmt: skip
  stdout, stderr = io.StringIO(), io.StringIO()
  with (
    contextlib.redirect_stdout(stdout),
    contextlib.redirect_stderr(stderr),
  ):
    assert cli.main(argv) == 0
  return Written(argv, out, stdout.getvalue(), stderr.getvalue())


def test_writes_the_page_and_says_what_it_found(written):
  argv, out, stdout, stderr = written
  headline = 'Layer 4 (layer 5 of 8) is the ME Layer'
  assert stdout.startswith(headline)
  assert 'One layer creates the massive activations: holds.' in stdout
  assert f'{out}/report.html' in stdout
  assert 'drawing' in stderr
  page = (out / 'report.html').read_text('utf-8')
  assert headline in page and 'id="emergence"' in page
  values = json.loads((out / 'report.json').read_text())
  assert values['sections']['emergence']['numbers']['layer'] == 4
  assert values['provenance']['seed'] == 3
  assert values['provenance']['prompt_count'] == 3
  # The command in the page makes the same page.
  assert shlex.split(values['command'])[1:] == argv
  assert (out / 'figures' / 'emergence-ridges.svg').stat().st_size > 1000


def test_a_second_run_replaces_the_first(
  planted_folder, prompts, written, tmp_path
):
  out = tmp_path / 'page'
  shutil.copytree(written.out, out)
  argv = ['explain', f'--model={planted_folder}', f'--prompts={prompts}']
  assert cli.main([*argv, f'--out={out}', '--bos=never']) == 0
  values = json.loads((out / 'report.json').read_text())
  assert values['provenance']['bos'] == 'never'
  assert values['sections']['emergence']['verdict'] == 'not tested'
  assert [p.name for p in tmp_path.iterdir()] == ['page']


def test_an_interrupted_run_leaves_nothing(
  planted_folder, prompts, tmp_path, monkeypatch
):
  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(static, 'save', interrupt)
  argv = ['explain', f'--model={planted_folder}', f'--prompts={prompts}']
  assert cli.main([*argv, f'--out={tmp_path}/page']) == 130
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('flags', 'named'),
  [
    (['--out={tmp}/file'], 'is a file'),
    (['--out={tmp}/file/r'], 'cannot write'),
    (['--out={tmp}/mine'], 'holds notes.txt'),
    (['--out=.'], 'current folder'),
    (['--out=gs://bucket/r'], 'no local path'),
    (['--seed=-1'], 'seed'),
    (['--seed=x'], 'seed'),
    (['--json=x'], 'no flag'),
    (['--model=/no/such/model'], '/no/such/model'),
    (['--prompts={tmp}/missing.txt'], 'missing.txt'),
  ],
)
def test_bad_input_is_one_line_before_any_work(
  planted_folder, tmp_path, capsys, flags, named
):
  (tmp_path / 'file').write_text('')
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'notes.txt').write_text('mine')
  before = sorted(tmp_path.rglob('*'))
  flags = [flag.format(tmp=tmp_path) for flag in flags]
  if not any(flag.startswith('--model=') for flag in flags):
    flags.append(f'--model={planted_folder}')
  if not any(flag.startswith('--out=') for flag in flags):
    flags.append(f'--out={tmp_path}/out')
  assert cli.main(['explain', *flags]) == 2
  said = capsys.readouterr()
  (line,) = said.err.strip().splitlines()
  assert line.startswith('me-jax: ') and named in line
  assert said.out == '' and sorted(tmp_path.rglob('*')) == before


def test_help_names_its_flags():
  text = flags_lib.help_text('explain', explain)
  for flag in ('model', 'dtype', 'prompts', 'bos', 'out', 'seed'):
    assert f'--{flag}' in text
  assert '[explain]' in text, 'where the page goes unless told otherwise'


def test_a_command_line_holds_what_differs_from_the_defaults():
  flags = flags_lib.parse('explain', explain, ['--out=a b', '--bos=both'])
  assert flags_lib.command_line('explain', flags) == (
    "me-jax explain '--out=a b'"
  )
