"""What is made small: the losses of texts, of preferences and of rewards.

Pure functions of log-probabilities. What is added up over the parts of a batch
comes as sums with counts, because the mean of means is another number where
parts have different numbers of tokens.

Letters: B rows, T time, X texts of a row, P pairs, G groups, R answers of a
group.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax import errors

_STEEP = 20.0  # exponents beyond it are straightened: exp(89) is infinite


class Preferences(NamedTuple):
  """How well a model tells preferred answers, pair by pair.

  Attributes:
    loss_P: nats, float32.
    margin_P: implicit reward of the chosen answer above the rejected one's.
    correct_P: 1 where the margin is positive, else 0.
  """

  loss_P: jax.Array
  margin_P: jax.Array
  correct_P: jax.Array


class PolicySums(NamedTuple):
  """Sums over a part of a batch, float32 scalars.

  Attributes:
    loss: what is divided by `count` after all parts have been added.
    count: texts or tokens, whichever have equal weights.
    kl: estimated divergence from the reference, summed over tokens.
    clipped: tokens whose ratio was clipped, and which hence teach nothing.
    tokens: what the last two are divided by.
  """

  loss: jax.Array
  count: jax.Array
  kl: jax.Array
  clipped: jax.Array
  tokens: jax.Array


def sft(
  logp_BT: jax.Array, wanted_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Sums the negative log-likelihood (Radford et al. 2018, eq. 1).

  Args:
    logp_BT: log-probability of each token.
    wanted_BT: bool, tokens to learn.

  Returns:
    The sum in nats and the number of tokens, float32 scalars.
  """
  return -jnp.sum(jnp.where(wanted_BT, logp_BT, 0.0)), _count(wanted_BT)


def text_sums(
  values_BT: jax.Array,
  wanted_BT: jax.Array,
  segments_BT: jax.Array,
  texts: int,
) -> jax.Array:
  """Sums over the wanted tokens of each text, `[B, X]` float32.

  Args:
    values_BT: what is summed, such as log-probabilities for `dpo`.
    wanted_BT: bool.
    segments_BT: int32, 0 for padding, 1, ..., X for texts.
    texts: X, at least the largest segment.
  """
  index_11X = jnp.arange(1, texts + 1)[None, None]
  inside_BTX = (segments_BT[..., None] == index_11X) & wanted_BT[..., None]
  values_BT1 = values_BT.astype(jnp.float32)[..., None]
  return jnp.sum(jnp.where(inside_BTX, values_BT1, 0.0), axis=1)


def dpo(
  chosen_P: jax.Array,
  rejected_P: jax.Array,
  reference_chosen_P: jax.Array,
  reference_rejected_P: jax.Array,
  *,
  beta: float = 0.1,
  label_smoothing: float = 0.0,
) -> Preferences:
  """Direct preference optimization (Rafailov et al. 2023, 2305.18290, eq. 7).

  The reward of an answer is beta times its log-probability above the
  reference's (section 4, but for a term that a pair has in common).

  Args:
    chosen_P: log-probability of each preferred answer, summed over tokens.
    rejected_P: of the other answer.
    reference_chosen_P: the same of the model that was started from.
    reference_rejected_P: the same.
    beta: how dear it is to leave the reference.
    label_smoothing: the share of pairs whose order is taken to be wrong
      (conservative DPO: Mitchell 2023, A note on DPO with noisy preferences and
      relationship to IPO, eq. 3).

  Returns:
    Loss, margin and correctness of each pair. Sum them over real pairs.

  Raises:
    MeJaxError: `beta` is not positive or `label_smoothing` not in [0, 0.5).
  """
  check_dpo(beta=beta, label_smoothing=label_smoothing)
  # Constants, even where the reference shares parameters with the model.
  reference_chosen_P, reference_rejected_P = jax.lax.stop_gradient(
    (reference_chosen_P, reference_rejected_P)
  )
  margin_P = beta * (
    (chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P)
  )
  loss_P = -(1 - label_smoothing) * jax.nn.log_sigmoid(margin_P)
  loss_P -= label_smoothing * jax.nn.log_sigmoid(-margin_P)
  return Preferences(loss_P, margin_P, (margin_P > 0).astype(jnp.float32))


def check_dpo(*, beta: float, label_smoothing: float) -> None:
  """Raises MeJaxError for options of `dpo` that cannot be."""
  if not 0 < beta < math.inf:
    raise errors.MeJaxError(f'beta is {beta}, must be above 0.')
  if not 0 <= label_smoothing < 0.5:
    raise errors.MeJaxError(
      f'label_smoothing is {label_smoothing}, must be from 0 to below 0.5.'
    )


def check_grpo(*, clip: float, kl: float, normalize: str) -> None:
  """Raises MeJaxError for options of `grpo` that cannot be."""
  if normalize not in ('texts', 'tokens'):
    raise errors.MeJaxError(
      f"normalize is {normalize!r}, not 'texts' or 'tokens'."
    )
  if not (0 < clip < 1 and 0 <= kl < math.inf):
    raise errors.MeJaxError(
      f'clip is {clip} and kl {kl}; must be between 0 and 1, and 0 or more.'
    )


