"""The parameter tree of published models, from shapes alone."""

from __future__ import annotations

import math

import jax
import pytest

import me_jax
from me_jax.models import params as params_lib
from tests.support import published


@pytest.mark.parametrize('name', published.MODELS)
def test_published_models_have_as_many_parameters_as_published(name):
  raw, count = published.MODELS[name]
  shapes = params_lib.param_shapes(me_jax.ModelConfig.from_hf(raw), 'bfloat16')
  assert sum(math.prod(s.shape) for s in jax.tree.leaves(shapes)) == count
