"""Prefixes: the massive tokens with what precedes them, each once."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import me_jax
from me_jax.analysis import prefixes
from me_jax.analysis import token_states
from me_jax.models import batch as batch_lib
from me_jax.models import sites
from tests.support import planted
from tests.support.planted import Plant

BOS = planted.BOS


@dataclasses.dataclass(frozen=True)
class Report:
  """What `select` reads of an MEReport."""

  position_by_text: np.ndarray
  tokens: tuple = ()


@dataclasses.dataclass(frozen=True)
class Token:
  position: int
  token_id: int


def select(texts, positions, massive=(), **kwargs):
  report = Report(np.array(positions), tuple(Token(*m) for m in massive))
  return prefixes.select(batch_lib.make_batch(texts), report, **kwargs)


def rows(found):
  return {
    tuple(tokens[segments > 0].tolist())
    for tokens, segments in zip(*found.batch)
  }


def test_each_prefix_once_and_its_massive_token_last():
  found = select(
    [[BOS, 5, 6], [BOS, 7, 8], [9, BOS, 4], [3, 3, 3]], [0, 0, 1, -1]
  )
  assert rows(found) == {(BOS,), (9, BOS)}
  assert (found.batch.tokens_BT[:, -1] == BOS).all()
  assert (found.batch.segments_BT[:, -1] == 1).all()
  assert found.massive and found.distinct == 2
  assert sorted(found.texts_X) == [1, 2]
  assert found.too_long == found.over_cap == 0


def test_without_massive_tokens_the_first_of_each_text_is_taken():
  found = select([[5, 6], [5, 7], [8, 9]], [-1, -1, -1])
  assert not found.massive
  assert rows(found) == {(5,), (8,)}


def test_the_cap_does_not_depend_on_the_order():
  texts = [[10 + i, BOS, 5, 6] for i in range(30)]
  found = select(texts, [1] * 30, most=7)
  other = select(texts[::-1], [1] * 30, most=7)
  np.testing.assert_array_equal(found.batch.tokens_BT, other.batch.tokens_BT)
  np.testing.assert_array_equal(found.ordinary[0], other.ordinary[0])
  np.testing.assert_array_equal(found.positions_YC, other.positions_YC)
  assert len(found.batch.tokens_BT) == 7 and found.over_cap == 23
  # Nor is it simply the first ids: a hash chooses.
  assert rows(found) != {(10 + i, BOS) for i in range(7)}


def test_a_few_long_prefixes_are_left_out_many_are_kept():
  short, long = [BOS, 5], [*range(2, 12), BOS, 5]
  found = select([short, [7, BOS], long], [0, 1, 10], longest=4)
  assert rows(found) == {(BOS,), (7, BOS)}
  assert found.too_long == 1
  found = select([short, long, [3, *long]], [0, 10, 11], longest=4)
  assert found.too_long == 0 and len(rows(found)) == 3


def test_ordinary_tokens_are_neither_first_nor_massive():
  texts = [[BOS, 5, BOS, 6, 7], [8, 9, 10]]
  found = select(texts, [0, -1], massive=[(0, BOS), (2, BOS)])
  chosen = {
    tuple(found.ordinary.tokens_BT[y, : t + 1].tolist())
    for y, t in zip(*np.nonzero(found.ordinary_YC))
    for t in [found.positions_YC[y, t]]
  }
  assert chosen == {
    (BOS, 5), (BOS, 5, BOS, 6), (BOS, 5, BOS, 6, 7), (8, 9), (8, 9, 10)
  }  # fmt: skip


def test_texts_of_one_token_have_no_ordinary_one():
  found = select([[BOS], [7]], [0, -1])
  assert not found.ordinary_YC.any()
  assert found.ordinary.tokens_BT.shape[0] == 1


def test_a_report_about_other_texts_is_refused():
  with pytest.raises(me_jax.MeJaxError, match='about 3 texts'):
    select([[BOS, 5]], [0, 0, 0])


@pytest.fixture(scope='module', name='found')
def _found():
  model, params = planted.build([Plant(4, 7, 9, 5000.0)])
  texts = [[5, 6, BOS, 8, 9, 11], [BOS, 6, 7, 4], [5, BOS, 3], [BOS, 4, 4, 4]]
  batch = batch_lib.make_batch(texts)
  report = me_jax.find_me_layer(model, params, batch)
  chosen = prefixes.select(batch, report)
  states = token_states.capture(model, params, chosen, report)
  return model, params, batch, report, chosen, states


def test_a_prefix_has_the_state_that_its_text_has(found):
  model, params, batch, report, chosen, states = found
  everything = {'state': np.arange(planted.LAYERS)}
  capturing = model.clone(
    sites=sites.Sites(observers=(sites.Capture('resid_post', 'state'),))
  )
  with jax.default_matmul_precision('highest'):
    _, seen = capturing.apply(
      {'params': params}, *batch, everything, mutable='intermediates'
    )
  whole = np.asarray(sites.read(seen)['state'])
  texts = prefixes.texts_of(batch, report)
  for x, (tokens, segments) in enumerate(zip(*chosen.batch)):
    ids = tuple(tokens[segments > 0].tolist())
    text = next(i for i, t in enumerate(texts) if t[: len(ids)] == ids)
    np.testing.assert_allclose(
      states.massive['resid_post'][:, x],
      whole[:, text, len(ids) - 1],
      rtol=1e-4,
      atol=1e-3,
    )


def test_states_know_the_plateau_and_the_mean_activations(found):
  model, params, _, report, chosen, states = found
  assert (states.peak_X >= 4).all()
  norm_X = np.linalg.norm(states.plateau_XD, axis=-1)
  np.testing.assert_allclose(norm_X, 5000, rtol=0.05)
  assert states.ordinary_act_LF.shape == (planted.LAYERS, planted.FFN)
  # The planted neuron is quiet in ordinary tokens, by hand from `ffn_in`.
  h_OD = states.ordinary['ffn_in'][4].astype(np.float64)
  gate, up = (
    h_OD @ np.asarray(params['layers']['mlp'][name]['kernel'][4], np.float64)
    for name in ('gate_proj', 'up_proj')
  )
  act_F = (gate / (1 + np.exp(-gate)) * up).mean(axis=0)
  np.testing.assert_allclose(states.ordinary_act_LF[4], act_F, atol=1e-5)


def test_shares_of_two_neurons_and_who_writes():
  model, params = planted.build(
    [Plant(4, 7, 9, 3500.0), Plant(4, 2, 9, 1500.0)]
  )
  batch = planted.batch()
  report = me_jax.find_me_layer(model, params, batch)
  chosen = prefixes.select(batch, report)
  states = token_states.capture(model, params, chosen, report)
  share_LF = token_states.contributions(model, params, states)
  assert share_LF[4, 7] == pytest.approx(0.7, abs=0.02)
  assert share_LF[4, 2] == pytest.approx(0.3, abs=0.02)
  assert np.abs(np.delete(share_LF, 4, axis=0)).max() < 0.01
  assert token_states.writers(report, share_LF) == {4: (7, 2)}
  # A report that names no neurons (a gradual span): they are worked out.
  nameless = dataclasses.replace(report, neurons=())
  assert token_states.writers(nameless, share_LF) == {4: (7, 2)}