def group_advantages(
  rewards_GR: jax.Array | np.ndarray, *, epsilon: float = 1e-4
) -> jax.Array:
  """Says how much better each answer is than others to the same question.

  Shao et al. 2024, arXiv 2402.03300, section 4.1.2: rewards less their group's
  mean, over its standard deviation. The paper does not say which; this is the
  sample's (over R - 1), as elsewhere.

  Args:
    rewards_GR: rewards of the answers to each question.
    epsilon: added to the deviation, which the paper does not: without it a
      difference by rounding counts as much as any.

  Returns:
    Advantages `[G, R]` float32; 0 in a group of equal rewards.
  """
  rewards_GR = jnp.asarray(rewards_GR, jnp.float32)
  # By the rewards themselves: the mean of equal numbers may differ from them.
  varied_G1 = jnp.ptp(rewards_GR, axis=1, keepdims=True) > 0
  centred_GR = rewards_GR - jnp.mean(rewards_GR, axis=1, keepdims=True)
  freedom = max(rewards_GR.shape[1] - 1, 1)
  square_G1 = jnp.sum(centred_GR**2, axis=1, keepdims=True) / freedom
  scaled_GR = centred_GR / (jnp.sqrt(square_G1) + epsilon)
  return jnp.where(varied_G1, scaled_GR, 0.0)


def grpo(
  logp_BT: jax.Array,
  old_logp_BT: jax.Array | None,
  reference_logp_BT: jax.Array | None,
  advantages_BX: jax.Array,
  wanted_BT: jax.Array,
  segments_BT: jax.Array,
  *,
  clip: float = 0.2,
  kl: float = 0.04,
  normalize: str = 'texts',
) -> PolicySums:
  """Group relative policy optimization (Shao et al. 2024, arXiv 2402.03300).

  The negative of eq. 3: the clipped ratio to the policy that drew the answers,
  less the divergence from the reference by the estimator of eq. 4 (k3), which
  is unbiased and never negative.

  Args:
    logp_BT: log-probability of each token by the policy that is trained.
    old_logp_BT: by the policy that drew it; None where that is the same one,
      whose ratio is 1.
    reference_logp_BT: by the reference; None where `kl` is 0.
    advantages_BX: of each text of a row, from `group_advantages`. The loss is
      NaN where a wanted text has none.
    wanted_BT: bool, tokens that the policy drew.
    segments_BT: int32, 0 for padding, 1, ..., X for texts.
    clip: how far the ratio may go from 1.
    kl: weight of the divergence; the paper's is 0.04.
    normalize: `texts` weighs texts equally (eq. 3); `tokens` weighs tokens
      equally, over all parts of the batch (Yu et al. 2025, arXiv 2503.14476,
      section 3.3).

  Returns:
    Sums and counts. A text without wanted tokens is not counted.

  Raises:
    MeJaxError: an option is impossible, or a reference is missing.
  """
  check_grpo(clip=clip, kl=kl, normalize=normalize)
  if kl and reference_logp_BT is None:
    raise errors.MeJaxError(f'kl is {kl}, which needs a reference.')
  texts = advantages_BX.shape[1]
  wanted_BT = wanted_BT & (segments_BT > 0)
  text_BT = jnp.maximum(segments_BT - 1, 0)

  def spread(values_BX: jax.Array, elsewhere: float) -> jax.Array:
    values_BT = jnp.take_along_axis(values_BX, text_BT, axis=1, mode='fill')
    return jnp.where(wanted_BT, values_BT, elsewhere)

  advantage_BT = spread(advantages_BX, 0.0)
  if old_logp_BT is None:
    old_logp_BT = logp_BT
  # Constants, even where they come from parameters that are trained.
  old_logp_BT, reference_logp_BT, advantage_BT = jax.lax.stop_gradient(
    (old_logp_BT, reference_logp_BT, advantage_BT)
  )
  ratio_BT = _exp(jnp.where(wanted_BT, logp_BT - old_logp_BT, 0.0))
  free_BT = ratio_BT * advantage_BT
  held_BT = jnp.clip(ratio_BT, 1 - clip, 1 + clip) * advantage_BT
  kl_BT = jnp.zeros_like(free_BT)
  if reference_logp_BT is not None:
    above_BT = jnp.where(wanted_BT, reference_logp_BT - logp_BT, 0.0)
    kl_BT = _exp(above_BT) - above_BT - 1
  loss_BT = kl * kl_BT - jnp.minimum(free_BT, held_BT)
  tokens = _count(wanted_BT)
  loss, count = jnp.sum(loss_BT), tokens
  if normalize == 'texts':
    length_BX = text_sums(wanted_BT, wanted_BT, segments_BT, texts)
    loss = jnp.sum(loss_BT / spread(length_BX, 1.0))
    count = _count(length_BX > 0)
  clipped_BT = free_BT > held_BT
  return PolicySums(loss, count, jnp.sum(kl_BT), _count(clipped_BT), tokens)


def _exp(x: jax.Array) -> jax.Array:
  """Exponential, continued as a straight line where it would overflow.

  An infinite branch that `minimum` leaves out still makes its gradient NaN.
  """
  bounded = jnp.minimum(x, _STEEP)
  return jnp.exp(bounded) * (1 + x - bounded)


def _count(mask: jax.Array) -> jax.Array:
  return jnp.sum(mask.astype(jnp.float32))
