"""Models whose weights are not here are known by name, or by a file."""

from __future__ import annotations

import json

import pytest

from me_jax import errors
from me_jax.models import params
from me_jax.planning import known_models
from me_jax.training import trained


@pytest.mark.parametrize(
  ('name', 'numbers'),
  [
    # As their makers count them.
    ('meta-llama/Llama-3.1-8B', 8_030_261_248),
    ('meta-llama/Llama-3.1-70B', 70_553_706_496),
    ('Qwen/Qwen3-4B', 4_022_468_096),
  ],
)
def test_public_models_have_their_size(name, numbers):
  config = known_models.config_of(name)
  assert trained.count(params.param_shapes(config, 'bfloat16')) == numbers


def test_a_folder_with_a_configuration_is_enough(tmp_path):
  config = known_models.config_of('Qwen/Qwen3-4B')
  (tmp_path / 'config.json').write_text(json.dumps(config.to_hf()))
  assert known_models.config_of(tmp_path) == config
  assert known_models.config_of(tmp_path / 'config.json') == config


def test_an_unknown_model_is_told_what_a_plan_takes():
  with pytest.raises(errors.MeJaxError, match=r'config\.json.*Llama-3\.1-8B'):
    known_models.config_of('meta-llama/Llama-3.1-9B')
