"""The house plan: imports flow one way, and the public names are there."""

from __future__ import annotations

import ast
import pathlib

import pytest

import me_jax

ROOT = pathlib.Path(me_jax.__file__).parent
# A package may import what stands before it.
FLOW = ['models', 'checkpoints', 'analysis', 'mitigation', 'generation',
        'evaluation', 'training', 'planning', 'plotting', 'cli']  # fmt: skip
FILES = sorted(ROOT.rglob('*.py'))


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_flow_one_way(path):
  package = path.relative_to(ROOT).parts[0]
  if package not in FLOW:
    return
  allowed = FLOW[: FLOW.index(package) + 1]
  for node in ast.walk(ast.parse(path.read_text())):
    modules = []
    if isinstance(node, ast.ImportFrom) and node.module:
      modules = [f'{node.module}.{alias.name}' for alias in node.names]
    elif isinstance(node, ast.Import):
      modules = [alias.name for alias in node.names]
    for module in modules:
      parts = module.split('.')
      if parts[0] == 'me_jax' and parts[1:2] and parts[1] in FLOW:
        assert parts[1] in allowed, f'{package} imports {module}'


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path):
  assert path.read_text().count('\n') <= 400


def test_every_public_name_can_be_imported():
  for name in me_jax.__all__:
    assert getattr(me_jax, name).__doc__
  with pytest.raises(AttributeError):
    _ = me_jax.nonsense
