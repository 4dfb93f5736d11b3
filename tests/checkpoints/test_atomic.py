"""Folders appear whole, and only where they may."""

from __future__ import annotations

import os
import pathlib

import pytest

from me_jax import errors
from me_jax.checkpoints import atomic


def fill(target, text):
  with atomic.writing(str(target)) as partial:
    assert not target.exists() or (target / 'f').read_text() != text
    pathlib.Path(partial, 'f').write_text(text)


@pytest.fixture(params=['swapped', 'moved aside'])
def _way(request, monkeypatch):
  if request.param == 'moved aside':
    monkeypatch.setattr(atomic, '_exchange', lambda one, other: False)


@pytest.mark.usefixtures('_way')
def test_a_folder_takes_the_place_of_another(tmp_path):
  fill(tmp_path / 'm', 'old')
  fill(tmp_path / 'm', 'new')
  assert (tmp_path / 'm' / 'f').read_text() == 'new'
  assert os.listdir(tmp_path) == ['m']


@pytest.mark.usefixtures('_way')
def test_whatever_is_raised_leaves_the_old_folder(tmp_path):
  fill(tmp_path / 'm', 'old')
  with pytest.raises(KeyboardInterrupt):
    with atomic.writing(str(tmp_path / 'm')) as partial:
      pathlib.Path(partial, 'f').write_text('new')
      raise KeyboardInterrupt
  assert (tmp_path / 'm' / 'f').read_text() == 'old'
  assert os.listdir(tmp_path) == ['m']


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
  fill(tmp_path / 'm', 'old')
  rename = os.rename

  def fail(one, other):
    if one.endswith('.partial'):
      raise OSError(5, 'Input/output error')
    rename(one, other)

  monkeypatch.setattr(atomic, '_exchange', lambda one, other: False)
  monkeypatch.setattr(os, 'rename', fail)
  with pytest.raises(errors.MeJaxError, match='Input/output error'):
    fill(tmp_path / 'm', 'new')
  assert (tmp_path / 'm' / 'f').read_text() == 'old'
  assert os.listdir(tmp_path) == ['m']


def test_two_writers_do_not_mix(tmp_path):
  with atomic.writing(str(tmp_path / 'm')) as partial:
    with pytest.raises(errors.MeJaxError, match='being written'):
      fill(tmp_path / 'm', 'second')
    pathlib.Path(partial, 'f').write_text('first')
  assert (tmp_path / 'm' / 'f').read_text() == 'first'


def test_what_a_killed_writer_left_is_removed(tmp_path):
  left = pathlib.Path(atomic.staging(str(tmp_path / 'm')))
  left.mkdir()
  (left / 'half').write_text('')
  fill(tmp_path / 'm', 'new')
  assert os.listdir(tmp_path) == ['m']
  assert os.listdir(tmp_path / 'm') == ['f']


def test_checking_leaves_nothing_behind(tmp_path):
  def check(folder):
    return atomic.check_target(
      folder, overwrite=False, ours=str.isalpha, mark='f'
    )

  assert check(tmp_path / 'a' / 'b') == str(tmp_path / 'a' / 'b')
  assert not os.listdir(tmp_path)
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.MeJaxError, match='Not a directory'):
    check(tmp_path / 'file' / 'a' / 'b')
  assert os.listdir(tmp_path) == ['file']


def test_no_room(tmp_path):
  atomic.check_space(str(tmp_path / 'a' / 'b'), 1)
  with pytest.raises(errors.MeJaxError, match='GB'):
    atomic.check_space(str(tmp_path / 'a' / 'b'), 10**18)


def test_a_folder_taken_for_stale_is_not_shared(tmp_path, monkeypatch):
  """Another process comes between making a folder and locking it."""
  target = str(tmp_path / 'm')
  partial = pathlib.Path(atomic.staging(target))
  flock = atomic.fcntl.flock

  def late(handle, kind):
    monkeypatch.setattr(atomic.fcntl, 'flock', flock)
    partial.rmdir()
    partial.mkdir()
    (partial / 'theirs').write_text('')
    flock(handle, kind)

  monkeypatch.setattr(atomic.fcntl, 'flock', late)
  with pytest.raises(errors.MeJaxError, match='being written'):
    fill(tmp_path / 'm', 'ours')
  assert [p.name for p in partial.iterdir()] == ['theirs']
  assert not (tmp_path / 'm').exists()
