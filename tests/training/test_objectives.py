"""Objectives against torch in float64, which sees each text by itself."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from me_jax import errors
from me_jax.training import data
from me_jax.training import examples
from me_jax.training import objectives
from me_jax.training import packing
from me_jax.training import rollouts
from me_jax.training import settings
from tests.support import tiny

LENGTH = 20
CHUNK = 30  # of 101 tokens
# Leaves of ours by torch's; its matrices are [out, in].
LEAVES = {
  'lm_head.weight': lambda tree: tree['lm_head']['kernel'].T,
  'model.embed_tokens.weight': lambda tree: tree['embed_tokens']['embedding'],
  'model.norm.weight': lambda tree: tree['norm']['weight'],
  'model.layers.0.self_attn.q_proj.weight': lambda tree: (
    tree['layers']['self_attn']['q_proj']['kernel'][0].T
  ),
  'model.layers.1.mlp.down_proj.weight': lambda tree: (
    tree['layers']['mlp']['down_proj']['kernel'][1].T
  ),
}


@pytest.fixture(scope='module', name='both')
def _both(tmp_path_factory):
  """A model in torch, in float64, and ours in float32."""
  reference = tiny.hf_llama(num_hidden_layers=2)
  lm = tiny.loaded(reference, tmp_path_factory.mktemp('model'))
  return reference.double(), lm


def text(seed, length, wanted):
  """Returns a text of which the tokens in a slice are learnt."""
  random = np.random.default_rng(seed)
  wanted_T = np.zeros(length, bool)
  wanted_T[wanted] = True
  return examples.Example(
    random.integers(3, 101, length).astype(np.int32), wanted_T
  )


TEXTS = (
  text(0, 9, slice(4, None)),
  # Of this all is wanted, its first token too, which nothing predicts.
  text(1, 7, slice(None)),
  text(2, 13, slice(5, 9)),
  text(3, 5, slice(3, 5)),
)


def run_of(method, **compute):
  return settings.Run(
    data=settings.Data(mix=data.Mix(sources=())),
    method=method,
    compute=settings.Compute(**{'vocabulary_chunk': CHUNK} | compute),
  )


def ours(lm, run, batch):
  """Returns means by name, and the gradient of the loss's sum."""
  objective = objectives.of(run)

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def gradient(params, batch):
    sums = objective(lm.model, params, batch)
    return sums['loss'][0], sums

  found, sums = gradient(lm.params, batch)
  return {k: (float(a), float(b)) for k, (a, b) in sums.items()}, found


def logps(reference, one, temperature=1.0):
  """Returns the log-probability of tokens 1, 2, ... of a text, in torch."""
  import torch

  ids = torch.tensor(one.tokens_T[None].astype(np.int64))
  logits_TV = reference(ids).logits[0, :-1] / temperature
  return torch.log_softmax(logits_TV, -1).gather(1, ids[0, 1:, None])[:, 0]


def answer(reference, one, **options):
  """Returns that of the tokens that are learnt."""
  import torch

  wanted = torch.from_numpy(one.wanted_T[1:])
  return logps(reference, one, **options)[wanted]


def assert_gradient(reference, loss, found):
  """Compares gradients of a sum; ours is that of float32."""
  reference.zero_grad()
  loss.backward()
  theirs = dict(reference.named_parameters())
  for name, leaf in LEAVES.items():
    want = theirs[name].grad.numpy()
    assert np.abs(want).max() > 0.01
    np.testing.assert_allclose(
      leaf(found), want, rtol=1e-3, atol=1e-4 * np.abs(want).max()
    )


@pytest.mark.parametrize(
  'rows',
  [[[one] for one in TEXTS], [[TEXTS[2], TEXTS[1]], [], [TEXTS[3], TEXTS[0]]]],
  ids=['alone', 'packed'],
)
def test_sft(both, rows):
  reference, lm = both
  sums, found = ours(lm, run_of(settings.Sft()), packing.lay_out(rows, LENGTH))
  want = -sum(answer(reference, one).sum() for one in TEXTS)
  loss, count = sums['loss']
  np.testing.assert_allclose(loss, want.item(), rtol=1e-5)
  # Every token that is learnt, but for the first of the second text.
  assert count == 5 + (7 - 1) + 4 + 2
  assert_gradient(reference, want, found)


