"""A small model with data, and programs that are compiled only once."""

from __future__ import annotations

import jax
import pytest

from tests.support import small_run


@pytest.fixture(scope='session', name='small')
def _small(tmp_path_factory):
  """Returns a folder that `small_run` has filled."""
  return small_run.write(tmp_path_factory.mktemp('small'))


@pytest.fixture(scope='module')
def compiled_once():
  """Compiles each program once and in half the time.

  A run that is begun again compiles the same programs; so does a process of its
  own, which finds them in the same folder if it calls `small_run.hurry`, too.
  """
  from jax.experimental.compilation_cache import compilation_cache

  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
    'jax_persistent_cache_min_entry_size_bytes',
    'jax_disable_most_optimizations',
  )
  before = {name: jax.config.values[name] for name in names}
  small_run.hurry()
  # JAX's own functions, random numbers among them, may be there from an earlier
  # file, compiled with all optimisations: other numbers in the last bit than
  # those of a process that has only begun.
  jax.clear_caches()
  # JAX asks only once whether there is such a folder.
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  jax.clear_caches()
