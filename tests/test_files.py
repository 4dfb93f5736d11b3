"""Files appear whole or not at all."""

from __future__ import annotations

import json

import pytest

from me_jax import errors
from me_jax import files


def test_a_file_is_replaced_when_the_new_one_is_complete(tmp_path):
  path = tmp_path / 'new' / 'f.txt'
  files.write_text(path, 'old')
  with files.whole(path) as partial:
    partial.write_text('new')
    assert path.read_text() == 'old'
  assert path.read_text() == 'new'
  assert [p.name for p in path.parent.iterdir()] == ['f.txt']


def test_what_fails_leaves_the_old_file(tmp_path):
  path = tmp_path / 'f.txt'
  files.write_text(path, 'old')
  with pytest.raises(ZeroDivisionError), files.whole(path) as partial:
    partial.write_text('half')
    raise ZeroDivisionError
  assert path.read_text() == 'old'
  assert [p.name for p in tmp_path.iterdir()] == ['f.txt']


def test_what_the_system_refuses_is_said_in_a_line(tmp_path):
  with pytest.raises(errors.MeJaxError, match='No such file'):
    with files.whole(tmp_path / 'missing' / 'f') as partial:
      partial.write_text('x')
  files.write_text(tmp_path / 'f', '')
  with pytest.raises(errors.MeJaxError, match='cannot make the folder'):
    files.write_text(tmp_path / 'f' / 'g', '')
  for path in (tmp_path, tmp_path / 'f' / 'g'):
    with pytest.raises(errors.MeJaxError):
      files.check_writable(path)
  files.check_writable(tmp_path / 'some' / 'where' / 'new')
  assert [p.name for p in tmp_path.iterdir()] == ['f']


def test_names_that_are_not_utf8_become_valid_json(tmp_path):
  value = {'path': 'caf\udce9', 'ö': 1}
  files.write_json(tmp_path / 'f.json', value)
  text = (tmp_path / 'f.json').read_text('utf-8')
  assert json.loads(text) == value and 'ö' in text
