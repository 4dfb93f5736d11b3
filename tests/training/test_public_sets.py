"""A public set is a file of the folder that is given, or asked of the hub."""

from __future__ import annotations

import pytest

from me_jax import errors
from me_jax.training import data
from me_jax.training import public_sets
from tests.support import chats

FILES = {
  'gsm8k-train': 'gsm8k/train.jsonl',
  'gsm8k-test': 'gsm8k/test.jsonl',
  'math500': 'math500/test.jsonl',
  'c4': 'text/c4_demo.jsonl',
  'preferences': 'preferences/dpo_en_demo.jsonl',
}


@pytest.mark.parametrize('name', FILES)
def test_a_set_is_read_from_its_file(name, tmp_path):
  path = tmp_path / FILES[name]
  path.parent.mkdir()
  chats.write(path, [{'text': f'{name} {i}'} for i in range(4)])
  found = public_sets.source(name, tmp_path, rows=(1, -1), weight=2.0)
  assert (found.weight, found.rows) == (2.0, (1, -1))
  assert [record.texts[0] for record in data.rows_of(found, 'texts')] == [
    f'{name} 1', f'{name} 2',
  ]  # fmt: skip


@pytest.mark.parametrize('name', FILES)
def test_without_a_folder_the_hub_is_asked(name, monkeypatch):
  asked = []

  def rows(place, *parts):
    asked.append(parts)
    return [(place, {'text': 'a'})]

  monkeypatch.setattr(data, '_hub_rows', rows)
  data.rows_of(public_sets.source(name, None), 'texts')
  ((owner, configuration, split),) = asked
  # Some of these have several configurations, and would refuse none.
  assert '/' in owner and configuration and split


def test_a_missing_file_says_where_the_set_would_come_from(tmp_path):
  with pytest.raises(errors.MeJaxError) as caught:
    public_sets.source('math500', tmp_path)
  message = str(caught.value)
  assert f'{tmp_path} lacks math500/test.jsonl' in message
  assert 'leave --data out' in message and 'HuggingFaceH4/MATH-500' in message


def test_unknown_sets_are_refused_with_the_nearest(tmp_path):
  with pytest.raises(
    errors.MeJaxError, match="did you mean 'gsm8k-test'"
  ) as no:
    public_sets.source('gsm8k-tests', tmp_path)
  assert all(name in str(no.value) for name in FILES)
