"""Configurations of published models, in both spellings, and back."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest

import me_jax
from me_jax.models import hf_families
from me_jax.models import rope
from tests.support import published
from tests.support import tiny

from_hf = me_jax.ModelConfig.from_hf
V4 = ('rope_theta', 'rope_scaling', 'rope_local_base_freq')
RAWS = {name: raw for name, (raw, _) in published.MODELS.items()}


@pytest.mark.parametrize('name', RAWS)
def test_transformers_5_spells_the_same_model(name):
  import transformers

  raw = RAWS[name].get('text_config', RAWS[name])
  fields = {k: v for k, v in raw.items() if k != 'architectures'}
  modern = transformers.AutoConfig.for_model(**fields).to_dict()
  assert 'rope_parameters' in modern and 'rope_theta' not in modern
  assert from_hf(modern) == from_hf(raw)


@pytest.mark.parametrize('name', RAWS)
def test_what_is_written_is_the_same_model(name):
  import transformers

  config = from_hf(RAWS[name])
  written = json.loads(json.dumps(config.to_hf()))
  assert from_hf(written) == config
  loaded = transformers.AutoConfig.for_model(**written)
  assert loaded.architectures == written['architectures']
  assert from_hf(loaded.to_dict()) == config
  # A reader that knows only one of the two generations must not be misled.
  old = {k: v for k, v in written.items() if k != 'rope_parameters'}
  assert from_hf(old) == config
  new = {k: v for k, v in written.items() if k not in V4}
  assert from_hf(new) == config


def test_every_family_is_among_the_published_and_the_tiny_ones():
  families = set(hf_families.FAMILIES)
  assert {from_hf(raw).model_type for raw in RAWS.values()} == families
  assert set(tiny.FAMILIES) == families


def config_of(name, **changes):
  return from_hf(RAWS[name] | changes)


def test_windows_lie_where_the_family_puts_them():
  mistral = config_of('Mistral-7B-v0.1')
  assert mistral.sliding_window == 4096 and all(mistral.layer_windowed)
  assert config_of('Mistral-7B-v0.3').sliding_window is None
  assert config_of('Phi-3-mini-4k').layer_windowed == (True,) * 32
  # The number stands there, but is not in use.
  assert config_of('Qwen2.5-7B').layer_windowed == ()
  late = config_of('Qwen2.5-7B', use_sliding_window=True, max_window_layers=20)
  assert late.layer_windowed == (False,) * 20 + (True,) * 8
  assert config_of('Gemma-2-2b').layer_windowed == (True, False) * 13
  gemma3 = config_of('Gemma-3-1b').layer_windowed
  assert [i for i, w in enumerate(gemma3) if not w] == [5, 11, 17, 23]


def test_gemma_3_rotates_by_two_bases():
  config = config_of('Gemma-3-4b')
  assert (config.rope.kind, config.rope.factor) == ('linear', 8.0)
  assert config.rope.theta == 1_000_000
  assert config.rope_local.kind == 'default'
  assert config.rope_local.theta == 10_000


def test_what_a_multimodal_configuration_leaves_out_is_filled_in():
  config = config_of('Gemma-3-4b')
  assert (config.vocab_size, config.head_dim) == (262208, 256)
  assert config.tie_word_embeddings and config.eos_token_ids == (1, 106)


def test_longrope_and_partial_rotation_of_phi():
  rope = config_of('Phi-4-mini').rope
  assert rope.kind == 'longrope' and rope.partial_rotary_factor == 0.75
  assert rope.original_max_position_embeddings == 4096 and rope.factor == 32
  old = dict(RAWS['Phi-3.5-mini']['rope_scaling'], type='su')
  assert config_of('Phi-3.5-mini', rope_scaling=old) == config_of(
    'Phi-3.5-mini'
  )


def test_phi_has_one_original_context_and_it_stands_outside():
  import transformers

  fields = {
    k: v
    for k, v in RAWS['Phi-3.5-mini'].items()
    if k not in ('original_max_position_embeddings', 'architectures')
  }
  inner = {'original_max_position_embeddings': 8192}
  fields['rope_scaling'] = fields['rope_scaling'] | inner
  theirs = transformers.AutoConfig.for_model(**fields).to_dict()
  assert from_hf(fields) == from_hf(theirs)
  assert from_hf(fields).rope.original_max_position_embeddings == 4096


def test_gemma_without_windows_still_names_one_for_transformers():
  written = config_of('Gemma-2-2b', layer_types=['full_attention'] * 26).to_hf()
  assert written['sliding_window'] == 4096
  assert from_hf(written).sliding_window is None


def test_how_a_scaled_model_was_made_does_no_harm():
  scaling = {'type': 'linear', 'factor': 4.0}
  assert config_of(
    'Llama-2-7b', rope_scaling=scaling | {'finetuned': True}
  ) == config_of('Llama-2-7b', rope_scaling=scaling)


def test_smollm3_leaves_rotation_out_of_every_fourth_layer():
  config = config_of('SmolLM3-3B')
  assert config.rope_layers == (True, True, True, False) * 9
  without = {
    k: v for k, v in RAWS['SmolLM3-3B'].items() if k != 'no_rope_layers'
  }
  assert from_hf(without).rope_layers == config.rope_layers


def test_the_context_is_what_rotation_is_stretched_to():
  yarn = {
    'type': 'yarn',
    'factor': 4.0,
    'original_max_position_embeddings': 32768,
  }
  assert config_of('Qwen2.5-7B').context_length == 32768
  assert config_of('Qwen2.5-7B', rope_scaling=yarn).context_length == 131072
  assert config_of('Llama-3.1-8B').context_length == 131072
  dynamic = {'type': 'dynamic', 'factor': 2.0}
  assert config_of('Llama-2-7b', rope_scaling=dynamic).context_length == 8192


@pytest.mark.parametrize(
  ('name', 'changes', 'named'),
  [
    ('Llama-2-7b', {'sliding_window': 64}, 'sliding_window = 64'),
    ('Llama-2-7b', {'layer_types': ['sliding_attention'] * 32}, 'layer_types'),
    ('Mistral-7B-v0.1', {'attention_bias': True}, 'attention_bias = true'),
    (
      'Mistral-7B-v0.3',
      {'layer_types': ['sliding_attention'] * 32},
      'layer_types',
    ),
    ('Mistral-7B-v0.1', {'sliding_window': 0}, 'sliding_window = 0'),
    ('Qwen2.5-7B', {'attention_bias': False}, 'attention_bias = false'),
    ('Qwen2.5-7B', {'layer_types': ['linear'] * 28}, '"linear"'),
    ('Qwen2.5-7B', {'layer_types': ['full_attention']}, '28 layers'),
    (
      'Qwen2.5-7B',
      {'layer_types': ['sliding_attention'] * 28},
      'no sliding_window in use',
    ),
    ('Qwen2.5-7B', {'use_mrope': True}, 'use_mrope = true'),
    ('Qwen3-4B', {'num_experts': 8}, 'num_experts = 8'),
    ('Phi-4-mini', {'full_attn_mod': 2}, 'full_attn_mod = 2'),
    ('Phi-4', {'rope_scaling': {'type': 'linear', 'factor': 2.0}}, 'linear'),
    (
      'Phi-3.5-mini',
      {
        'rope_scaling': {
          'type': 'longrope',
          'short_factor': [1.0] * 47,
          'long_factor': [1.0] * 48,
        }
      },
      'short_factor has 47 numbers',
    ),
    ('Gemma-2-2b', {'use_bidirectional_attention': True}, 'bidirectional'),
    ('Gemma-2-2b', {'hidden_activation': 'gelu'}, 'hidden_activation'),
    ('Gemma-2-2b', {'query_pre_attn_scalar': 0}, 'query_pre_attn_scalar'),
    ('Gemma-3-1b', {'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping'),
    ('Gemma-3-1b', {'rope_parameters': {'rope_theta': 1.0}}, 'does not name'),
    ('Gemma-3-4b', {'quantization_config': {'bits': 4}}, 'quantization'),
    (
      'Gemma-3-4b',
      {'text_config': {'final_logit_softcapping': 30.0}},
      'final_logit_softcapping',
    ),
    (
      'Gemma-3-4b',
      {'text_config': {'model_type': 'llama'}},
      '"llama" instead of',
    ),
    ('Llama-2-7b', {'head_dim': 127}, 'head_dim = 127'),
    ('Llama-2-7b', {'rope_theta': 1.0}, 'not above 1'),
    ('Llama-2-7b', {'rope_theta': 1e300}, 'rope_theta = 1e+300'),
    (
      'Llama-2-7b',
      {'rope_scaling': {'type': 'linear', 'factor': 1e-50}},
      '1e-50',
    ),
    ('Llama-2-7b', {'rms_norm_eps': 10**400}, 'rms_norm_eps'),
    (
      'Phi-3.5-mini',
      {'original_max_position_embeddings': 1},
      'original_max_position_embeddings = 1',
    ),
    (
      'Llama-2-7b',
      {'head_dim': 2, 'rope_scaling': {'type': 'dynamic', 'factor': 2.0}},
      'head_dim = 2',
    ),
    ('OLMo-2-1124-7B', {'clip_qkv': 8.0}, 'clip_qkv = 8.0'),
    ('SmolLM3-3B', {'no_rope_layers': [2] * 36}, 'no_rope_layers holds 2'),
    ('Llama-3.1-8B', {'partial_rotary_factor': 0.5}, 'partial_rotary_factor'),
    (
      'Llama-3.1-8B',
      {'rope_parameters': {'rope_type': 'default', 'rope_theta': 5e5}},
      'contradict',
    ),
    (
      'Llama-2-7b',
      {
        'rope_scaling': {
          'type': 'dynamic',
          'factor': 2.0,
          'original_max_position_embeddings': 1024,
        }
      },
      "'dynamic'",
    ),
    (
      'Llama-3.1-8B',
      {
        'rope_scaling': {
          'type': 'llama3',
          'factor': 8.0,
          'low_freq_factor': 4.0,
          'high_freq_factor': 4.0,
        }
      },
      'not below',
    ),
  ],
)
def test_what_would_change_the_computation_is_refused(name, changes, named):
  with pytest.raises(me_jax.MeJaxError) as error:
    config_of(name, **changes)
  assert named in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', RAWS)
def test_an_unknown_field_is_refused_in_every_family(name):
  config = from_hf(RAWS[name])
  with pytest.raises(me_jax.MeJaxError, match='surprise = 1'):
    from_hf(config.to_hf() | {'surprise': 1})


ODD = [
  None, True, False, -1, 0, 1, 2, 3, 7, 10**6, 2**31, 2**63, 10**400, -0.5,
  0.0, 1e-300, 1e-15, 0.3, 1.0, 1e15, 1e300, float('nan'), float('inf'), '',
  'yarn', 'longrope', [], [1], ['full_attention'] * 4, [0.5] * 48, {},
  {'rope_type': 'yarn'}, {'rope_type': 'dynamic', 'factor': 3.0},
]  # fmt: skip


@pytest.mark.parametrize('name', RAWS)
def test_odd_values_are_refused_or_can_be_computed(name):
  """Whatever is accepted has finite frequencies, and nothing else is raised."""
  random = np.random.default_rng(0)
  accepted = 0
  for _ in range(300):
    raw = copy.deepcopy(RAWS[name])
    places = [raw, *(v for v in raw.values() if isinstance(v, dict))]
    place = places[random.integers(len(places))]
    field = list(place)[random.integers(len(place))]
    place[field] = ODD[random.integers(len(ODD))]
    try:
      config = from_hf(raw)
    except me_jax.MeJaxError as error:
      assert '\n' not in str(error)
      continue
    accepted += 1
    for each in filter(None, (config.rope, config.rope_local)):
      with np.errstate(all='raise'):
        frequencies, scale = rope.inverse_frequencies(
          each, config.head_dim, np.array([1, 10**6])
        )
      assert np.isfinite(frequencies).all() and math.isfinite(scale)
    json.dumps(config.to_hf(), allow_nan=False)
  assert accepted > 10