def pairs():
  rejected = [
    examples.Example(
      # The same prompt with another answer, of another length.
      np.concatenate([one.tokens_T[: one.wanted_T.argmax()], other.tokens_T]),
      np.arange(one.wanted_T.argmax() + len(other.tokens_T))
      >= one.wanted_T.argmax(),
    )
    for one, other in zip(TEXTS, TEXTS[::-1])
  ]
  return [examples.Pair(*both) for both in zip(TEXTS, rejected)]


# By which some pairs are told, and some are not.
REFERENCE = np.float32([[-40, -20, -45, -5], [-35, -50, -20, -60]])


@pytest.mark.parametrize(('beta', 'smoothing'), [(0.1, 0.0), (0.3, 0.2)])
def test_dpo(both, beta, smoothing):
  import torch

  reference, lm = both
  method = settings.Dpo(beta=beta, label_smoothing=smoothing)
  packed = packing.lay_out_pairs(pairs(), LENGTH)
  batch = objectives.Pairs(packed, *REFERENCE)
  sums, found = ours(lm, run_of(method), batch)
  margins = torch.stack(
    [
      beta
      * (
        (answer(reference, pair.chosen).sum() - float(REFERENCE[0, i]))
        - (answer(reference, pair.rejected).sum() - float(REFERENCE[1, i]))
      )
      for i, pair in enumerate(pairs())
    ]
  )
  want = -(1 - smoothing) * torch.nn.functional.logsigmoid(margins)
  want = (want - smoothing * torch.nn.functional.logsigmoid(-margins)).sum()
  np.testing.assert_allclose(sums['loss'], (want.item(), 4), rtol=1e-5)
  np.testing.assert_allclose(
    sums['margin'], (margins.sum().item(), 4), rtol=1e-4
  )
  correct = (margins > 0).sum().item()
  assert sums['correct'] == (correct, 4) and 0 < correct < 4, margins
  assert_gradient(reference, want, found)


def test_sums_of_answers_are_those_of_texts_alone(both):
  reference, lm = both
  score = jax.jit(
    functools.partial(objectives.answer_sums, lm.model, chunk=CHUNK)
  )
  found = score(lm.params, packing.lay_out_pairs(pairs(), LENGTH))
  for side, values in zip(zip(*pairs()), found):
    want = [answer(reference, one).sum().item() for one in side]
    np.testing.assert_allclose(values, want, rtol=1e-5)


ADVANTAGES = np.float32([[1.2], [-0.7], [0.4], [-0.9]])


