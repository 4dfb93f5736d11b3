"""The order of batches: repeatable, resumable, shared out over hosts."""

from __future__ import annotations

import itertools
import json
import math
import sys

import numpy as np
import pytest

import me_jax
from me_jax.training import batches
from me_jax.training import examples

LENGTH = 8


def source(count, first=1, kind='texts', size=5):
  """Returns texts of one token each time, which is the text's number."""
  texts = []
  for i in range(first, first + count):
    tokens_T = np.full(size, i, np.int32)
    text = examples.Example(tokens_T, np.arange(size) > 2)
    texts.append(
      {
        'texts': text,
        'pairs': examples.Pair(text, text),
        'prompts': examples.Prompt(tokens_T, {'number': i}),
      }[kind]
    )
  return examples.Encoded(
    kind=kind, length=LENGTH, examples=tuple(texts), left_out=2, longest=30
  )


def make(*sources, weights=None, batch_size=4, **more):
  return batches.Batches(
    sources, weights or [1.0] * len(sources), batch_size=batch_size, **more
  )


def numbers(batch):
  """Returns which texts stand at the front of each row."""
  return batch.tokens_BT[:, 0].tolist()


def take(found, count):
  return [numbers(batch) for batch in itertools.islice(found, count)]


def same(a, b):
  return all(map(np.array_equal, a, b))


def test_every_epoch_has_every_row_in_another_order():
  found = make(source(20))
  assert found.epoch == 5
  epochs = [sum(take(found, 5), []) for _ in range(3)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(1, 21))
  assert len({tuple(epoch) for epoch in epochs}) == 3


def test_an_epoch_need_not_be_whole_batches():
  found = make(source(6), batch_size=4)
  assert found.epoch == 2
  seen = sum(take(found, 3), [])
  assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(1, 7))


def test_the_order_depends_on_the_seed_alone():
  first = take(make(source(20)), 8)
  assert take(make(source(20)), 8) == first
  assert take(make(source(20), seed=1), 8) != first


@pytest.mark.parametrize('kind', ['texts', 'pairs', 'prompts'])
def test_a_restored_iterator_goes_on_as_if_never_stopped(kind):
  data = source(7, kind=kind)
  whole = list(itertools.islice(make(data), 9))
  for stop in (0, 1, 4, 8):
    stopped = make(data)
    for _ in range(stop):
      next(stopped)
    state = json.loads(json.dumps(stopped.state()))
    again = make(data)
    next(again)  # Wherever it stood.
    again.restore(state)
    for expected in whole[stop:]:
      for found, wanted in zip(next(again), expected, strict=True):
        assert same(found, wanted)


def test_a_restarted_iterator_begins_anew():
  found = make(source(20))
  first = take(found, 3)
  assert take(found, 1)[0] != first[0]
  found.restart()
  assert take(found, 3) == first


def test_saving_changes_nothing():
  saved, found = make(source(7)), []
  for _ in range(6):
    saved.state()
    found += take(saved, 1)
  assert found == take(make(source(7)), 6)


@pytest.mark.parametrize('hosts', [2, 4])
@pytest.mark.parametrize('kind', ['texts', 'pairs', 'prompts'])
def test_the_shares_of_hosts_are_one_hosts_batches(kind, hosts):
  data = [source(7, kind=kind), source(5, 50, kind=kind)]
  whole = make(*data, weights=[2, 1])
  shares = [
    make(*data, weights=[2, 1], hosts=hosts, host=host) for host in range(hosts)
  ]
  for _ in range(9):
    expected = next(whole)
    parts = [next(share) for share in shares]
    if kind == 'prompts':
      assert sum((part.rows for part in parts), ()) == expected.rows
      continue
    if kind == 'pairs':
      expected, parts = expected.rejected, [part.rejected for part in parts]
    for i, array in enumerate(expected):
      together = np.concatenate([part[i] for part in parts])
      np.testing.assert_array_equal(together, array)
  assert [share.state() for share in shares] == [whole.state()] * hosts


def test_a_run_may_go_on_with_another_number_of_hosts():
  one = make(source(7))
  take(one, 3)
  two = [make(source(7), hosts=2, host=host) for host in range(2)]
  for share in two:
    share.restore(one.state())
  for expected in take(one, 5):
    assert sum((numbers(next(share)) for share in two), []) == expected


