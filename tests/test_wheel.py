"""What is installed is the package alone, whole, and works from anywhere."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import me_jax

ROOT = pathlib.Path(me_jax.__file__).parent.parent
COMPILED = shutil.ignore_patterns('__pycache__')


def run(*command, **options):
  ran = subprocess.run(
    [*map(str, command)],
    capture_output=True,
    text=True,
    timeout=60,
    **options,
  )
  assert ran.returncode == 0, ran.stderr[-2000:]
  return ran.stdout


def pip(*arguments, **options):
  run(sys.executable, '-m', 'pip', *arguments, '--no-deps', **options)


@pytest.fixture(scope='module', name='wheel')
def _wheel(tmp_path_factory):
  """Builds from a copy, because building writes beside the sources."""
  folder = tmp_path_factory.mktemp('wheel')
  source = folder / 'source'
  source.mkdir()
  for name in ('pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  for name in ('me_jax', 'tests', 'benchmarks', 'configs'):
    shutil.copytree(ROOT / name, source / name, ignore=COMPILED)
  pip('wheel', '--no-build-isolation', '--wheel-dir', folder, source)
  (path,) = folder.glob('*.whl')
  return path


@pytest.fixture(scope='module', name='names')
def _names(wheel):
  with zipfile.ZipFile(wheel) as archive:
    return set(archive.namelist())


def test_every_file_of_the_package_is_in_it(names):
  wanted = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / 'me_jax').rglob('*')
    if path.is_file() and '__pycache__' not in path.parts
  }
  assert 'me_jax/py.typed' in wanted
  assert wanted - names == set()


def test_nothing_else_is_in_it(names):
  info = f'me_jax-{me_jax.__version__}.dist-info'
  assert {name.split('/')[0] for name in names} == {'me_jax', info}
  assert f'{info}/licenses/LICENSE' in names
  assert not [name for name in names if name.endswith('.pyc')]


def test_its_version_is_the_same_everywhere():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text('utf-8'))
  assert project['project']['version'] == me_jax.__version__
  citation = (ROOT / 'CITATION.cff').read_text('utf-8')
  assert f'\nversion: {me_jax.__version__}\n' in citation
  assert f'\n## [{me_jax.__version__}]' in (ROOT / 'CHANGELOG.md').read_text()


def test_it_works_outside_the_checkout(wheel, tmp_path):
  target = tmp_path / 'installed'
  # A new folder has the package alone; the rest is found where tests run.
  pip('install', '--no-index', '--target', target, wheel)
  run_in = {'cwd': tmp_path, 'env': os.environ | {'PYTHONPATH': str(target)}}
  where = 'import me_jax; print(me_jax.__file__)'
  said = run(sys.executable, '-c', where, **run_in).strip()
  assert pathlib.Path(said) == target / 'me_jax' / '__init__.py'
  command = [sys.executable, target / 'bin' / 'me-jax']
  version = run(*command, '--version', **run_in)
  assert version == f'me-jax {me_jax.__version__}\n'
  assert 'Usage: me-jax VERB' in run(*command, '--help', **run_in)
  reading = (
    'from me_jax.evaluation import data;'
    'print(len([data.rows(name, data.samples()) for name in data.SOURCES]))'
  )
  assert int(run(sys.executable, '-c', reading, **run_in)) > 1
