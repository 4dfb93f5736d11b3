"""From files and datasets to batches, and every input that is refused."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

import me_jax
from me_jax.training import data
from tests.support import chats

ROWS = [{'question': letter, 'answer': letter * 3} for letter in 'abcdef']


@pytest.fixture(scope='module', name='config')
def _config():
  return chats.config()


def load(config, mix, kind='texts', **more):
  arguments = {'length': 40, 'batch_size': 2, **more}
  return data.load(mix, kind, chats.tokenizer(), config, **arguments)


def test_rows_of_files_and_folders_in_order(tmp_path):
  a = chats.write(tmp_path / 'a.jsonl', ROWS[:2])
  b = chats.write(tmp_path / 'b.txt', ['one', '', 'two'])
  chats.write(tmp_path / 'c.md', ['no'])
  found = data.read(tmp_path, 'texts')
  assert [record.where for record in found] == [
    f'{a}, line 1', f'{a}, line 2', f'{b}, line 1', f'{b}, line 3',
  ]  # fmt: skip
  assert [record.texts[0] for record in found[2:]] == ['one', 'two']
  assert data.read([str(a), b], 'texts') == found
  assert data.read(str(b), 'texts') == found[2:]


def test_a_file_becomes_packed_batches(config, tmp_path):
  path = chats.write(tmp_path / 'a.jsonl', ROWS)
  found = load(config, path)
  batch = next(found)
  assert {array.shape for array in batch} == {(2, 40)}
  # Of each text three letters and the end.
  texts = batch.segments_BT.max(axis=1)
  assert batch.wanted_BT.sum() == 4 * texts.sum() > 8
  assert found.counts[0].used == 6 and found.counts[0].left_out == 0


def test_pairs_and_prompts_become_batches(config, tmp_path):
  rows = [{**row, 'chosen': 'yes', 'rejected': 'no'} for row in ROWS]
  path = chats.write(tmp_path / 'a.jsonl', rows)
  pairs = next(load(config, path, 'pairs'))
  assert pairs.chosen.wanted_BT.sum() == 8
  assert pairs.rejected.wanted_BT.sum() == 6
  prompts = next(load(config, path, 'prompts'))
  for tokens_T, row in zip(*prompts, strict=True):
    assert chats.tokenizer().decode(tokens_T).replace(' ', '') == (
      f'<bos>u{row["question"]}<end>.a'
    )


def test_a_mix_has_files_with_weights(config, tmp_path):
  short = chats.write(tmp_path / 'a.txt', ['a', 'b'])
  long = chats.write(tmp_path / 'b.txt', ['cdef', 'ghij'])
  mix = data.Mix(
    sources=(data.Source(data=short, weight=3), data.Source(data=long))
  )
  found = load(config, mix, pack=False, batch_size=8)
  assert len(found.counts) == 2
  for _ in range(3):
    lengths = (next(found).segments_BT > 0).sum(axis=1)
    assert sorted(lengths) == [1] * 6 + [4] * 2


def test_arguments_reach_what_they_are_for(config, tmp_path):
  path = chats.write(
    tmp_path / 'a.jsonl',
    [{'messages': chats.chat('a', 'bc', 'd', letter)} for letter in 'efghijk'],
  )

  def first(**more):
    return next(load(config, path, pack=False, batch_size=7, **more))

  assert first().wanted_BT.sum(axis=1).tolist() == [2] * 7
  assert first(answers='all').wanted_BT.sum(axis=1).tolist() == [5] * 7
  orders = {first(seed=seed).tokens_BT.tobytes() for seed in range(5)}
  assert len(orders) > 1


def test_rows_that_are_too_long_are_counted(config, tmp_path):
  path = chats.write(tmp_path / 'a.txt', ['a' * 9, 'b' * 41, 'c' * 50])
  (count,) = load(config, path).counts
  assert (count.used, count.left_out, count.longest) == (1, 2, 50)


def test_hosts_read_their_shares(config, tmp_path):
  path = chats.write(tmp_path / 'a.jsonl', ROWS)
  arguments = {'pack': False, 'batch_size': 4, 'seed': 3}
  whole = next(load(config, path, **arguments))
  parts = [
    next(load(config, path, hosts=2, host=host, **arguments))
    for host in range(2)
  ]
  together = np.concatenate([part.tokens_BT for part in parts])
  np.testing.assert_array_equal(together, whole.tokens_BT)


@pytest.mark.parametrize(
  ('rows', 'want'),
  [
    (None, 'abcdef'),
    ((None, None), 'abcdef'),
    ((0, 2), 'ab'),
    ((4, None), 'ef'),
    ((-2, None), 'ef'),
    ((None, -2), 'abcd'),
    ((4, 99), 'ef'),
  ],
)
def test_a_source_may_be_a_slice_of_its_rows(config, tmp_path, rows, want):
  path = chats.write(tmp_path / 'a.jsonl', ROWS)
  source = data.Source(data=path, rows=rows)
  found = data.rows_of(source, 'texts')
  assert ''.join(record.row['question'] for record in found) == want
  # And is one in a mix, also over several files.
  mix = data.Mix(sources=(source, data.Source(data=[path, path], rows=(5, 8))))
  counts = load(config, mix).counts
  assert [count.used for count in counts] == [len(want), 3]


def test_a_slice_without_rows_is_refused(config, tmp_path):
  path = chats.write(tmp_path / 'a.jsonl', ROWS)
  source = data.Source(data=path, rows=(6, None))
  with pytest.raises(me_jax.MeJaxError, match='has 6 rows, none of them in'):
    data.rows_of(source, 'texts')
  with pytest.raises(me_jax.MeJaxError, match='none of them in the slice'):
    load(config, source)


def test_bad_files_are_refused(tmp_path):
  def refusal(place, kind='texts'):
    with pytest.raises(me_jax.MeJaxError) as caught:
      data.read(place, kind)
    assert '\n' not in str(caught.value)
    return str(caught.value)

  (tmp_path / 'empty').mkdir()
  assert 'holds no .jsonl or .txt' in refusal(tmp_path / 'empty')
  assert 'no such file' in refusal('there/is/none.jsonl')
  assert 'no such file' in refusal('there/none.jsonl')
  assert 'no such file' in refusal('nowhere')
  assert 'name a file' in refusal([])
  assert 'must be one of texts, pairs, prompts' in refusal(tmp_path, 'chats')
  path = tmp_path / 'a.jsonl'
  for text, named in (
    ('', 'is empty'),
    ('\n \n', 'is empty'),
    ('{"text": "a"}\n{"text": ', 'line 2: not valid JSON'),
    ('"a"\n' + '[' * 100_000, 'line 2: not valid JSON'),
    ('\n{"text": "a"}\n{"texts": "b"}', 'line 3: needs "text"'),
    ('{"question": "a"}', 'line 1: needs "text"'),
  ):
    path.write_text(text)
    assert refusal(path).startswith(str(path)) and named in refusal(path)
  path.write_bytes(b'\xff\xfe')
  assert 'not UTF-8' in refusal(path)
  csv = chats.write(tmp_path / 'a.csv', ['text', 'a'])
  assert '.jsonl and .txt files' in refusal(csv)


def test_a_dataset_of_the_hub(monkeypatch):
  asked = []

  def load_dataset(name, configuration, *, split):
    asked.append((name, configuration, split))
    return ROWS[:2] if name == 'some/data' else []

  fake = types.SimpleNamespace(load_dataset=load_dataset)
  monkeypatch.setitem(sys.modules, 'datasets', fake)
  found = data.read('some/data', 'texts')
  assert [(record.where, record.row) for record in found] == [
    ('some/data, row 1', ROWS[0]), ('some/data, row 2', ROWS[1]),
  ]  # fmt: skip
  data.read(['some/data:main', 'some/data:main:test'], 'prompts')
  assert asked == [
    ('some/data', None, 'train'), ('some/data', 'main', 'train'),
    ('some/data', 'main', 'test'),
  ]  # fmt: skip
  with pytest.raises(me_jax.MeJaxError, match='row 1: needs a "prompt"'):
    data.read('some/data', 'pairs')
  with pytest.raises(me_jax.MeJaxError, match='holds no row'):
    data.read('no/rows', 'texts')


def test_a_hub_that_does_not_answer_is_one_line():
  """The real client: tests run offline."""
  with pytest.raises(me_jax.MeJaxError, match='give a local .jsonl') as caught:
    data.read('me-jax-no-such-owner/none:main', 'texts')
  assert '\n' not in str(caught.value)


def test_without_datasets_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)
  with pytest.raises(me_jax.MeJaxError, match=r"pip install -e '.\[train\]'"):
    data.read('some/data', 'texts')
