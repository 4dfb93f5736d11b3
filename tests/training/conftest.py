"""A small model with data, and programs that are compiled only once."""

from __future__ import annotations

import jax
import pytest

from me_jax.cli import session
from tests.support import small_run


@pytest.fixture(scope='session', name='small')
def _small(tmp_path_factory):
  """Returns a folder that `small_run` has filled."""
  return small_run.write(tmp_path_factory.mktemp('small'))


@pytest.fixture(scope='module')
def compiled_once():
  """Compiles each program once.

  A run that is begun again compiles the same programs; so does a process of its
  own, which finds them in the same folder if it calls `session.keep_compiled`.
  """
  from jax.experimental.compilation_cache import compilation_cache

  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
    'jax_persistent_cache_min_entry_size_bytes',
  )
  before = {name: jax.config.values[name] for name in names}
  session.keep_compiled()
  # JAX asks only once whether there is such a folder.
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
