"""lm-eval through our adapter gives what it gives through its own."""

from __future__ import annotations

import dataclasses
import types

import jax
import numpy as np
import pytest

pytest.importorskip('lm_eval', reason='needs the extra [eval]')

import me_jax  # noqa: E402
from me_jax.checkpoints import load as load_lib  # noqa: E402
from me_jax.evaluation import harness  # noqa: E402
from tests.support import folder  # noqa: E402
from tests.support import planted  # noqa: E402

TEXTS = [
  ('a cat ', 'sat'), ('the dog', ' ran, he ran'), ('', 'alone'), ('abc', 'd'),
  ('abc', 'e'), ('one two three four five six', ' seven'), ('a b ', 'c'),
]  # fmt: skip


@pytest.fixture(scope='module')
def both(tmp_path_factory):
  """Our adapter and lm-eval's of one model in a folder."""
  from lm_eval.models import huggingface

  model, params = planted.build([], bos_channel=2.0)
  params = jax.tree.map(lambda x: x * 8 if x.ndim == 3 else x, params)
  tokenizer = folder.tokenizer()
  tokenizer.eos_token = '9'
  ends = (tokenizer.eos_token_id,)
  model = model.clone(
    config=dataclasses.replace(model.config, eos_token_ids=ends)
  )
  path = folder.write(model, params, tmp_path_factory.mktemp('m') / 'model')
  tokenizer.save_pretrained(path)
  ours = harness.MeJaxLM(pretrained=str(path), batch_size=4, max_gen_toks=20)
  theirs = huggingface.HFLM(
    pretrained=str(path), device='cpu', batch_size=3, max_length=256,
    dtype='float32',
  )  # fmt: skip
  return ours, theirs


def instances(arguments):
  return [types.SimpleNamespace(args=args) for args in arguments]


def test_likelihoods(both):
  found, expected = (lm.loglikelihood(instances(TEXTS)) for lm in both)
  np.testing.assert_allclose(
    [log for log, _ in found], [log for log, _ in expected], atol=1e-3
  )
  assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_whole_texts(both):
  texts = instances([('the quick brown fox jumps. ' * 20,), ('a',)])
  found, expected = (lm.loglikelihood_rolling(texts) for lm in both)
  np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.parametrize('until', [[], ['a'], ['zz', ' ']])
def test_what_is_generated(both, until):
  arguments = {'until': until, 'do_sample': False, 'max_gen_toks': 24}
  requests = instances([(a + b, arguments) for a, b in TEXTS])
  found, expected = (lm.generate_until(requests) for lm in both)
  assert found == expected
  assert any(found)


def test_answers_are_kept_as_they_come(both):
  ours, _ = both
  kept = {}
  hook = types.SimpleNamespace(
    add_partial=lambda kind, args, answer: kept.__setitem__(
      (kind, args[0]), answer
    )
  )
  ours.set_cache_hook(hook)
  arguments = {'until': [], 'do_sample': False}
  found = ours.generate_until(instances([('abc', arguments), ('b', arguments)]))
  assert kept == {
    ('generate_until', 'abc'): found[0], ('generate_until', 'b'): found[1]
  }  # fmt: skip


def test_too_long_an_answer_is_refused(both):
  ours, _ = both
  arguments = {'until': [], 'max_gen_toks': 256}
  with pytest.raises(me_jax.MeJaxError, match='the context is 256'):
    ours.generate_until(instances([('abc', arguments)]))


def test_of_a_context_that_is_too_long_the_end_counts(both):
  ours, theirs = both
  text = ''.join(chr(97 + i * i % 26) for i in range(400))
  arguments = {'until': [], 'do_sample': False, 'max_gen_toks': 24}
  requests = instances([(text, arguments)])
  found = ours.generate_until(requests)
  assert found == theirs.generate_until(requests)
  assert found == ours.generate_until(instances([('zz' + text, arguments)]))
  assert found != ours.generate_until(instances([(text + 'zz', arguments)]))


def test_samples_depend_on_the_seed(both):
  ours, _ = both
  arguments = {'until': [], 'do_sample': True, 'temperature': 1.0}
  requests = instances([('abc', arguments), ('abd', arguments)])

  def said(seed):
    lm = harness.MeJaxLM.of(ours._lm, name='m', max_gen_toks=20, seed=seed)
    return lm.generate_until(requests)

  assert said(0) == said(0) != said(5)


@pytest.mark.parametrize('size', ['auto:4', 0, 'many'])
def test_a_batch_size_that_is_none_is_refused(both, size):
  with pytest.raises(me_jax.MeJaxError, match='batch_size is'):
    harness.MeJaxLM(pretrained='smollm2', batch_size=size)


def test_a_model_without_a_tokenizer_is_refused():
  lm = load_lib.LoadedModel(*planted.build([]), None, None)
  with pytest.raises(me_jax.MeJaxError, match='no tokenizer'):
    harness.MeJaxLM.of(lm, name='m')


def test_it_is_known_to_lm_eval():
  from lm_eval.api import registry

  assert registry.get_model('me_jax') is harness.MeJaxLM