@pytest.mark.parametrize('normalize', ['texts', 'tokens'])
@pytest.mark.parametrize('old', [True, False], ids=['old', 'the same'])
def test_grpo(both, normalize, old):
  import torch

  reference, lm = both
  temperature, clip, kl = 0.7, 0.3, 0.2
  method = settings.Grpo(
    sampling=rollouts.Settings(temperature=temperature),
    clip=clip,
    kl=kl if old else 0.0,
    normalize=normalize,
  )
  packed = packing.lay_out([[one] for one in TEXTS], LENGTH)
  with torch.no_grad():
    now = [logps(reference, one, temperature).numpy() for one in TEXTS]
  # Around what they are now, so that ratios lie on either side of the clip.
  random = np.random.default_rng(6)
  shape = (2, len(TEXTS), LENGTH)
  other = random.normal(0, 0.4, shape)
  for row, values in enumerate(now):
    other[:, row, 1 : 1 + len(values)] += values
  before_BT, reference_BT = other.astype(np.float32)
  batch = objectives.Answers(packed, ADVANTAGES)
  if old:
    batch = batch._replace(
      old_logp_BT=before_BT, reference_logp_BT=reference_BT
    )
  sums, found = ours(lm, run_of(method), batch)

  total, divergence, clipped, counts = 0.0, 0.0, 0, []
  for row, one in enumerate(TEXTS):
    wanted = one.wanted_T[1:]
    policy = answer(reference, one, temperature=temperature)

    def beside(values_BT, row=row, one=one, wanted=wanted):
      values = values_BT[row, 1 : len(one.tokens_T)][wanted]
      return torch.from_numpy(values.astype(np.float64))

    drew = beside(before_BT) if old else policy.detach()
    ratio = torch.exp(policy - drew)
    advantage = float(ADVANTAGES[row, 0])
    free = ratio * advantage
    held = torch.clamp(ratio, 1 - clip, 1 + clip) * advantage
    loss = -torch.minimum(free, held)
    if old:
      above = beside(reference_BT) - policy
      apart = torch.exp(above) - above - 1
      loss = loss + kl * apart
      divergence += apart.sum().item()
    clipped += (free > held).sum().item()
    counts.append(len(policy))
    total = total + (loss.mean() if normalize == 'texts' else loss.sum())
  tokens = sum(counts)
  count = len(TEXTS) if normalize == 'texts' else tokens
  np.testing.assert_allclose(
    sums['loss'], (total.item(), count), rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(sums['kl'], (divergence, tokens), rtol=1e-3)
  assert sums['clipped'] == (clipped, tokens)
  assert (0 < clipped < tokens) == old
  assert_gradient(reference, total, found)


def test_scores_stand_at_their_token_packed_or_alone(both):
  reference, lm = both
  score = jax.jit(
    functools.partial(
      objectives.token_logprobs, lm.model, chunk=CHUNK, temperature=0.7
    )
  )
  rows = [[TEXTS[2], TEXTS[1]], [TEXTS[0]], []]
  packed = packing.lay_out(rows, LENGTH)
  found_BT = np.asarray(score(lm.params, packed))
  want_BT = np.zeros(packed.tokens_BT.shape)
  for b, row in enumerate(rows):
    at = 0
    for one in row:
      values = logps(reference, one, 0.7).detach().numpy()
      # 0 for the first, which nothing predicts, and for what is not learnt.
      want_BT[b, at + 1 : at + len(one.tokens_T)] = values * one.wanted_T[1:]
      at += len(one.tokens_T)
  np.testing.assert_allclose(found_BT, want_BT, atol=2e-5)
  assert ((found_BT == 0) == (want_BT == 0)).all()


def test_first_tokens_and_padding_are_not_learnt():
  packed = packing.Packed(
    np.zeros((2, 6), np.int32),
    np.array([[1, 1, 2, 3, 3, 0], [0, 0, 0, 0, 0, 0]], np.int32),
    np.ones((2, 6), bool),
  )
  found_BT = np.asarray(objectives.learnt(packed)) & (packed.segments_BT > 0)
  np.testing.assert_array_equal(
    found_BT, [[False, True, False, False, True, False], [False] * 6]
  )
  # What is laid out wants nothing of padding.
  laid = packing.lay_out([[TEXTS[1]], []], LENGTH)
  learnt_BT = objectives.learnt(laid)
  assert not learnt_BT[laid.segments_BT == 0].any()
  assert learnt_BT.sum() == 6
  none = objectives.learnt(laid._replace(wanted_BT=np.zeros((2, LENGTH), bool)))
  assert not none.any()


@pytest.mark.parametrize(
  ('method', 'kind'),
  [(settings.Sft(), 'sft'), (settings.Dpo(), 'dpo'), (settings.Grpo(), 'grpo')],
)
def test_the_chunk_is_that_of_the_settings(both, method, kind):
  """An impossible one shows that it is used; the loss is the same with any."""
  _, lm = both
  packed = packing.lay_out([[one] for one in TEXTS], LENGTH)
  batch = {
    'sft': packed,
    'dpo': objectives.Pairs(packing.PackedPairs(packed, packed), *REFERENCE),
    'grpo': objectives.Answers(packed, ADVANTAGES),
  }[kind]
  objective = objectives.of(run_of(method, vocabulary_chunk=0))
  with pytest.raises(errors.MeJaxError, match='chunk is 0'):
    jax.eval_shape(functools.partial(objective, lm.model), lm.params, batch)
