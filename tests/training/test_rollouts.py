"""Answers are drawn, judged and laid out alike, whoever draws and when."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.generation import sampler
from me_jax.generation import serve
from me_jax.models import params as params_lib
from me_jax.models import sink
from me_jax.training import batches
from me_jax.training import logprobs
from me_jax.training import losses
from me_jax.training import rollouts
from tests.support import folder
from tests.support import planted

LENGTH, NEW, STOP = 24, 8, 7


def long(answer, row):
  del row
  return len(answer.split())


SETTINGS = rollouts.Settings(
  answers=3,
  max_new_tokens=NEW,
  rewards=((long, 1.0), ('format', 0.5)),
  # One program for all tests.
  rows=6,
)


@pytest.fixture(scope='module', name='lm')
def _lm():
  """Of one layer, and with a mask that does nothing."""
  model, params = planted.build([], bos_channel=2.0)
  model, params = params_lib.first_layers(model, params, 1)
  # Larger weights, so that the whole text matters.
  params = jax.tree.map(lambda x: x * 10 if x.ndim == 3 else x, params)
  return model, masked(params, 1.0)


def masked(params, scale):
  scale_LD = jnp.full((1, planted.WIDTH), scale)
  return {**params, 'layers': {**params['layers'], sink.SCALE: scale_LD}}


def spell(ids):
  return ' '.join(map(str, ids))


def prompts(lengths=(5, 9, 3), first=0):
  texts = planted.texts(len(lengths) + first, length=20)[first:]
  return batches.Prompts(
    tuple(np.array(t[:n], np.int32) for t, n in zip(texts, lengths)),
    tuple({'number': first + i} for i in range(len(lengths))),
  )


def sample(lm, what=None, settings=SETTINGS, **more):
  kwargs = {
    'length': LENGTH, 'seed': (3, 1), 'decode': spell, 'stop_tokens': (STOP,),
  } | more  # fmt: skip
  return rollouts.sample(
    *lm, prompts() if what is None else what, settings, None, **kwargs
  )


def answers(rolled):
  return [
    tokens_T[wanted_T].tolist()
    for tokens_T, wanted_T in zip(
      rolled.packed.tokens_BT, rolled.packed.wanted_BT
    )
  ]


def test_a_row_is_a_prompt_and_one_answer(lm):
  rolled = sample(lm)
  tokens_BT, segments_BT, wanted_BT = rolled.packed
  assert tokens_BT.shape == (9, LENGTH)
  for b in range(9):
    prompt = prompts().tokens[b // 3]
    size = len(prompt) + rolled.length_GR.reshape(-1)[b]
    assert tokens_BT[b, : len(prompt)].tolist() == prompt.tolist()
    assert np.flatnonzero(wanted_BT[b]).tolist() == [*range(len(prompt), size)]
    np.testing.assert_array_equal(segments_BT[b], np.arange(LENGTH) < size)


def test_a_stop_token_ends_an_answer_and_is_learnt_but_not_judged(lm):
  rolled = sample(lm, settings=dataclasses.replace(SETTINGS, answers=32))
  stopped_B = rolled.stopped_GR.reshape(-1)
  assert 0 < stopped_B.sum() < len(stopped_B)
  for ids, text, stopped in zip(answers(rolled), rolled.texts, stopped_B):
    assert (ids[-1] == STOP) == stopped
    assert stopped or len(ids) == NEW
    assert STOP not in ids[:-1]
    assert text == spell(ids[:-1] if stopped else ids)


def test_rewards_and_advantages_stand_with_their_answers(lm):
  rolled = sample(lm)
  expected = [float(len(text.split())) for text in rolled.texts]
  np.testing.assert_array_equal(rolled.rewards_GR.reshape(-1), expected)
  assert {*rolled.parts} == {'long', 'format'}
  np.testing.assert_array_equal(rolled.parts['long'], rolled.rewards_GR)
  assert not rolled.parts['format'].any()
  np.testing.assert_array_equal(
    rolled.advantages_B1[:, 0],
    losses.group_advantages(rolled.rewards_GR).reshape(-1),
  )


def test_a_reward_gets_the_row_of_its_prompt(lm):
  def number(answer, row):
    del answer
    return row['number']

  rolled = sample(
    lm, settings=dataclasses.replace(SETTINGS, rewards=((number, 1.0),))
  )
  assert rolled.rewards_GR.tolist() == [[0] * 3, [1] * 3, [2] * 3]


def test_means(lm):
  rolled = sample(lm)
  assert rolled.means() == {
    'reward': pytest.approx(rolled.rewards_GR.mean()),
    'reward_long': pytest.approx(rolled.rewards_GR.mean()),
    'reward_format': 0.0,
    'length': pytest.approx(np.mean([len(x) for x in answers(rolled)])),
    'stopped': pytest.approx(rolled.stopped_GR.mean()),
    'varied': pytest.approx(
      np.mean([len({*row}) > 1 for row in rolled.rewards_GR.tolist()])
    ),
  }


def test_answers_are_a_function_of_seed_and_step(lm):
  first = sample(lm)
  again = sample(lm)
  assert again.texts == first.texts
  jax.tree.map(np.testing.assert_array_equal, again.packed, first.packed)
  assert sample(lm, seed=(3, 2)).texts != first.texts
  assert sample(lm, seed=(4, 1)).texts != first.texts
  # No two answers to a prompt have one seed, nor those to equal prompts.
  assert len({*sample(lm, _equal(3)).texts}) == 9


def _equal(count):
  tokens_T = prompts().tokens[1]
  return batches.Prompts((tokens_T,) * count, ({},) * count)


def test_answers_do_not_depend_on_how_many_hosts_draw(lm):
  together = sample(lm, prompts((5, 9, 3, 6)))
  shares = [
    sample(lm, prompts((5, 9))),
    sample(lm, prompts((3, 6), first=2), first=2),
  ]
  assert together.texts == shares[0].texts + shares[1].texts


def test_a_mask_acts_while_answers_are_drawn(lm):
  model, params = lm
  assert sample((model, masked(params, 0.0))).texts != sample(lm).texts


@functools.partial(jax.jit, static_argnums=0)
def _scored(model, params, packed):
  return logprobs.answer_logprobs(model, params, *packed[:2], temperature=0.6)


def test_the_loss_scores_what_was_drawn(lm):
  """At one temperature the sampler's probabilities are the loss's."""
  model, params = lm
  settings = dataclasses.replace(SETTINGS, temperature=0.6)
  packed = sample(lm, settings=settings).packed
  scores, predicted_BT = _scored(model, params, packed)
  drawn_BT = packed.wanted_BT[:, 1:]
  assert np.asarray(predicted_BT)[:, :-1][drawn_BT].all()
  out = jax.jit(model.apply)({'params': params}, *packed[:2])
  weights = sampler.filtered(
    settings.sampling().active,
    settings.sampling().values,
    out.logits.reshape(-1, planted.VOCAB),
  )
  share_BTV = np.asarray(weights / weights.sum(axis=-1, keepdims=True)).reshape(
    *packed.tokens_BT.shape, -1
  )
  next_BT1 = packed.tokens_BT[:, 1:, None]
  share_BT = np.take_along_axis(share_BTV[:, :-1], next_BT1, axis=2)[..., 0]
  np.testing.assert_allclose(
    np.exp(scores.logp_BT)[:, :-1][drawn_BT], share_BT[drawn_BT], rtol=1e-4
  )


def test_later_calls_compile_nothing_and_keep_nothing(lm, caplog):
  model, params = lm

  def compiled(step):
    # Other parameters and other prompts, shorter and longer ones.
    other = jax.tree.map(lambda x: x * (1 + 0.01 * step), params)
    texts = planted.texts(3, length=70, seed=step)
    sizes = (50, 51 + 4 * step, 40 - 12 * step)
    what = batches.Prompts(
      tuple(np.array(t[:n], np.int32) for t, n in zip(texts, sizes)), ({},) * 3
    )
    caplog.clear()
    with jax.log_compiles():
      sample((model, other), what, length=100, seed=(0, step))
    return [r.message for r in caplog.records if 'Compiling' in r.message]

  assert compiled(0)
  held = []
  for step in range(1, 4):
    assert not compiled(step)
    held.append(sum(x.nbytes for x in jax.live_arrays()))
  assert len({*held}) == 1


def test_texts_are_the_tokenizers(lm):
  tokenizer = folder.tokenizer()
  kwargs = {'length': LENGTH, 'seed': 0, 'stop_tokens': (STOP,)}
  rolled = rollouts.sample(*lm, prompts(), SETTINGS, tokenizer, **kwargs)
  expected = [
    tokenizer.decode([i for i in ids if i != STOP], skip_special_tokens=True)
    for ids in answers(rolled)
  ]
  assert [*rolled.texts] == expected
  with pytest.raises(me_jax.MeJaxError, match='need a tokenizer'):
    rollouts.sample(*lm, prompts(), SETTINGS, None, **kwargs)


def test_what_cannot_be_drawn_is_said_before_anything_is(lm, monkeypatch):
  monkeypatch.setattr(serve, 'serve', None)
  for more, message in (
    ({'length': 16}, 'prompt 2 has 9 tokens: a row of 16 has room for 8'),
    ({'length': 4}, 'room for 0'),
    ({'length': 600, 'settings': dataclasses.replace(
      SETTINGS, max_new_tokens=500)}, 'context'),
    ({'what': batches.Prompts((), ())}, 'no prompt'),
    ({'seed': (0, -1)}, 'seed is -1'),
    ({'settings': dataclasses.replace(SETTINGS, rewards=(('maths', 1.0),))},
     'prompt 1 .*right answer'),
  ):  # fmt: skip
    with pytest.raises(me_jax.MeJaxError, match=message):
      sample(lm, **more)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'answers': 1}, 'answers is 1, must be 2 or more: answers to a prompt'),
    ({'answers': 2.5}, 'answers is 2.5'),
    ({'max_new_tokens': 0}, 'max_new_tokens is 0'),
    ({'rows': 0}, 'rows is 0'),
    ({'temperature': 0}, 'temperature is 0'),
    ({'temperature': -1.0}, 'temperature is -1.0'),
    ({'top_p': 0.0}, 'top_p is 0.0'),
    ({'top_k': -1}, 'top_k is -1'),
    ({'rewards': (('math', 1.0),)}, "did you mean 'maths'"),
  ],
)
def test_impossible_settings_are_refused(fields, message):
  with pytest.raises(me_jax.MeJaxError, match=message):
    rollouts.Settings(**fields)