def test_a_mix_takes_from_each_by_its_weight():
  found = make(source(8), source(9, 100), weights=[3, 1], batch_size=4)
  # A source of which a batch takes one row a time needs nine for nine.
  assert found.epoch == 9
  seen = take(found, 18)
  for batch in seen:
    assert sum(number < 100 for number in batch) == 3
  first = [number for batch in seen for number in batch if number < 100]
  other = [number for batch in seen for number in batch if number >= 100]
  assert sorted(first[:8]) == sorted(first[8:16]) == list(range(1, 9))
  assert sorted(other[:9]) == sorted(other[9:]) == list(range(100, 109))


def test_sources_of_one_size_are_in_different_orders():
  seen = sum(take(make(source(30), source(30, 101), batch_size=2), 30), [])
  first = [number for number in seen if number < 100]
  assert first != [number - 100 for number in seen if number > 100]


def test_texts_share_rows_only_if_asked():
  data = source(4, size=4)
  packed, apart = next(make(data)), next(make(data, pack=False))
  assert packed.segments_BT.tolist() == [[1] * 4 + [2] * 4] * 4
  assert apart.segments_BT.tolist() == [[1] * 4 + [0] * 4] * 4
  assert sorted(numbers(apart)) == [1, 2, 3, 4]
  assert packed.wanted_BT[0].tolist() == [False, False, False, True] * 2


def test_what_was_left_out_is_told():
  (count,) = make(source(3, size=4)).counts
  assert (count.used, count.left_out, count.longest) == (3, 2, 30)
  assert (count.rows, count.filled) == (2, 0.75)
  (count,) = make(source(3, kind='pairs', size=4)).counts
  assert (count.used, count.rows, count.filled) == (3, 3, 0.5)


def other(data, **change):
  return examples.Encoded(**{**vars(data), **change})


def test_another_runs_state_is_refused():
  data = source(5)
  state = make(data).state()
  changed = [
    text._replace(tokens_T=text.tokens_T + 1) for text in data.examples
  ]
  masked = [text._replace(wanted_T=~text.wanted_T) for text in data.examples]
  for named, found in {
    'seed': make(data, seed=1),
    'batch_size': make(data, batch_size=8),
    'weights and data': make(data, data),
    'pack': make(data, pack=False),
    'length': make(other(data, length=9)),
    'data': make(other(data, examples=tuple(changed))),
    'another data': make(other(data, examples=tuple(masked))),
  }.items():
    with pytest.raises(me_jax.MeJaxError, match=named):
      found.restore(state)
  prompts = source(5, kind='prompts')
  rows = [prompt._replace(row={}) for prompt in prompts.examples]
  with pytest.raises(me_jax.MeJaxError, match='another data'):
    make(other(prompts, examples=tuple(rows))).restore(make(prompts).state())


def test_the_same_bytes_in_other_texts_are_other_data():
  zeros = examples.Example(np.zeros(5, np.int32), np.zeros(5, bool))
  apart = [examples.Example(*(part[:1] for part in zeros))] * 5
  data = source(1)
  state = make(other(data, examples=(zeros,))).state()
  with pytest.raises(me_jax.MeJaxError, match='another data'):
    make(other(data, examples=tuple(apart))).restore(state)


@pytest.mark.parametrize(
  'order', [None, {}, {'next_index': -1}, {'next_index': True}]
)
def test_what_is_no_state_is_refused(order):
  found = make(source(5))
  for state in ({**found.state(), 'order': order}, order):
    with pytest.raises(me_jax.MeJaxError, match='no state'):
      found.restore(state)


@pytest.mark.parametrize(
  ('named', 'arguments'),
  [
    ('1 sources with 2 weights', {'weights': [1, 1]}),
    ('must be positive', {'weights': [0.0]}),
    ('must be positive', {'weights': [-1.0]}),
    ('must be positive', {'weights': [math.nan]}),
    ('must be positive', {'weights': [math.inf]}),
    ('must not be negative', {'seed': -1}),
    ('host 2 of 2', {'hosts': 2, 'host': 2}),
    ('host 0 of 0', {'hosts': 0}),
    ('3 rows cannot be shared by 2', {'hosts': 2, 'batch_size': 3}),
    ('0 rows', {'batch_size': 0}),
  ],
)
def test_bad_arguments_are_refused(named, arguments):
  with pytest.raises(me_jax.MeJaxError, match=named):
    make(source(3), **arguments)


def test_sources_must_be_alike():
  with pytest.raises(me_jax.MeJaxError, match='one kind and length'):
    make(source(3), source(3, kind='pairs'))


def test_without_grain_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'grain', None)
  with pytest.raises(me_jax.MeJaxError, match=r"pip install -e '.\[train\]'"):
    make(source(3))
