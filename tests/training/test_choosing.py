"""The best step survives a checkpoint, also where there is none yet."""

from __future__ import annotations

import json

import pytest

from me_jax.training import choosing


@pytest.mark.parametrize(
  'best', [choosing.Best(), choosing.Best(step=3, loss=1.25, waited=2)]
)
def test_the_best_step_comes_back_from_json(best):
  text = json.dumps(best.to_json(), allow_nan=False)
  assert choosing.Best.from_json(json.loads(text)) == best
