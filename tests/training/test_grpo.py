"""The whole method: answers are drawn and judged, and the better ones learnt."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from me_jax.models import params as params_lib
from me_jax.training import batches
from me_jax.training import logprobs
from me_jax.training import losses
from me_jax.training import rollouts
from me_jax.training import trained
from tests.support import planted

FULL = trained.Trained(parts=('full',))
OPTIMISER = optax.adam(1e-2)
STEPS = 30
NEW = 4


def begins_as_asked(answer, row):
  """Wants a first token that is the row's number modulo 8: 12 % by chance."""
  return int(answer.split()[0]) % 8 == row['number'] % 8


SETTINGS = rollouts.Settings(
  answers=8,
  max_new_tokens=NEW,
  temperature=1.25,
  rewards=((begins_as_asked, 1.0),),
)


def spell(ids):
  return ' '.join(map(str, ids))


def prompts():
  numbers = (7, 7, 23, 23)
  texts = planted.texts(len(numbers), length=4)
  return batches.Prompts(
    tuple(np.array([*t, n], np.int32) for t, n in zip(texts, numbers)),
    tuple({'number': n} for n in numbers),
  )


@functools.partial(jax.jit, static_argnums=0)
def update(model, tree, state, frozen, packed, advantages_B1):
  tokens_BT, segments_BT, wanted_BT = packed
  # Column t scores token t + 1.
  wanted_BT = jnp.pad(wanted_BT[:, 1:], ((0, 0), (0, 1)))

  def loss(tree):
    params = trained.merge(tree, frozen, FULL)
    scores, predicted_BT = logprobs.answer_logprobs(
      model, params, tokens_BT, segments_BT, temperature=SETTINGS.temperature
    )
    sums = losses.grpo(
      scores.logp_BT,
      None,
      None,
      advantages_B1,
      wanted_BT & predicted_BT,
      segments_BT,
      kl=0.0,
    )
    return sums.loss / sums.count

  updates, state = OPTIMISER.update(jax.grad(loss)(tree), state, tree)
  return optax.apply_updates(tree, updates), state


def start():
  model, params = planted.build([], bos_channel=2.0)
  model, params = params_lib.first_layers(model, params, 2)
  return model, *trained.split(model, params, FULL)


def draw(model, tree, frozen, settings, seed):
  return rollouts.sample(
    model,
    trained.merge(tree, frozen, FULL),
    prompts(),
    settings,
    None,
    length=16,
    seed=seed,
    decode=spell,
    stop_tokens=(),
  )


def learn(credit=lambda advantages_B1, step: advantages_B1):
  """Returns the mean reward before each step."""
  model, tree, frozen = start()
  state, found = OPTIMISER.init(tree), []
  for step in range(STEPS):
    rolled = draw(model, tree, frozen, SETTINGS, (0, step))
    found.append(rolled.means()['reward'])
    advantages_B1 = credit(rolled.advantages_B1, step)
    tree, state = update(
      model, tree, state, frozen, rolled.packed, advantages_B1
    )
  return found


def test_answers_become_what_is_rewarded():
  found = learn()
  assert np.mean(found[:3]) < 0.2
  assert np.mean(found[-3:]) > 0.8


def test_credit_for_other_answers_teaches_nothing():
  def shuffled(seed):
    def credit(advantages_B1, step):
      return np.random.default_rng((seed, step)).permutation(advantages_B1)

    return credit

  # What is drawn drifts, to what is rewarded or not: several runs say more.
  found = [np.mean(learn(shuffled(seed))[-3:]) for seed in range(6)]
  assert np.mean(found) < 0.3


def test_equal_rewards_change_nothing():
  model, tree, frozen = start()
  same = dataclasses.replace(SETTINGS, rewards=((lambda *_: 1.0, 1.0),))
  rolled = draw(model, tree, frozen, same, 0)
  state = OPTIMISER.init(tree)
  after, _ = update(
    model, tree, state, frozen, rolled.packed, rolled.advantages_B1
  )
  jax.tree.map(np.testing.assert_array_equal, after, tree)
