"""Headers are believed only as far as the file bears them out."""

from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from me_jax import errors
from me_jax.checkpoints import safetensors as reader
from tests.support import steps


def entry(dtype='F32', shape=(2,), offsets=(0, 8)):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


def write(path, header, data=b'\0' * 8, length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  length = len(text) if length is None else length
  path.write_bytes(struct.pack('<Q', length) + text + data)
  return str(path)


@pytest.mark.parametrize('dtype', ['float64', 'float32', 'float16', 'bfloat16'])
def test_floats_are_read_as_stored(tmp_path, dtype):
  rng = np.random.default_rng(0)
  numpy_dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
  value = rng.standard_normal((5, 3)).astype(numpy_dtype)
  path = str(tmp_path / 'm.safetensors')
  safetensors.numpy.save_file({'a': value, 'b': value[:2]}, path)
  tensors = reader.open_file(path)
  assert tensors['a'].read().dtype == numpy_dtype
  np.testing.assert_array_equal(tensors['a'].read(), value)
  np.testing.assert_array_equal(tensors['a'].read(1, 3), value[1:3])
  np.testing.assert_array_equal(tensors['b'].read(), value[:2])


def test_reads_are_views_of_the_file_or_of_a_buffer(tmp_path):
  path = str(tmp_path / 'm.safetensors')
  value = np.arange(100_000, dtype=np.float32).reshape(100, -1)
  safetensors.numpy.save_file({'a': value}, path)
  tensor = reader.open_file(path)['a']
  view = tensor.read()
  assert not view.flags.owndata and not view.flags.writeable
  np.testing.assert_array_equal(view, value)
  buffer = np.zeros(50_000, np.uint8)
  part = tensor.read(3, 7, buffer)
  assert np.shares_memory(part, buffer)
  np.testing.assert_array_equal(part, value[3:7])


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path):
  path = tmp_path / 'm.safetensors'
  safetensors.numpy.save_file({'a': np.ones(100_000, np.float32)}, path)
  tensor = reader.open_file(str(path))['a']
  path.write_bytes(path.read_bytes()[:200_000])
  with pytest.raises(errors.MeJaxError, match='shorter'):
    tensor.read(buffer=np.empty(tensor.nbytes, np.uint8))


def test_unaligned_data_is_read(tmp_path):
  header = json.dumps({'a': entry()}).encode()
  header += b' ' * (1 - (len(header) + 8) % 4 + 4)
  data = np.array([1.5, -2], np.float32).tobytes()
  path = write(tmp_path / 'm.safetensors', header, data)
  np.testing.assert_array_equal(reader.open_file(path)['a'].read(), [1.5, -2])


def test_metadata_is_allowed(tmp_path):
  header = {'__metadata__': {'format': 'pt'}, 'a': entry()}
  assert list(reader.open_file(write(tmp_path / 'm', header))) == ['a']


@pytest.mark.parametrize(
  'header',
  [
    b'',
    b'{',
    b'[]',
    b'{"a": 1}',
    b'\xff\xfe',
    b'[' * 50_000,
    b'{"a": ' * 50_000,
    json.dumps({'a': {}}).encode(),
    json.dumps({'a': entry(shape=(3,))}).encode(),
    json.dumps({'a': entry(shape=(-2,), offsets=(8, 0))}).encode(),
    json.dumps({'a': entry(shape=(True, 2))}).encode(),
    json.dumps({'a': entry(shape=(2.0,))}).encode(),
    json.dumps({'a': entry(dtype='F33')}).encode(),
    json.dumps({'a': entry(dtype=['F32'])}).encode(),
    json.dumps({'a': entry(shape=(2**63, 2**63))}).encode(),
    json.dumps({'a': entry(shape=(1,) * 99 + (2,))}).encode(),
    json.dumps({'a': entry(shape=(4,), offsets=(0, 16))}).encode(),
    json.dumps({'a': entry(shape=(1,), offsets=(0, 4))}).encode(),
    json.dumps({'a': entry(shape=(1,), offsets=(4, 8))}).encode(),
    json.dumps({'a': entry(), 'b': entry()}).encode(),
    b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2),
    b'{"a": {"dtype": "F32", "shape": [%b], "data_offsets": [0, 8]}}'
    % (b'9' * 5000),
  ],
  ids=range(22),
)
def test_lying_headers_are_refused(tmp_path, header):
  with pytest.raises(errors.MeJaxError) as caught:
    reader.open_file(write(tmp_path / 'm.safetensors', header))
  assert 'm.safetensors' in str(caught.value)
  assert len(str(caught.value)) < 1000


