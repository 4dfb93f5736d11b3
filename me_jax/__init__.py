"""Massive activations in language models: find, explain and relax them.

The functions below are the public interface; everything is pure, and arrays
go in and come out. They are imported when first used, so that importing the
package, and `me-jax --help`, cost nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

from me_jax.errors import MeJaxError

__version__ = '0.1.0'

_WHERE = {
  'Batch': 'me_jax.models.batch',
  'Decoder': 'me_jax.models.decoder',
  'Diagnosis': 'me_jax.analysis.diagnosis',
  'LoadedModel': 'me_jax.checkpoints.load',
  'MEReport': 'me_jax.analysis.me_report',
  'ModelConfig': 'me_jax.models.config',
  'Generated': 'me_jax.generation.generate',
  'bake': 'me_jax.mitigation.bake',
  'diagnose': 'me_jax.analysis.diagnosis',
  'encode': 'me_jax.checkpoints.encoding',
  'export': 'me_jax.checkpoints.export',
  'find_me_layer': 'me_jax.analysis.emergence',
  'generate': 'me_jax.generation.generate',
  'load': 'me_jax.checkpoints.load',
  'monitor': 'me_jax.analysis.monitor',
  'probes': 'me_jax.analysis.monitor',
  'read_metadata': 'me_jax.checkpoints.metadata',
  'save': 'me_jax.checkpoints.orbax',
  'wemask': 'me_jax.mitigation.wemask',
}

__all__ = ['MeJaxError', *_WHERE]


def __getattr__(name: str) -> Any:
  if name not in _WHERE:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
  return sorted([*globals(), *_WHERE])
