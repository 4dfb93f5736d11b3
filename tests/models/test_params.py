"""The parameter tree of published models, from shapes alone."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.models import params as params_lib
from me_jax.models import sites
from tests.support import planted
from tests.support import published


@pytest.mark.parametrize('name', published.MODELS)
def test_published_models_have_as_many_parameters_as_published(name):
  raw, count = published.MODELS[name]
  shapes = params_lib.param_shapes(me_jax.ModelConfig.from_hf(raw), 'bfloat16')
  assert sum(math.prod(s.shape) for s in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize('count', [1, 5, planted.LAYERS])
def test_the_first_layers_put_out_what_they_do_in_the_whole(count):
  model, params = planted.build(
    [],
    sliding_window=3,
    layer_windowed=(True, False, False, True) * 2,
    rope_layers=(False, True) * 4,
  )
  # A mitigated model has an entry a layer outside the layers, too.
  params['layers']['sink_scale'] = jnp.full(
    (planted.LAYERS, planted.WIDTH), 0.5
  )
  params['sink_bound'] = jnp.full(planted.LAYERS, 0.1)
  tokens_BT = jnp.arange(12).reshape(2, 6)
  whole = model.clone(
    sites=sites.Sites(observers=(sites.Capture('resid_post', 'x'),))
  )
  _, state = whole.apply(
    {'params': params}, tokens_BT, None, {'x': jnp.array([count - 1])},
    mutable='intermediates',
  )  # fmt: skip
  short, short_params = params_lib.first_layers(model, params, count)
  output = short.apply({'params': short_params}, tokens_BT)
  np.testing.assert_allclose(output.resid, sites.read(state)['x'][0], atol=1e-5)
  sizes = {len(x) for x in jax.tree.leaves(short_params['layers'])}
  assert sizes == {count}


def test_layers_that_are_not_there_cannot_be_kept():
  model, params = planted.build([])
  for count in (0, planted.LAYERS + 1):
    with pytest.raises(me_jax.MeJaxError, match='cannot keep'):
      params_lib.first_layers(model, params, count)
  with pytest.raises(me_jax.MeJaxError, match='stacked'):
    params_lib.first_layers(model, params_lib.unstack_layers(params), 2)
