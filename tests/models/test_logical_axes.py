"""How arrays that no module owns are laid out."""

from __future__ import annotations

import flax.linen as nn
import jax
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
