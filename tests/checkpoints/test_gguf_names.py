"""Tables of names in GGUF files."""

from __future__ import annotations

import gguf
import pytest

from me_jax.checkpoints import gguf_config
from me_jax.checkpoints import gguf_names
from me_jax.models import config as config_lib

ARCHITECTURES = sorted(gguf_config.ARCHITECTURES)
# In files of all architectures, but never parameters of ours.
SPECIAL = {'rope_freqs', 'blk.{bid}.attn_rot_embd', 'rope_factors_long',
           'rope_factors_short'}  # fmt: skip


def table(architecture):
  family = gguf_config.ARCHITECTURES[architecture].model_type
  config = config_lib.ModelConfig(
    model_type=family,
    vocab_size=16,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    norm_offset=1.0 if family.startswith('gemma') else 0.0,
    fused_projections=family == 'phi3',
  )
  return gguf_names.gguf_table(config)


def stems(found):
  templates = {origin.template for origin in found.origins.values()}
  weights = {name for name in templates if name.endswith('.weight')}
  return {name.removesuffix('.weight') for name in weights}


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_names_are_those_that_llama_cpp_lists(architecture):
  numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
  listed = {
    gguf.TENSOR_NAMES[tensor].replace('{bid}', '{layer}')
    for tensor in gguf.MODEL_TENSORS[numbers[architecture]]
    if '_exps' not in gguf.TENSOR_NAMES[tensor]
  }
  listed -= {name.replace('{bid}', '{layer}') for name in SPECIAL}
  found = stems(table(architecture))
  if architecture == 'llama':
    listed -= {'blk.{layer}.ffn_gate_inp'}
  if architecture == 'phi3':
    # Listed for a model that is stored in parts; ours are fused.
    listed -= {f'blk.{{layer}}.attn_{part}' for part in 'qkv'}
  if architecture == 'gemma2':
    found -= {'output'}
  assert found == listed


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_only_llamas_queries_and_keys_are_permuted(architecture):
  found = {
    path for path, origin in table(architecture).origins.items()
    if origin.rotary_rows
  }  # fmt: skip
  expected = {
    f'layers/self_attn/{part}_proj/{kind}'
    for part in 'qk'
    for kind in ('kernel', 'bias')
  }
  assert found == (expected if architecture in ('llama', 'smollm3') else set())


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_only_gemmas_norms_have_an_offset(architecture):
  for path, origin in table(architecture).origins.items():
    gemma = architecture.startswith('gemma') and 'norm' in path
    assert origin.offset == (-1.0 if gemma else 0.0), path


def test_phi3s_parts_are_slices_of_rows():
  origins = table('phi3').origins
  parts = [origins[f'layers/self_attn/{p}_proj/kernel'] for p in 'qkv']
  assert [p.template for p in parts] == ['blk.{layer}.attn_qkv.weight'] * 3
  assert [p.first_row for p in parts] == [0, 32, 48]
  assert {p.stored_rows for p in parts} == {64}
  gate, up = (origins[f'layers/mlp/{p}_proj/kernel'] for p in ('gate', 'up'))
  assert gate.template == up.template == 'blk.{layer}.ffn_up.weight'
  assert (gate.first_row, up.first_row, up.stored_rows) == (0, 48, 96)


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_what_may_lie_unused(architecture):
  harmless = table(architecture).harmless
  freqs = architecture in ('llama', 'smollm3')
  assert bool(harmless.fullmatch('rope_freqs.weight')) == freqs
  for name in ('rope_factors_long.weight', 'rope_factors_short.weight'):
    assert bool(harmless.fullmatch(name)) == (architecture == 'phi3')
  for name in ('output.weight', 'blk.0.attn_q.bias', 'rope_freqsXweight'):
    assert not harmless.fullmatch(name)
