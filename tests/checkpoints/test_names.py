"""Tables of names, and what they can say about families to come."""

from __future__ import annotations

import dataclasses
import re

import jax
import numpy as np
import pytest

from me_jax import errors
from me_jax.checkpoints import assemble
from me_jax.checkpoints import gguf_names
from me_jax.checkpoints import load
from me_jax.checkpoints import names
from me_jax.checkpoints import safetensors


def test_every_leaf_of_the_decoder_has_a_name_in_both_schemes(tiny, tmp_path):
  checkpoint = load.open_checkpoint(tiny.hf(tmp_path / 'm'))
  for table in (checkpoint.names, gguf_names.gguf_table(checkpoint.config)):
    assert tiny.leaves().keys() <= table.origins.keys()


def test_a_bare_decoder_lacks_the_prefix(tiny, flat, tmp_path):
  bare = {k.removeprefix('model.'): v for k, v in tiny.weights.items()}
  params = load.load(tiny.hf(tmp_path / 'm', bare)).params
  for path, value in tiny.leaves().items():
    np.testing.assert_array_equal(flat(params)[path], value)


def test_fused_projections_are_slices_of_rows(tiny, flat, tmp_path):
  fused = dict(tiny.weights)
  groups = {
    'self_attn.qkv_proj': (
      'self_attn.q_proj',
      'self_attn.k_proj',
      'self_attn.v_proj',
    ),
    'mlp.gate_up_proj': ('mlp.gate_proj', 'mlp.up_proj'),
  }
  for layer in range(2):
    for group, parts in groups.items():
      stem = f'model.layers.{layer}.'
      fused[f'{stem}{group}.weight'] = np.concatenate(
        [fused.pop(f'{stem}{part}.weight') for part in parts]
      )
  tensors = safetensors.open_folder(str(tiny.hf(tmp_path / 'm', fused)))
  split = load.open_checkpoint(tiny.hf(tmp_path / 'split')).config
  table = names.hf_table(dataclasses.replace(split, fused_projections=True))
  shapes = {}
  for path, value in tiny.leaves().items():
    node = shapes
    *parents, last = path.split('/')
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = jax.ShapeDtypeStruct(value.shape, np.float32)
  params = assemble.assemble(shapes, tensors, table)
  for path, value in tiny.leaves().items():
    np.testing.assert_array_equal(flat(params)[path], value)


def one_leaf(tiny, tmp_path, origin, name='norm/weight'):
  tensors = safetensors.open_folder(str(tiny.hf(tmp_path / 'm')))
  keep = {'model.norm.weight': tensors['model.norm.weight']}
  shapes = {'norm': {'weight': jax.ShapeDtypeStruct((32,), np.float32)}}
  table = names.NameTable(origins={name: origin}, harmless=re.compile('-'))
  return assemble.assemble(shapes, keep, table)['norm']['weight']


def test_offsets_are_added(tiny, tmp_path):
  origin = names.Origin(template='model.norm.weight', offset=-1.0)
  found = one_leaf(tiny, tmp_path, origin)
  expected = tiny.weights['model.norm.weight'] - np.float32(1)
  np.testing.assert_array_equal(found, expected)


def test_a_leaf_without_a_name_is_an_error(tiny, tmp_path):
  origin = names.Origin(template='model.norm.weight')
  with pytest.raises(errors.MeJaxError, match='norm/weight'):
    one_leaf(tiny, tmp_path, origin, name='other/weight')


def test_an_untied_head_is_not_harmless(tiny, tmp_path):
  config = load.open_checkpoint(tiny.hf(tmp_path / 'm')).config
  assert names.hf_table(config).harmless.fullmatch('lm_head.weight')
  config = dataclasses.replace(config, tie_word_embeddings=False)
  assert not names.hf_table(config).harmless.fullmatch('lm_head.weight')
