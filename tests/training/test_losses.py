"""Losses against loops in float64, finite differences and torch."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.training import losses

needs_torch = pytest.mark.skipif(
  importlib.util.find_spec('torch') is None,
  reason='torch, the reference implementation, is not installed',
)
# Three texts in two rows, padding on both sides; a text that nothing is wanted
# of, and prompts of other lengths.
SEGMENTS_BT = np.array([[0, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 2, 2]])
WANTED_BT = np.array([[0, 0, 1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 0, 0, 0]], bool)
TEXTS = ((0, 1), (0, 2), (1, 1))  # (row, segment) of those with wanted tokens


def arrays(count, seed=0):
  """Log-probabilities `[2, 8]`, no two alike."""
  random = np.random.default_rng(seed)
  return [
    -random.exponential(1.0, SEGMENTS_BT.shape).astype(np.float32)
    for _ in range(count)
  ]


def differences(function, at, step=1e-6):
  """The gradient of a float64 function by central differences."""
  at = np.asarray(at, float)
  found = np.zeros_like(at)
  for i in np.ndindex(at.shape):
    ends = []
    for sign in (1, -1):
      moved = at.copy()
      moved[i] += sign * step
      ends.append(function(moved))
    found[i] = (ends[0] - ends[1]) / (2 * step)
  return found


def test_sft_sums_what_is_wanted():
  (logp_BT,) = arrays(1)
  loss, count = losses.sft(logp_BT, WANTED_BT)
  assert float(loss) == pytest.approx(-logp_BT[WANTED_BT].sum(dtype=float))
  assert count == WANTED_BT.sum()
  gradient_BT = jax.grad(lambda x: losses.sft(x, WANTED_BT)[0])(logp_BT)
  np.testing.assert_array_equal(gradient_BT, -1.0 * WANTED_BT)


def test_sft_of_parts_adds_up():
  (logp_BT,) = arrays(1)
  parts = [losses.sft(x, w) for x, w in zip(logp_BT, WANTED_BT)]
  assert parts[0][1] != parts[1][1]  # else a mean of means would do
  whole = losses.sft(logp_BT, WANTED_BT)
  np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-6)


def test_text_sums_go_by_text():
  (logp_BT,) = arrays(1)
  found = losses.text_sums(logp_BT, WANTED_BT, SEGMENTS_BT, 3)
  want = np.zeros((2, 3))
  for row, segment in TEXTS:
    inside_T = (SEGMENTS_BT[row] == segment) & WANTED_BT[row]
    want[row, segment - 1] = logp_BT[row, inside_T].sum()
  np.testing.assert_allclose(found, want, rtol=1e-6)


def preferences(seed=0, count=6):
  random = np.random.default_rng(seed)
  return [random.normal(-30, 5, count).astype(np.float32) for _ in range(4)]


def dpo_in_float64(chosen, rejected, reference, other, beta, smoothing):
  logit = beta * ((chosen - reference) - (rejected - other))
  return (1 - smoothing) * np.log1p(np.exp(-logit)) + smoothing * np.log1p(
    np.exp(logit)
  )


@pytest.mark.parametrize(('beta', 'smoothing'), [(0.1, 0.0), (0.5, 0.2)])
def test_dpo_is_its_formula_and_so_is_its_gradient(beta, smoothing):
  logps = preferences()
  options = dict(beta=beta, label_smoothing=smoothing)
  found = losses.dpo(*logps, **options)
  exact = [x.astype(float) for x in logps]
  want_P = dpo_in_float64(*exact, beta, smoothing)
  np.testing.assert_allclose(found.loss_P, want_P, rtol=1e-5)
  margin_P = beta * ((exact[0] - exact[2]) - (exact[1] - exact[3]))
  np.testing.assert_allclose(found.margin_P, margin_P, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(found.correct_P, margin_P > 0)
  assert 0 < found.correct_P.sum() < len(margin_P)
  for which in range(2):

    def summed(x, which=which):
      args = [*exact[:which], x, *exact[which + 1 :]]
      return dpo_in_float64(*args, beta, smoothing).sum()

    gradient = jax.grad(
      lambda *args: losses.dpo(*args, **options).loss_P.sum(), which
    )(*logps)
    want = differences(summed, exact[which])
    np.testing.assert_allclose(gradient, want, atol=1e-5)


@needs_torch
def test_dpo_is_torchs_cross_entropy_of_the_order():
  import torch

  logps = preferences(seed=3)
  logit = 0.3 * (torch.tensor(logps[0]) - torch.tensor(logps[2]))
  logit -= 0.3 * (torch.tensor(logps[1]) - torch.tensor(logps[3]))
  want = torch.nn.functional.binary_cross_entropy_with_logits(
    logit, torch.full_like(logit, 0.9), reduction='none'
  )
  found = losses.dpo(*logps, beta=0.3, label_smoothing=0.1)
  np.testing.assert_allclose(found.loss_P, want.numpy(), rtol=1e-5)


def test_dpo_of_the_reference_itself_is_log_two():
  chosen_P, rejected_P, _, _ = preferences()
  found = losses.dpo(chosen_P, rejected_P, chosen_P, rejected_P)
  np.testing.assert_allclose(found.loss_P, np.log(2), rtol=1e-6)
  np.testing.assert_array_equal(found.margin_P, 0)


def test_dpo_stays_finite_far_from_the_reference():
  far = np.array([1e6, -1e6], np.float32)
  zeros = np.zeros(2, np.float32)
  loss_P, gradient_P = jax.vmap(
    jax.value_and_grad(lambda c, r: losses.dpo(c, r, r, r, beta=1.0).loss_P)
  )(far, zeros)
  np.testing.assert_allclose(loss_P, [0, 1e6])
  np.testing.assert_allclose(gradient_P, [0, -1])


def test_references_are_constants_though_they_share_parameters():
  logps = preferences()
  shared = jax.grad(lambda x: losses.dpo(x, 0 * x, x, 0 * x).loss_P.sum())
  apart = jax.grad(
    lambda x: losses.dpo(x, 0 * x, logps[0], 0 * logps[0]).loss_P.sum()
  )
  np.testing.assert_array_equal(shared(logps[0]), apart(logps[0]))
  assert (np.asarray(apart(logps[0])) != 0).all()
  logp_BT, advantages_BX = arrays(1)[0], np.ones((2, 2), np.float32)

  def policy(old, reference, x):
    return losses.grpo(
      x, old, reference, advantages_BX, WANTED_BT, SEGMENTS_BT, kl=0.5
    ).loss

  shared_BT = jax.grad(lambda x: policy(x, x - 1, x))(logp_BT)
  apart_BT = jax.grad(lambda x: policy(logp_BT, logp_BT - 1, x))(logp_BT)
  np.testing.assert_array_equal(shared_BT, apart_BT)
  assert (np.asarray(apart_BT)[WANTED_BT] != 0).all()


def test_advantages_are_standard_scores_of_a_group():
  rewards_GR = np.random.default_rng(0).normal(2, 3, (4, 5)).astype(np.float32)
  found = losses.group_advantages(rewards_GR, epsilon=0.0)
  exact_GR = rewards_GR.astype(float)
  want_GR = exact_GR - exact_GR.mean(axis=1, keepdims=True)
  want_GR /= exact_GR.std(axis=1, ddof=1, keepdims=True)
  np.testing.assert_allclose(found, want_GR, rtol=1e-5, atol=1e-6)
  # A small difference is not blown up to a standard deviation.
  near_GR = np.array([[1.0, 1.0, 1.00001]], np.float32)
  assert np.abs(losses.group_advantages(near_GR)).max() < 0.2
  assert np.abs(losses.group_advantages(near_GR, epsilon=0)).max() > 1


# The mean of numbers that are all 0.1 is another number in float32.
@pytest.mark.parametrize('reward', [0.0, 1.0, 0.1, -1e4])
@pytest.mark.parametrize('answers', [1, 3, 7])
def test_equal_rewards_have_no_advantage(reward, answers):
  rewards_GR = np.full((2, answers), reward, np.float32)
  rewards_GR[1, 0] += 10
  advantages_GR = losses.group_advantages(rewards_GR, epsilon=0.0)
  np.testing.assert_array_equal(advantages_GR[0], 0)
  assert answers == 1 or (np.asarray(advantages_GR[1]) != 0).all()


def grpo_in_float64(logp, old, reference, advantages, clip, kl, normalize):
  """The negative of eq. 3, text by text: sum and count."""
  total, count = 0.0, 0
  for row, segment in TEXTS:
    inside_T = (SEGMENTS_BT[row] == segment) & WANTED_BT[row]
    terms = []
    for t in np.flatnonzero(inside_T):
      advantage = advantages[row, segment - 1]
      ratio = np.exp(logp[row, t] - old[row, t])
      held = min(max(ratio, 1 - clip), 1 + clip)
      other = np.exp(reference[row, t] - logp[row, t])
      divergence = other - np.log(other) - 1
      best = min(ratio * advantage, held * advantage)
      terms.append(best - kl * divergence)
    if normalize == 'texts':
      total, count = total - np.mean(terms), count + 1
    else:
      total, count = total - np.sum(terms), count + len(terms)
  return total, count


@pytest.mark.parametrize('normalize', ['texts', 'tokens'])
@pytest.mark.parametrize('kl', [0.0, 0.5])
def test_grpo_is_its_formula_and_so_is_its_gradient(normalize, kl):
  logp_BT, old_BT, reference_BT = arrays(3, seed=4)
  advantages_BX = np.array([[1.5, -0.7], [-1.1, 9.0]], np.float32)
  options = dict(clip=0.2, kl=kl, normalize=normalize)
  exact = [
    x.astype(float) for x in (logp_BT, old_BT, reference_BT, advantages_BX)
  ]
  want = grpo_in_float64(*exact, **options)

  def function(x):
    sums = losses.grpo(
      x,
      old_BT,
      reference_BT if kl else None,
      advantages_BX,
      WANTED_BT,
      SEGMENTS_BT,
      **options,
    )
    return sums.loss, sums

  (loss, sums), gradient_BT = jax.value_and_grad(function, has_aux=True)(
    logp_BT
  )
  np.testing.assert_allclose((loss, sums.count), want, rtol=1e-5)
  want_BT = differences(
    lambda x: grpo_in_float64(x, *exact[1:], **options)[0], exact[0]
  )
  np.testing.assert_allclose(gradient_BT, want_BT, atol=1e-5)
  # Both kinds of tokens are there, else little is tested.
  assert 0 < sums.clipped < sums.tokens == WANTED_BT.sum()
  assert (sums.kl > 0) == (kl > 0)


@pytest.mark.parametrize(
  ('advantage', 'ratio', 'clipped'),
  [
    (1.0, 1.3, True),  # Good and likelier already: nothing more to gain.
    (1.0, 0.7, False),
    (-1.0, 0.7, True),
    (-1.0, 1.3, False),  # Bad and likelier: learned from, however far.
    (1.0, 1.1, False),
  ],
)
def test_only_what_went_too_far_is_clipped(advantage, ratio, clipped):
  ones_BT = np.ones((1, 1), int)

  def function(logp_BT):
    sums = losses.grpo(
      logp_BT,
      np.zeros((1, 1)),
      None,
      np.full((1, 1), advantage),
      ones_BT > 0,
      ones_BT,
      kl=0.0,
    )
    return sums.loss, sums.clipped

  gradient_BT, count = jax.grad(function, has_aux=True)(
    jnp.log(jnp.full((1, 1), ratio))
  )
  assert count == clipped
  want = 0.0 if clipped else -advantage * ratio
  assert float(gradient_BT[0, 0]) == pytest.approx(want, rel=1e-6)


def test_grpo_without_an_old_policy_was_drawn_by_the_policy_itself():
  (logp_BT,) = arrays(1)
  advantages_BX = np.array([[1.5, -0.7], [-1.1, 9.0]], np.float32)

  def function(x, old_BT):
    return losses.grpo(
      x, old_BT, None, advantages_BX, WANTED_BT, SEGMENTS_BT, kl=0.0
    ).loss

  want, found = (
    jax.value_and_grad(function)(logp_BT, old) for old in (logp_BT, None)
  )
  jax.tree.map(np.testing.assert_array_equal, found, want)
  # Every token of a text is as much to blame as the others.
  np.testing.assert_allclose(found[1][1, 1:5], 1.1 / 4, rtol=1e-6)


@pytest.mark.parametrize('normalize', ['texts', 'tokens'])
def test_a_text_without_an_advantage_shows(normalize):
  logp_BT, old_BT = arrays(2)
  sums = losses.grpo(
    logp_BT,
    old_BT,
    None,
    np.ones((2, 1)),  # row 0 has two texts
    WANTED_BT,
    SEGMENTS_BT,
    kl=0.0,
    normalize=normalize,
  )
  assert np.isnan(sums.loss)


@pytest.mark.parametrize('normalize', ['texts', 'tokens'])
def test_grpo_packed_is_unpacked_and_parts_add_up(normalize):
  logp_BT, old_BT, reference_BT = arrays(3, seed=4)
  advantages_BX = np.array([[1.5, -0.7], [-1.1, 9.0]], np.float32)
  options = dict(normalize=normalize, kl=0.5)
  whole = losses.grpo(
    logp_BT,
    old_BT,
    reference_BT,
    advantages_BX,
    WANTED_BT,
    SEGMENTS_BT,
    **options,
  )
  parts = []
  for row in range(2):
    for segment in (1, 2):
      at = SEGMENTS_BT[row] == segment
      # One text a row, with padding behind it.
      alone = [
        np.pad(x[at], (0, 3))[None]
        for x in (
          logp_BT[row],
          old_BT[row],
          reference_BT[row],
          WANTED_BT[row],
          1 * at,
        )
      ]
      advantage_11 = advantages_BX[row, segment - 1 : segment][None]
      parts.append(losses.grpo(*alone[:3], advantage_11, *alone[3:], **options))
  together = jax.tree.map(lambda *x: sum(x), *parts)
  np.testing.assert_allclose(together, whole, rtol=1e-5)
  assert whole.count == (len(TEXTS) if normalize == 'texts' else 7)


def test_unwanted_tokens_and_padding_have_no_influence():
  logps = arrays(3, seed=4)
  advantages_BX = np.array([[1.5, -0.7], [-1.1, 9.0]], np.float32)

  def everything(logp_BT, old_BT, reference_BT, advantages_BX):
    sums = losses.grpo(
      logp_BT, old_BT, reference_BT, advantages_BX, WANTED_BT, SEGMENTS_BT
    )
    text_BX = losses.text_sums(logp_BT, WANTED_BT, SEGMENTS_BT, 2)
    loss, count = losses.sft(logp_BT, WANTED_BT)
    total = sums.loss + text_BX.sum() + loss
    return total, (sums, text_BX, loss, count)

  function = jax.value_and_grad(everything, has_aux=True)
  want = function(*logps, advantages_BX)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(want))
  # Arrays of their own: jax may still be reading the others.
  logps = [
    np.where(WANTED_BT, x, garbage).astype(np.float32)
    for x, garbage in zip(logps, (np.nan, np.inf, -np.inf))
  ]
  # Of the text without wanted tokens.
  advantages_BX = np.array([[1.5, -0.7], [-1.1, np.nan]], np.float32)
  found = function(*logps, advantages_BX)
  jax.tree.map(np.testing.assert_array_equal, found, want)
  # A mask that includes padding counts none.
  wide_BT = WANTED_BT | (SEGMENTS_BT == 0)
  zeros = [np.where(WANTED_BT, x, 0) for x in logps]
  wide = losses.grpo(*zeros, np.nan_to_num(advantages_BX), wide_BT, SEGMENTS_BT)
  jax.tree.map(np.testing.assert_array_equal, wide, want[0][1][0])


@pytest.mark.parametrize('advantage', [1.0, -1.0])
@pytest.mark.parametrize('far', [1e4, -1e4])
def test_grpo_stays_finite_far_from_the_old_policy(advantage, far):
  ones_BT = np.ones((1, 2), int)

  def function(logp_BT):
    return losses.grpo(
      logp_BT,
      np.zeros((1, 2), np.float32),
      np.zeros((1, 2), np.float32),
      np.full((1, 1), advantage, np.float32),
      ones_BT > 0,
      ones_BT,
    ).loss

  loss, gradient_BT = jax.value_and_grad(function)(
    np.full((1, 2), far, np.float32)
  )
  assert np.isfinite(loss)
  assert np.isfinite(gradient_BT).all()
  # Back to the policy that it must not leave.
  assert (np.sign(gradient_BT) == np.sign(far)).all()


@pytest.mark.parametrize(
  ('setting', 'message'),
  [
    (dict(normalize='rows'), "normalize is 'rows'"),
    (dict(clip=0.0), 'clip is 0.0'),
    (dict(kl=-1.0), 'kl -1.0'),
    (dict(kl=0.1), 'needs a reference'),
  ],
)
def test_impossible_settings_of_grpo_are_refused(setting, message):
  logp_BT, old_BT = arrays(2)
  with pytest.raises(me_jax.MeJaxError, match=message):
    losses.grpo(
      logp_BT,
      old_BT,
      None,
      np.ones((2, 2)),
      WANTED_BT,
      SEGMENTS_BT,
      **{'kl': 0.0} | setting,
    )


@pytest.mark.parametrize(
  ('setting', 'message'),
  [
    (dict(beta=0.0), 'beta is 0.0'),
    (dict(label_smoothing=0.5), 'label_smoothing is 0.5'),
    (dict(label_smoothing=-0.1), 'label_smoothing is -0.1'),
  ],
)
def test_impossible_settings_of_dpo_are_refused(setting, message):
  with pytest.raises(me_jax.MeJaxError, match=message):
    losses.dpo(*preferences(), **setting)
