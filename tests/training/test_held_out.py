"""Held-out losses are those of each text by itself, however rows are cut."""

from __future__ import annotations

import functools
import json

import jax
import numpy as np
import pytest

from me_jax import errors
from me_jax.analysis import bootstrap
from me_jax.models import params as params_lib
from me_jax.training import data
from me_jax.training import held_out
from me_jax.training import settings
from me_jax.training import sharding
from tests.support import chats
from tests.support import planted

MESH = sharding.mesh()
RULES = sharding.Rules()
LENGTH = 40


@functools.cache
def small():
  """A model of two layers whose logits differ by more than rounding."""
  model, params = planted.build([], bos_channel=2.0)
  model, params = params_lib.first_layers(model, params, 2)
  return model, jax.tree.map(lambda x: x * 5 if x.ndim == 3 else x, params)


def run_of(source, rows=2):
  return settings.Run(
    data=settings.Data(mix=data.Mix(sources=(source,))),
    evaluation=settings.Evaluation(length=LENGTH, batch=rows),
    compute=settings.Compute(vocabulary_chunk=16),
  )


def read(path, **fields):
  source = data.Source(data=str(path), rows=fields.pop('rows', None))
  one = settings.HeldOut(name='one', source=source, **fields)
  return held_out.read(
    one, run_of(source), chats.tokenizer(), small()[0].config
  )


CHATS = [
  ('ab', 'cde'), ('f', 'gh ij'), ('klm', 'n'), ('opqrst', 'uvw'),
  ('x', 'yz'), ('long ' * 20, 'no'),
]  # fmt: skip


@pytest.fixture(scope='module', name='texts')
def _texts(tmp_path_factory):
  folder = tmp_path_factory.mktemp('texts')
  rows = [{'messages': chats.chat(*one)} for one in CHATS]
  return chats.write(folder / 'texts.jsonl', rows)


@pytest.fixture(scope='module', name='pairs')
def _pairs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pairs')
  rows = [
    {'prompt': a, 'chosen': b, 'rejected': b[::-1] + 'j'} for a, b in CHATS[:5]
  ]
  return chats.write(folder / 'pairs.jsonl', rows)


@functools.cache
def scorer(most=8):
  model, _ = small()
  return held_out.scorer(model, run_of(data.Source(data='a')), MESH, most)


def measured(one, rows=2, params=None, most=8):
  return held_out.measure(
    one, scorer(most), params or small()[1], MESH, RULES, rows
  )


@functools.cache
def _logits():
  return jax.jit(lambda p, tokens_BT: small()[0].apply({'params': p}, tokens_BT)
                 .logits)  # fmt: skip


def plain(packed):
  """Returns loss and tokens of each text of rows, each run by itself."""
  found = []
  for tokens_T, segments_T, wanted_T in zip(*packed):
    for number in range(1, segments_T.max() + 1):
      here_T = segments_T == number
      ids, wanted = tokens_T[here_T], wanted_T[here_T][1:]
      # Causal: padding behind it changes nothing.
      full = np.zeros((1, LENGTH), np.int32)
      full[0, : len(ids)] = ids
      logits_TV = np.asarray(_logits()(small()[1], full)[0], np.float64)
      top_T1 = logits_TV.max(-1, keepdims=True)
      logp_TV = logits_TV - top_T1
      logp_TV -= np.log(np.exp(logp_TV).sum(-1, keepdims=True))
      logp_T = logp_TV[np.arange(len(ids) - 1), ids[1:]]
      found.append((-logp_T[wanted].sum(), wanted.sum()))
  return np.array(found, np.float64)


@pytest.mark.parametrize('answers', ['last', 'whole'])
def test_texts_lose_what_each_loses_by_itself(texts, answers):
  one = read(texts, answers=answers)
  (packed,) = one.packed
  # Several share a row, or this would show little.
  assert 1 < one.most == packed.segments_BT.max() and len(packed[0]) > 1
  assert one.left_out == 1 and one.name == 'one'
  found, want = measured(one), plain(packed)
  assert len(found.loss_N) == len(CHATS) - 1 and found.rejected_N is None
  np.testing.assert_array_equal(found.tokens_N, want[:, 1])
  np.testing.assert_allclose(found.loss_N, want[:, 0], rtol=1e-5)
  total = want.sum(axis=0)
  assert held_out.loss(found) == pytest.approx(total[0] / total[1], rel=1e-5)


