"""How arrays that no module owns are laid out."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from me_jax.models import logical_axes


@pytest.mark.parametrize(
  ('rule', 'parts'),
  [('tensor', 2), (('data', 'tensor'), 6), ('elsewhere', 1), (None, 1)],
)
def test_an_axis_has_as_many_parts_as_its_mesh_axes(rule, parts):
  mesh = jax.sharding.AbstractMesh((3, 2), ('data', 'tensor'))
  with nn.logical_axis_rules([('vocab', rule)]):
    assert logical_axes.parts('vocab') == 1  # no mesh
    with jax.sharding.use_abstract_mesh(mesh):
      assert logical_axes.parts('vocab') == parts
      assert logical_axes.parts('embed') == 1


@pytest.mark.parametrize(
  ('shape', 'kept'),
  [
    ((6, 4), ('batch', 'time')),
    ((6, 1), ('batch', None)),
    ((5, 4), (None, 'time')),
  ],
)
def test_an_axis_that_its_parts_do_not_divide_stays_whole(
  shape, kept, monkeypatch
):
  seen = []
  monkeypatch.setattr(
    nn, 'with_logical_constraint', lambda _, axes: seen.append(axes)
  )
  mesh = jax.sharding.AbstractMesh((3, 2), ('data', 'sequence'))
  with nn.logical_axis_rules([('batch', 'data'), ('time', 'sequence')]):
    with jax.sharding.use_abstract_mesh(mesh):
      logical_axes.constrain(jnp.zeros(shape), ('batch', 'time'))
  assert seen == [kept]
