"""Puts every test into the same small world: CPU, offline, strict shapes.

Runs before any test file is imported, because jax, the hub client and me_jax
read their environment when they are imported. Compiled programs are not kept
between runs, so that every run starts from the same state; set
JAX_COMPILATION_CACHE_DIR to keep them while working on one test.
"""

from __future__ import annotations

import gc
import os
import pathlib
import sys
import tempfile

# Of memory, in one process: a file adds at most a few thousand.
_MAPPINGS = 30_000

# Files that take a minute or more: begun first, or one worker would be left with
# them at the end.
_LONG = (
  'training/test_loop_devices.py', 'training/test_loop_killed.py',
  'generation/test_against_hf.py', 'evaluation/test_against_hf.py',
  'cli/test_train.py', 'cli/test_evaluate.py', 'cli/test_explain.py',
  'cli/test_mitigate.py', 'tests/test_readme.py', 'tests/test_docs.py',
)  # fmt: skip

# A test must neither find what the user once downloaded nor leave files there.
# Removed when the interpreter ends; each xdist worker has its own.
_CACHE = tempfile.TemporaryDirectory(prefix='me_jax_tests_')

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['HF_HUB_OFFLINE'] = '1'
# Threads cost tiny reference models more than they give.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['ME_JAX_CACHE'] = _CACHE.name
# Tests compile more than they compute, and so compile in half the time. For all
# tests and the processes that they start: the last bit may be another.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
# With these less is made of each program, in one piece: two fifths less processor
# time where a file compiles much. An XLA that does not know one of them ends, and
# names it: take it out here.
_FLAGS = (
  '--xla_cpu_use_fusion_emitters=false',
  '--xla_cpu_parallel_codegen_split_count=1',
)
# What somebody sets comes last, and counts.
os.environ['XLA_FLAGS'] = ' '.join((*_FLAGS, os.environ.get('XLA_FLAGS', '')))


def pytest_configure():
  """Makes implicit rank promotion an error: it hides mistaken shapes."""
  import jax

  jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_collection_modifyitems(items):
  """Puts long files first, where files are shared out in this order."""
  items.sort(key=lambda item: not item.path.as_posix().endswith(_LONG))


def pytest_runtest_teardown(item, nextitem):
  """Lets go of compiled programs between files, before they are too many.

  Each is mapped into memory several times, and a process may have 65,530
  mappings (Linux' vm.max_map_count): the next program that is loaded then ends
  it with a segmentation fault, far from whatever compiled the others.
  """
  if nextitem is not None and nextitem.path == item.path:
    return
  if 'jax' in sys.modules and _mappings() > _MAPPINGS:
    sys.modules['jax'].clear_caches()
    gc.collect()


def _mappings() -> int:
  """Returns how many mappings of memory this process has, 0 if nobody says."""
  try:
    return pathlib.Path('/proc/self/maps').read_bytes().count(b'\n')
  except OSError:
    return 0