def test_what_counts_is_the_answer_or_the_whole_chat(texts):
  last, whole = (read(texts, answers=name) for name in ('last', 'whole'))
  # `cde<end>` of `<bos>u ab<end>.a cde<end>.`: by the letter, spaces included.
  (packed,) = last.packed
  counts = sorted(measured(last).tokens_N.tolist())
  assert counts == sorted(len(answer) + 1 for _, answer in CHATS[:5])
  # All but each text's first token.
  (packed,) = whole.packed
  assert measured(whole).tokens_N.sum() == (packed.segments_BT > 0).sum() - 5


def test_pairs_have_both_sides_in_one_order(pairs):
  one = read(pairs, kind='pairs')
  found = measured(one)
  for side, values in zip(one.packed, (found.loss_N, found.rejected_N)):
    np.testing.assert_allclose(values, plain(side)[:, 0], rtol=1e-5)
  np.testing.assert_array_equal(found.tokens_N, plain(one.packed[0])[:, 1])
  assert len(found.loss_N) == 5 and one.most == 1


def test_rows_of_a_pass_change_nothing(texts, pairs):
  """Nor does how many texts of a row the scorer was made for."""
  for one in (read(texts), read(pairs, kind='pairs')):
    want = measured(one, rows=2)
    for rows, most in ((1, 8), (3, 8), (100, 8), (2, 5)):
      found = measured(one, rows=rows, most=most)
      jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, want
      )


def test_rows_of_a_source_are_those_of_its_slice(texts):
  found = read(texts, rows=(1, 3), answers='whole')
  sizes = {len(f'u{a}.a{b}'.replace(' ', '')) for a, b in CHATS[1:3]}
  assert len(measured(found).loss_N) == len(sizes) == 2


def test_what_does_not_fit_is_refused(texts):
  with pytest.raises(errors.MeJaxError, match='no row fits into 40 tokens'):
    read(texts, rows=(5, 6))
  with pytest.raises(errors.MeJaxError, match='none of them in the slice'):
    read(texts, rows=(6, 9))


def losses_of(values, tokens, rejected=None):
  return held_out.Texts(
    np.array(values, np.float64),
    np.array(tokens, np.float64),
    None if rejected is None else np.array(rejected, np.float64),
  )


def test_a_change_is_of_pairs():
  random = np.random.default_rng(0)
  tokens = random.integers(5, 50, 60)
  before = losses_of(random.uniform(1, 5, 60) * tokens, tokens)
  after = before._replace(loss_N=before.loss_N + 0.1 * tokens)
  found = held_out.change(before, after)
  # The same in each text, so there is no doubt.
  np.testing.assert_allclose(found, 0.1, rtol=1e-9)
  wide = held_out.estimate(after)
  assert wide.high - wide.low > 0.1
  assert wide.value == pytest.approx(held_out.loss(after))
  # By tokens, and with the sign of what came after.
  some = losses_of([10.0, 20.0], [10, 30])
  other = losses_of([30.0, 20.0], [10, 30])
  assert held_out.change(some, other).value == pytest.approx(0.5)
  assert held_out.change(other, some).value == pytest.approx(-0.5)
  assert isinstance(found, bootstrap.Estimate)
  # The same seed, the same interval.
  assert held_out.change(before, before._replace(loss_N=tokens * 1.0), 3) == (
    held_out.change(before, before._replace(loss_N=tokens * 1.0), 3)
  )


def test_pairs_are_told_by_what_changed_since_the_reference():
  before = losses_of([10.0, 10.0, 10.0, 10.0], [5] * 4, [9.0, 9.0, 9.0, 9.0])
  # Chosen answers got likelier by 1, 0, -1 and 2; rejected by 0, 0, -3 and 3.
  after = losses_of([9.0, 10.0, 11.0, 8.0], [5] * 4, [9.0, 9.0, 12.0, 6.0])
  assert held_out.correct(before, after) == 0.5
  # The start tells none.
  assert held_out.correct(before, before) == 0


@pytest.mark.parametrize('rejected', [None, [0.1, 1 / 3]])
def test_json_keeps_every_bit(rejected):
  texts = losses_of([np.nextafter(0.1, 1), 1e-308], [3, 7], rejected)
  text = json.dumps(held_out.to_json(texts), allow_nan=False)
  found = held_out.from_json(json.loads(text))
  for name, values in texts._asdict().items():
    other = getattr(found, name)
    if values is None:
      assert other is None
    else:
      assert other.dtype == np.float64 and other.tobytes() == values.tobytes()