@pytest.mark.parametrize('length', [0, 1, 100, 2**31, 2**63, 2**64 - 1])
def test_absurd_header_lengths_fail_at_once(tmp_path, length):
  path = write(tmp_path / 'm', {'a': entry()}, length=length)
  with steps.at_most(1_000):
    with pytest.raises(errors.MeJaxError):
      reader.open_file(path)


@pytest.mark.parametrize('size', [0, 1, 7, 8, 20, -1, -8])
def test_truncated_files_are_refused(tmp_path, size):
  path = tmp_path / 'm'
  write(path, {'a': entry()})
  path.write_bytes(path.read_bytes()[:size])
  with pytest.raises(errors.MeJaxError):
    reader.open_file(str(path))


def test_tensors_that_share_bytes_are_refused(tmp_path):
  # The lengths add up; only the places do not.
  path = write(tmp_path / 'm', {'a': entry(), 'b': entry()}, b'\0' * 16)
  with pytest.raises(errors.MeJaxError, match='corrupt'):
    reader.open_file(path)


def test_bytes_after_the_tensors_are_refused(tmp_path):
  path = write(tmp_path / 'm', {'a': entry()}, b'\0' * 9)
  with pytest.raises(errors.MeJaxError, match='corrupt'):
    reader.open_file(path)


# Shards.


@pytest.fixture
def sharded(tiny, tmp_path):
  """A folder with the tiny model in two shards; returns (folder, places)."""
  folder = tiny.hf(tmp_path / 'sharded')
  (folder / 'model.safetensors').unlink()
  names = sorted(tiny.weights)
  shards = {
    'model-1.safetensors': names[::2],
    'model-2.safetensors': names[1::2],
  }
  places = {}
  for file, held in shards.items():
    weights = {name: tiny.weights[name] for name in held}
    safetensors.numpy.save_file(weights, folder / file)
    places |= dict.fromkeys(held, file)
  index(folder, places)
  return folder, places


def index(folder, places):
  path = folder / 'model.safetensors.index.json'
  path.write_text(json.dumps({'weight_map': places}))


def test_shards_hold_the_same_bits(tiny, sharded):
  tensors = reader.open_folder(str(sharded[0]))
  assert tensors.keys() == tiny.weights.keys()
  for name, value in tiny.weights.items():
    np.testing.assert_array_equal(tensors[name].read(), value)


@pytest.mark.parametrize(
  'shard',
  [
    '../model-1.safetensors',
    '/etc/model-1.safetensors',
    'sub/model-1.safetensors',
    '..\\model-1.safetensors',
    '..',
    '',
    'model-1.bin',
    'model\0.safetensors',
    None,
    ['model-1.safetensors'],
  ],
)
def test_shard_names_cannot_leave_the_folder(sharded, shard):
  folder, places = sharded
  (folder.parent / 'model-1.safetensors').write_bytes(b'')
  name = 'model.norm.weight'
  index(folder, places | {name: shard})
  with pytest.raises(errors.MeJaxError, match='not the name of'):
    reader.open_folder(str(folder))


def test_a_missing_shard_is_named(sharded):
  (sharded[0] / 'model-2.safetensors').unlink()
  with pytest.raises(errors.MeJaxError, match='model-2.safetensors.*missing'):
    reader.open_folder(str(sharded[0]))


def test_an_index_entry_without_tensor_is_named(sharded):
  folder, places = sharded
  index(folder, places | {'ghost': 'model-1.safetensors'})
  with pytest.raises(errors.MeJaxError, match="'ghost'"):
    reader.open_folder(str(folder))


def test_a_tensor_in_two_shards_is_named(tiny, sharded):
  folder, places = sharded
  names = [name for name, file in places.items() if file.startswith('model-2')]
  twice = next(name for name, file in places.items() if name not in names)
  weights = {name: tiny.weights[name] for name in [*names, twice]}
  safetensors.numpy.save_file(weights, folder / 'model-2.safetensors')
  with pytest.raises(errors.MeJaxError, match=twice):
    reader.open_folder(str(folder))


@pytest.mark.parametrize('text', ['', '{}', '{"weight_map": []}', '[]'])
def test_a_broken_index_is_refused(sharded, text):
  (sharded[0] / 'model.safetensors.index.json').write_text(text)
  with pytest.raises(errors.MeJaxError, match='index.json'):
    reader.open_folder(str(sharded[0]))


def test_several_files_without_an_index_are_ambiguous(sharded):
  (sharded[0] / 'model.safetensors.index.json').unlink()
  with pytest.raises(errors.MeJaxError, match='2 .*safetensors'):
    reader.open_folder(str(sharded[0]))
