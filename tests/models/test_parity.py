"""Every family and every kind of field against Hugging Face on torch."""

from __future__ import annotations

import importlib.util

import pytest

from tests.support import parity

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('torch') is None,
  reason='torch, the reference implementation, is not installed',
)
# The plain case of each family, and what rounds in an order of its own.
IN_BFLOAT16 = (
  'llama, K=2 G=3',
  'llama, MQA, tied',
  'llama, yarn',
  'smollm3',
  'mistral, window',
  'qwen2, late windows',
  'qwen3',
  'phi3, longrope, long text',
  'phi3, partial rotary, head_dim 15',
  'gemma2',
  'gemma3, linear, tied, MHA',
  'olmo2',
)


@pytest.mark.parametrize('case', parity.CASES)
def test_every_residual_and_the_logits_equal_hf(case):
  found = parity.float32(case)
  assert found['write'] > 0.3, 'a layer that writes little would hide faults'
  assert found['resid'] < 1e-4
  assert found['logits'] < 1e-4


@pytest.mark.parametrize('case', IN_BFLOAT16)
def test_bfloat16_agrees_with_hf_in_bfloat16(case):
  found = parity.bfloat16(case)
  assert found['kl'] < 1e-3
  assert found['top1'] >= 0.99
