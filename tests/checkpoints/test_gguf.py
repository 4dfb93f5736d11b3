"""Metadata and tensors of GGUF files, honest ones and others."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest

from me_jax import errors
from me_jax.checkpoints import gguf as reader
from me_jax.checkpoints import load
from tests.support import steps

WRITABLE = ['Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0', 'BF16', 'F16']


def string(text):
  text = text if isinstance(text, bytes) else text.encode()
  return struct.pack('<Q', len(text)) + text


def header(tensors=0, entries=0, version=3):
  return b'GGUF' + struct.pack('<IQQ', version, tensors, entries)


def tensor(name='t', dims=(2,), kind=0, offset=0):
  info = string(name) + struct.pack('<I', len(dims))
  return info + struct.pack(f'<{len(dims)}QIQ', *dims, kind, offset)


def padded(head, data=b'\0' * 64):
  return head + b'\0' * (-len(head) % 32) + data


@pytest.fixture
def open_bytes(tmp_path):
  def open_them(content):
    path = tmp_path / 'm.gguf'
    path.write_bytes(content)
    return reader.open_file(str(path))

  return open_them


def test_the_type_table_is_ggmls():
  for number, (name, *sizes) in reader.TENSOR_TYPES.items():
    kind = gguf.GGMLQuantizationType(number)
    assert kind.name == name
    assert gguf.GGML_QUANT_SIZES[kind] == tuple(sizes)


@pytest.mark.parametrize('kind', list(reader.TENSOR_TYPES.values()), ids=str)
def test_every_type_is_dequantised_as_by_the_package(tmp_path, kind):
  name, block, block_bytes = kind
  rng = np.random.default_rng(3)
  shape = (40, 3 * block)
  if block == 1:
    value = rng.standard_normal((40, 3)).astype(np.float32)
    dtype = {'F64': np.float64, 'F16': np.float16}.get(name, np.float32)
    raw = value.astype(dtype).view(np.uint8)
    if name == 'BF16':
      raw = gguf.quants.quantize(value, gguf.GGMLQuantizationType.BF16)
    shape = value.shape
  else:
    # Any bytes are a valid block, up to scales that are not finite.
    raw = rng.integers(0, 120, (40, 3 * block_bytes)).astype(np.uint8)
  path = str(tmp_path / 'm.gguf')
  writer = gguf.GGUFWriter(path, 'llama')
  qtype = gguf.GGMLQuantizationType[name]
  writer.add_tensor('t', raw, raw_dtype=qtype)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  stored = reader.open_file(path).tensors['t']
  assert stored.shape == shape
  if name == 'F64':
    expected = raw.view(np.float64)
  else:
    with np.errstate(all='ignore'):
      expected = gguf.quants.dequantize(raw, qtype)
  np.testing.assert_array_equal(
    stored.read().astype(expected.dtype), expected.reshape(shape)
  )
  np.testing.assert_array_equal(
    stored.read(7, 9).astype(expected.dtype), expected.reshape(shape)[7:9]
  )


@pytest.mark.parametrize('name', WRITABLE)
def test_quantised_models_load_as_dequantised(tiny, flat, tmp_path, name):
  kind = gguf.GGMLQuantizationType[name]
  path = tiny.gguf(tmp_path / 'm.gguf', kind)

  def through(weight):
    return gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)

  # Quantisation works within rows, so it commutes with their reordering.
  weights = {
    key: through(value) if value.ndim == 2 else value
    for key, value in tiny.weights.items()
  }
  found = flat(load.load(path).params)
  for key, value in tiny.leaves(weights).items():
    np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_metadata_of_every_kind(open_bytes):
  content = header(0, 5)
  content += string('u8') + struct.pack('<IB', 0, 200)
  content += string('eps') + struct.pack('<If', 6, 1e-5)
  content += string('flags') + struct.pack('<IIQ3?', 9, 7, 3, 1, 0, 1)
  content += (
    string('words') + struct.pack('<IIQ', 9, 8, 2) + string('ä') + string('')
  )
  nested = struct.pack('<IIQ', 9, 9, 2) + struct.pack('<IQ2H', 2, 2, 7, 8)
  content += string('deep') + nested + struct.pack('<IQ', 2, 0)
  metadata = open_bytes(content).metadata
  assert metadata['u8'] == 200
  assert metadata['eps'] == 1e-5
  assert metadata['flags'].tolist() == [True, False, True]
  assert metadata['words'] == ['ä', '']
  assert [part.tolist() for part in metadata['deep']] == [[7, 8], []]


def test_large_vocabularies_are_read_in_few_steps(open_bytes):
  words = b''.join(string(f'token {i}') for i in range(100_000))
  content = header(0, 1) + string('v') + struct.pack('<IIQ', 9, 8, 100_000)
  # Two a word: 0.05 s, where the package's reader takes 3 s.
  with steps.at_most(210_000):
    assert len(open_bytes(content + words).metadata['v']) == 100_000


LIES = {
  'empty': b'',
  'magic': b'GGML' + b'\0' * 40,
  'random': np.random.default_rng(0).bytes(500),
  'only magic': b'GGUF',
  'version 1': header(version=1),
  'big-endian': b'GGUF' + struct.pack('>IQQ', 3, 0, 0),
  'tensor count': header(tensors=2**60),
  'metadata count': header(entries=2**60),
  'key length': header(0, 1) + struct.pack('<Q', 2**62) + b'x' * 40,
  'key wraps': header(0, 1) + struct.pack('<Q', 2**64 - 1) + b'x' * 40,
  'value type': header(0, 1) + string('k') + struct.pack('<IQ', 13, 0),
  'no value': header(0, 1) + string('key of thirteen'),
  'utf-8': header(0, 1) + string(b'\xff\xfe') + struct.pack('<IQ', 4, 0),
  'array count': header(0, 1) + string('k') + struct.pack('<IIQ', 9, 0, 2**61),
  'strings count': header(0, 1)
  + string('k')
  + struct.pack('<IIQ', 9, 8, 2**61),
  'nesting': header(0, 1)
  + string('k')
  + struct.pack('<I', 9)
  + struct.pack('<IQ', 9, 1) * 5000,
  'key twice': header(0, 2) + (string('k') + struct.pack('<II', 4, 0)) * 2,
  'alignment 0': header(0, 1)
  + string('general.alignment')
  + struct.pack('<II', 4, 0),
  'alignment text': header(0, 1)
  + string('general.alignment')
  + struct.pack('<I', 8)
  + string('32'),
  'no dims': padded(header(1) + tensor(dims=())),
  'many dims': padded(header(1) + tensor(dims=(1,) * 5)),
  'zero dim': padded(header(1) + tensor(dims=(2, 0))),
  'product wraps': padded(header(1) + tensor(dims=(2**32, 2**32))),
  'beyond the file': padded(header(1) + tensor(dims=(17,))),
  'offset': padded(header(1) + tensor(offset=2**63)),
  'unaligned': padded(header(1) + tensor(offset=4)),
  'part of a block': padded(header(1) + tensor(dims=(16,), kind=2)),
  'tensor twice': padded(header(2) + tensor() + tensor(offset=32)),
  'overlap': padded(header(2) + tensor('a', (9,)) + tensor('b', offset=32)),
  'integers': padded(header(1) + tensor(kind=26)),
  'unknown type': padded(header(1) + tensor(kind=99)),
}


@pytest.mark.parametrize('content', LIES.values(), ids=LIES)
def test_lying_files_are_refused_at_once(open_bytes, content):
  with steps.at_most(1_000):
    with pytest.raises(errors.MeJaxError, match='m.gguf'):
      open_bytes(content)


def test_the_lies_are_told_about_a_valid_file(open_bytes):
  good = padded(header(2) + tensor('a', (8,)) + tensor('b', offset=32))
  assert open_bytes(good).tensors.keys() == {'a', 'b'}


def test_unreadable_types_are_named_with_what_works(open_bytes):
  with pytest.raises(errors.MeJaxError, match="'t'.*I32.*Q4_K"):
    open_bytes(padded(header(1) + tensor(kind=26)))


def test_every_truncation_is_refused(tiny, tmp_path):
  path = tiny.gguf(tmp_path / 'm.gguf')
  content = path.read_bytes()
  for size in range(0, len(content), 97):
    path.write_bytes(content[:size])
    with pytest.raises(errors.MeJaxError):
      load.open_checkpoint(path)
