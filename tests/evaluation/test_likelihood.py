"""Continuations are scored as whole texts score them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from me_jax.evaluation import likelihood
from tests.support import planted


@pytest.fixture(scope='module')
def built():
  model, params = planted.build([], bos_channel=2.0)
  return model, jax.tree.map(lambda x: x * 8 if x.ndim == 3 else x, params)


def plainly(model, params, pair):
  """One text at a time, in float64 from the logits on."""
  text = np.array([pair.context + pair.continuation])
  logits_TV = np.asarray(
    jax.jit(model.apply)({'params': params}, text).logits[0], np.float64
  )
  total_T = np.log(np.exp(logits_TV).sum(axis=1))
  first = len(pair.context) - 1
  log, greedy = 0.0, True
  for i, token in enumerate(pair.continuation):
    log += logits_TV[first + i, token] - total_T[first + i]
    greedy &= logits_TV[first + i].argmax() == token
  return log, greedy


def pairs():
  texts = planted.texts(6, length=30)
  found = [
    likelihood.Pair(text[:a], text[a:b])
    for text, a, b in zip(texts, (5, 9, 1, 20, 12, 28), (6, 12, 9, 31, 13, 31))
  ]
  # Four choices of one token, and one of two tokens, after the same context.
  context = texts[0][:7]
  found += [likelihood.Pair(context, [token]) for token in (3, 4, 5, 6)]
  return [*found, likelihood.Pair(context, [3, 4])]


def test_log_probabilities_and_greediness(built):
  given = pairs()
  # One continuation that is greedy.
  model, params = built
  context = given[0].context
  logits = jax.jit(model.apply)({'params': params}, np.array([context])).logits
  given.append(likelihood.Pair(context, [int(logits[0, -1].argmax())]))
  expected = [plainly(*built, pair) for pair in given]
  told = {}
  found = likelihood.score(*built, given, on_result=told.__setitem__)
  np.testing.assert_allclose(
    [one.log_probability for one in found], [log for log, _ in expected],
    atol=2e-4,
  )  # fmt: skip
  assert [one.greedy for one in found] == [greedy for _, greedy in expected]
  assert found[-1].greedy and not all(one.greedy for one in found)
  assert [told[i] for i in range(len(given))] == found


def test_the_same_input_is_run_once(built, monkeypatch):
  rows = []
  real = likelihood._score

  def counting(model, params, tokens, segments, *rest):
    rows.append(int((segments.max(axis=1) > 0).sum()))
    return real(model, params, tokens, segments, *rest)

  monkeypatch.setattr(likelihood, '_score', counting)
  context = [5, 6, 7]
  choices = [likelihood.Pair(context, [token]) for token in range(2, 12)]
  found = likelihood.score(*built, choices)
  # Eight continuations a row.
  assert sum(rows) == 2
  total = sum(np.exp(one.log_probability) for one in found)
  assert 0 < total < 1


def test_what_exceeds_the_context_is_cut_from_the_left(built):
  model, params = built
  short = dataclasses.replace(model.config, max_position_embeddings=8)
  text = planted.texts(1, length=20)[0]
  long = likelihood.Pair(text[:15], text[15:17])
  # Nine tokens: eight go in, the last is only predicted.
  kept = likelihood.Pair(text[8:15], text[15:17])
  model = model.clone(config=short)
  cut, whole = likelihood.score(model, params, [long, kept])
  assert cut == whole
