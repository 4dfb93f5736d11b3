"""Rotary frequencies against transformers' own initialisers."""

from __future__ import annotations

import importlib
import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.models import config as config_lib
from me_jax.models import rope

needs_torch = pytest.mark.skipif(
  importlib.util.find_spec('torch') is None,
  reason='torch, which the reference is written in, is not installed',
)
CONTEXT = 512  # max_position_embeddings
SHORT = tuple(np.linspace(1, 2, 16).tolist())
LONG = tuple(np.linspace(1, 40, 16).tolist())
KINDS = {
  'linear': dict(factor=3.0),
  'dynamic': dict(factor=4.0),
  'llama3': dict(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
  ),
  'yarn': dict(factor=8.0, original_max_position_embeddings=64),
  'yarn, no factor': dict(factor=None, original_max_position_embeddings=64),
  'yarn, factor below one': dict(
    factor=0.5, original_max_position_embeddings=64
  ),
  'yarn, ramp in one dimension': dict(
    factor=8.0, original_max_position_embeddings=64, beta_fast=1.0
  ),
  'yarn, all fields': dict(
    factor=8.0, original_max_position_embeddings=64, beta_fast=20.0,
    beta_slow=2.0, mscale=1.3, mscale_all_dim=0.6, truncate=False,
  ),
  'yarn, given attention factor': dict(
    factor=8.0, original_max_position_embeddings=64, attention_factor=0.7
  ),
  'longrope': dict(
    short_factor=SHORT, long_factor=LONG, original_max_position_embeddings=64
  ),
  'longrope, all fields': dict(
    short_factor=SHORT, long_factor=LONG, original_max_position_embeddings=64,
    factor=2.0, attention_factor=1.4,
  ),
  'longrope, factor below one': dict(
    short_factor=SHORT, long_factor=LONG, original_max_position_embeddings=64,
    factor=0.5,
  ),
}  # fmt: skip


@needs_torch
@pytest.mark.parametrize('length', [50, 64, 65, 700, 5000])
@pytest.mark.parametrize('theta', [1e4, 5e5])
@pytest.mark.parametrize('case', KINDS)
def test_frequencies_are_those_of_transformers(case, theta, length):
  import torch
  from transformers import LlamaConfig
  from transformers import modeling_rope_utils

  kind = case.split(',')[0]
  fields = {
    k: list(v) if isinstance(v, tuple) else v for k, v in KINDS[case].items()
  }
  hf = LlamaConfig(
    hidden_size=128,
    num_attention_heads=4,
    head_dim=32,
    max_position_embeddings=CONTEXT,
    rope_parameters={'rope_type': kind, 'rope_theta': theta} | fields,
  )
  theirs, their_scale = modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](
    hf, torch.device('cpu'), seq_len=torch.tensor(length)
  )
  config = me_jax.ModelConfig.from_hf(hf.to_dict())
  ours, scale = rope.inverse_frequencies(config.rope, 32, jnp.asarray(length))
  # Powers in float32 differ in the last bit or two between libraries.
  np.testing.assert_allclose(ours, theirs.numpy(), rtol=5e-7)
  assert scale == pytest.approx(their_scale, rel=1e-12)


@pytest.mark.parametrize('kind', ['dynamic', 'longrope'])
def test_frequencies_depend_on_the_own_text_alone(kind):
  config = config_lib.RopeConfig(
    kind=kind,
    factor=4.0,
    original_max_position_embeddings=64,
    short_factor=SHORT,
    long_factor=LONG,
  )
  together, _ = rope.inverse_frequencies(config, 32, jnp.asarray([[20, 300]]))
  for i, length in enumerate((20, 300)):
    alone, _ = rope.inverse_frequencies(config, 32, jnp.asarray([[length]]))
    np.testing.assert_array_equal(together[:, i], alone[:, 0])
  assert np.abs(together[:, 0] - together[:, 1]).max() > 1e-3


def test_only_the_first_dimensions_are_rotated_when_a_part_is():
  part = config_lib.RopeConfig(partial_rotary_factor=0.75)
  cos, sin = rope.tables(part, 15, jnp.asarray([[0, 7]]), jnp.asarray([[8, 8]]))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 1, 15)))
  rotated = rope.rotate(x, cos, sin)
  np.testing.assert_array_equal(rotated[:, 0], x[:, 0])
  np.testing.assert_array_equal(rotated[..., 12:], x[..., 12:])
  assert (np.abs(rotated - x)[:, 1, :, :12] > 1e-9).all()
  np.testing.assert_allclose(
    np.linalg.norm(rotated, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6
  )


@needs_torch
@pytest.mark.parametrize('family', ['llama', 'olmo2'])
def test_bfloat16_rotates_as_the_family_does(family):
  import torch

  module = importlib.import_module(
    f'transformers.models.{family}.modeling_{family}'
  )
  random = np.random.default_rng(0)
  x = random.normal(size=(1, 50, 3, 16)).astype(np.float32)
  theirs = torch.tensor(x).bfloat16().transpose(1, 2)
  positions = np.arange(50)[None]
  cos, sin = rope.tables(
    config_lib.RopeConfig(), 16, jnp.asarray(positions), jnp.full((1, 50), 50)
  )
  twice = [torch.tensor(np.concatenate([t, t], -1)) for t in (cos, sin)]
  if family == 'llama':
    twice = [t.bfloat16() for t in twice]
  theirs, _ = module.apply_rotary_pos_emb(theirs, theirs, *twice)
  ours = rope.rotate(
    jnp.asarray(x, jnp.bfloat16), cos, sin, in_float32=family == 'olmo2'
  )
  same = np.asarray(ours, np.float32) == (
    theirs.transpose(1, 2).float().numpy()
  )
  # The last bit of a cosine differs now and then.
  assert same.mean() > 0.99


def test_what_cannot_be_computed_is_refused():
  with pytest.raises(me_jax.MeJaxError, match="'spiral' is not handled"):
    rope.inverse_frequencies(config_lib.RopeConfig(kind='spiral'), 32)
  dynamic = config_lib.RopeConfig(
    kind='dynamic', original_max_position_embeddings=64
  )
  with pytest.raises(me_jax.MeJaxError, match='lengths'):
    rope.inverse_frequencies(dynamic, 32)
