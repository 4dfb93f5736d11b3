"""Buffers are taken over by JAX, and odd sizes and slices come out right."""

from __future__ import annotations

import concurrent.futures

import jax
import numpy as np
import pytest

from me_jax.checkpoints import assemble
from me_jax.checkpoints import leaves
from me_jax.checkpoints import load
from me_jax.checkpoints import memory
from me_jax.checkpoints import names
from me_jax.checkpoints import safetensors
from me_jax.models import params as params_lib


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_jax_takes_the_buffers_over(tiny, tmp_path, monkeypatch, dtype):
  if jax.default_backend() != 'cpu':
    pytest.skip('other devices have memory of their own')
  made = []
  empty = memory.allocate

  def spy(shape, dtype):
    made.append(empty(shape, dtype))
    return made[-1]

  monkeypatch.setattr(memory, 'allocate', spy)
  params = load.open_checkpoint(tiny.hf(tmp_path / 'm')).load_params(dtype)
  # A tree of this size is too small for luck: malloc aligns to 16.
  assert {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)} == {
    buffer.ctypes.data for buffer in made
  }


def test_tensors_larger_than_a_piece(tiny, flat, tmp_path, monkeypatch):
  path = tiny.gguf(tmp_path / 'm.gguf')
  # Fewer values than a row, then pieces that do not divide the rows.
  for piece in (1, 7 * 32, 100):
    monkeypatch.setattr(assemble, '_PIECE', piece)
    monkeypatch.setattr(assemble, '_BAND', 3)
    found = flat(load.open_checkpoint(path).load_params())
    for key, value in tiny.leaves().items():
      np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize('start', range(0, 32, 5))
@pytest.mark.parametrize('stop', [32, 31, 30])
def test_slices_of_reordered_rows(tiny, tmp_path, start, stop):
  """Slices need not start at the border of a head."""
  checkpoint = load.open_checkpoint(tiny.gguf(tmp_path / 'm.gguf'))
  path = 'layers/self_attn/q_proj/kernel'
  shapes = params_lib.param_shapes(checkpoint.config, 'float32')
  plan = leaves.plan(shapes, checkpoint.tensors, checkpoint.names)
  [leaf] = [leaf for leaf in plan if leaf.path == path]
  index = (slice(1, 2), slice(4, 20), slice(start, stop))
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    found = assemble._read(leaf, pool, index)
  np.testing.assert_array_equal(found, tiny.leaves()[path][index])


def test_loaded_arrays_outlive_the_checkpoint(tiny, flat, tmp_path):
  folder = tiny.hf(tmp_path / 'm')
  params = load.open_checkpoint(folder).load_params()
  for file in folder.iterdir():
    file.unlink()
  for key, value in tiny.leaves().items():
    np.testing.assert_array_equal(flat(params)[key], value)


def test_a_tied_head_in_the_file_is_left_alone(tiny, tmp_path):
  weights = tiny.weights | {
    'lm_head.weight': np.full((48, 32), np.nan, np.float32)
  }
  folder = tiny.hf(tmp_path / 'm', weights)
  tensors = safetensors.open_folder(str(folder))
  config = load.open_checkpoint(folder).config
  shapes = {'norm': {'weight': jax.ShapeDtypeStruct((32,), np.float32)}}
  keep = {k: tensors[k] for k in ('model.norm.weight', 'lm_head.weight')}
  params = assemble.assemble(shapes, keep, names.hf_table(config, tensors))
  assert list(params) == ['norm']
