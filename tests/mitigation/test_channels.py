"""Which channels a mask takes, against NumPy written another way."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax.mitigation import channels
from tests.support import planted

LAYERS, WIDTH = planted.LAYERS, planted.WIDTH
MASKED = (2, 5, 7)


def model_and_params(**fields):
  """A model whose norms have weights with signs and many equal sizes."""
  model, params = planted.build([], **fields)
  random = np.random.default_rng(4)
  for name, norm in params['layers'].items():
    if name.endswith('layernorm'):
      weight = random.integers(-6, 7, norm['weight'].shape) / 4
      norm['weight'] = jnp.asarray(weight, jnp.float32)
  return model, params


def expected(size_D, count):
  """The channels by size, largest first, the lower first among equals."""
  pairs = sorted((-float(size), d) for d, size in enumerate(size_D))
  return sorted(d for _, d in pairs[:count])


def chosen(masked_LD):
  return {
    layer: np.flatnonzero(row).tolist()
    for layer, row in enumerate(masked_LD)
    if row.any()
  }


FAMILIES = {
  'llama': dict(fields={}, offset=0.0, before_ffn='post_attention_layernorm'),
  'gemma': dict(
    fields=dict(norm_placement='sandwich', norm_offset=1.0),
    offset=1.0,
    before_ffn='pre_feedforward_layernorm',
  ),
}


@pytest.mark.parametrize('count', [1, 9, 32, WIDTH])
@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('select', ['weight', 'weight_bottom', 'me_weight'])
def test_by_weight(select, family, count):
  family = FAMILIES[family]
  model, params = model_and_params(**family['fields'])
  found = channels.masked(model, params, select, MASKED, count, me_layer=4)
  name = 'input_layernorm'
  if select == 'me_weight':
    name = family['before_ffn']
  size_LD = abs(np.array(params['layers'][name]['weight']) + family['offset'])
  # Ties decide: sizes are equal where the last channel is taken.
  assert len(np.unique(size_LD)) < 16
  sign = -1 if select == 'weight_bottom' else 1
  assert found.dtype == bool and found.shape == (LAYERS, WIDTH)
  assert chosen(found) == {
    layer: expected(
      sign * size_LD[4 if select == 'me_weight' else layer], count
    )
    for layer in MASKED
  }


def test_the_offset_decides():
  """Gemma's -1 stands for a weight of zero, the smallest, not the largest."""
  model, params = planted.build([], norm_placement='sandwich', norm_offset=1.0)
  norm = params['layers']['input_layernorm']
  norm['weight'] = norm['weight'].at[:, 20].set(-1.0).at[:, 30].set(0.5)
  args = model, params
  assert chosen(channels.masked(*args, 'weight', [3], 1)) == {3: [30]}
  assert chosen(channels.masked(*args, 'weight_bottom', [3], 1)) == {3: [20]}


def test_random_channels_are_those_of_the_seed_and_the_layer():
  model, params = planted.build([])

  def draw(layers=MASKED, seed=3, count=20):
    return channels.masked(model, params, 'random', layers, count, seed=seed)

  found = draw()
  assert (found == draw()).all()
  assert found.sum(axis=1).tolist() == [20 * (i in MASKED) for i in range(8)]
  for layer in MASKED:
    # Whatever other layers are masked, and nested in the count.
    assert (draw([layer])[layer] == found[layer]).all()
    assert (draw(count=40)[layer] >= found[layer]).all()
    assert (draw(seed=4)[layer] != found[layer]).any()
  assert (found[2] != found[5]).any() and (found[5] != found[7]).any()


def test_no_channels_and_no_order_of_layers():
  model, params = model_and_params()
  for select in ('weight', 'me_weight', 'random', 'weight_bottom'):
    args = model, params, select
    assert not channels.masked(*args, MASKED, 0, me_layer=4).any()
    found = channels.masked(*args, MASKED, 7, me_layer=4)
    again = channels.masked(*args, iter((7, 2, 5, 5)), 7, me_layer=4)
    assert (found == again).all()


@pytest.mark.parametrize('select', ['weight', 'weight_bottom', 'me_weight'])
def test_without_a_norm_before_the_branch_no_weight_can_choose(select):
  model, params = planted.build([], norm_placement='post')
  with pytest.raises(me_jax.MeJaxError, match='have none: use activation'):
    channels.masked(model, params, select, MASKED, 3, me_layer=4)
  assert channels.masked(model, params, 'random', MASKED, 3).sum() == 9


def test_me_weight_needs_an_me_layer():
  model, params = planted.build([])
  with pytest.raises(me_jax.MeJaxError, match='needs an ME Layer'):
    channels.masked(model, params, 'me_weight', MASKED, 3)
