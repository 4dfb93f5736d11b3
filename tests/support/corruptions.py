"""Broken checkpoints: every way that a file may lie, most of them drawn.

A corruption is a label and what it writes over a good checkpoint. The same
seed draws the same corruptions.
"""

from __future__ import annotations

from collections.abc import Iterator
import copy
import itertools
import json
import re
import struct
from typing import Any, NamedTuple

import numpy as np

# Sizes, counts and offsets where arithmetic goes wrong.
NUMBERS = (0, 1, 7, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63)
NUMBERS += (2**64 - 32, 2**64 - 1)
JUNK = (None, True, -1, 0.5, 1e999, float('nan'), '', '32', 'x' * 5000, [], {})
JUNK += ([32], {'a': 1}, '\ud800', '\x1b[2J\n', -(2**63), 10**400)
DEEP = b'[' * 30_000, b'{"a":' * 30_000, b'[' * 30_000 + b']' * 30_000
WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
INDEX = 'model.safetensors.index.json'

Files = dict[str, bytes]


class Corruption(NamedTuple):
  """What is written over a good checkpoint; None takes a file away."""

  label: str
  files: dict[str, bytes | None]


def safetensors(
  good: Files, rng: np.random.Generator, count: int
) -> Iterator[Corruption]:
  """Yields corruptions of a weights file, `count` of them drawn."""
  content = good[WEIGHTS]
  length = struct.unpack('<Q', content[:8])[0]
  header = json.loads(content[8 : 8 + length])
  tokens = re.finditer(rb'[][{}:,"]', content[8 : 8 + length])
  borders = {0, 7, 8, 8 + length} | {8 + token.start() for token in tokens}
  offsets = [entry['data_offsets'] for entry in header.values()]
  ends = {8 + length + stop for _, stop in offsets}
  for label, bad in _cuts(content, borders, ends):
    yield Corruption(label, {WEIGHTS: bad})
  for number in (*NUMBERS, length - 1, length + 1, len(content) - 8):
    claim = struct.pack('<Q', number) + content[8:]
    yield Corruption(f'header length {number}', {WEIGHTS: claim})
  for deep in DEEP:
    bad = _with_header(deep, content[8 + length :])
    yield Corruption('deep header', {WEIGHTS: bad})
  for i in range(count):
    label, bad = (
      _rewritten_header(header, content[8 + length :], rng)
      if i % 2
      else _noise(content, 8 + length, rng)
    )
    yield Corruption(f'{i}: {label}', {WEIGHTS: bad})


def gguf(
  good: Files, rng: np.random.Generator, count: int
) -> Iterator[Corruption]:
  """Yields corruptions of a GGUF file, `count` of them drawn."""
  ((name, content),) = good.items()
  fields, ends = _gguf_fields(content)
  borders = {start for start, _ in fields}
  begin = max(start + size for start, size in fields)
  for label, bad in _cuts(content, borders, ends):
    yield Corruption(label, {name: bad})
  # A vocabulary has a field a token: enough of them.
  for start, size in rng.permutation(fields)[:200].tolist():
    if size in (4, 8):
      for number in (0, 2**31, 2**63, 2**64 - 1):
        new = (number % (1 << 8 * size)).to_bytes(size, 'little')
        bad = content[:start] + new + content[start + size :]
        yield Corruption(f'{number} at {start}', {name: bad})
  # Names, mostly: keys and tensors that are there twice.
  for one, two in itertools.permutations(fields, 2):
    if one[1] == two[1] > 8:
      bad = bytearray(content)
      bad[two[0] : sum(two)] = content[one[0] : sum(one)]
      yield Corruption(f'{one[0]} over {two[0]}', {name: bytes(bad)})
  for i in range(count):
    if i % 3 == 0:
      label, bad = _noise(content, begin, rng)
    elif i % 3 == 1:
      label, bad = _overwritten_field(content, fields, rng)
    else:
      label, bad = _copied_field(content, fields, rng)
    yield Corruption(f'{i}: {label}', {name: bad})


def config(
  good: Files, rng: np.random.Generator, count: int
) -> Iterator[Corruption]:
  """Yields corruptions of `config.json`, `count` of them drawn."""
  content = good[CONFIG]
  fields = json.loads(content)
  yield Corruption('no config', {CONFIG: None})
  for deep in DEEP:
    yield Corruption('deep config', {CONFIG: deep})
    nested = content.replace(b'{', b'{"x": ' + deep + b', ', 1)
    yield Corruption('config with deep field', {CONFIG: nested})
  for key in fields:
    yield _json(f'without {key}', CONFIG, {**fields, key: None})
  for i in range(count):
    if i % 4 == 0:
      label, bad = _noise(content, len(content), rng)
      yield Corruption(f'{i}: {label}', {CONFIG: bad})
      continue
    changed = dict(fields)
    for key in rng.choice(list(fields), rng.choice([1, 1, 1, 2])):
      changed[str(key)] = _junk(fields[str(key)], rng)
    shown = {key: changed[key] for key in fields if changed[key] != fields[key]}
    yield _json(f'{i}: {str(shown)[:90]!a}', CONFIG, changed)


def index(good: Files) -> Iterator[Corruption]:
  """Yields index files that lead elsewhere, or nowhere."""
  names = list(_header(good[WEIGHTS]))
  honest = dict.fromkeys(names, WEIGHTS)
  shards = ('../model.safetensors', '/etc/passwd', '..', '.', '', 'a/b', None)
  shards += ('..\\model.safetensors', CONFIG, 'sub', 5, ['a'], 'x' * 5000)
  shards += ('\0.safetensors', '\ud800.safetensors', '../config.json')
  shards += ('./model.safetensors', '~/model.safetensors', 'gone.safetensors')
  for shard in shards:
    for places in (honest | {names[0]: shard}, dict.fromkeys(names, shard)):
      yield _json(f'index to {shard!a:.40}', INDEX, {'weight_map': places})
  for value in (*JUNK, honest | {'ghost': WEIGHTS}, {names[0]: WEIGHTS}):
    yield _json(f'weight_map {value!a:.40}', INDEX, {'weight_map': value})
  text = json.dumps({'weight_map': honest}).encode()
  for cut in range(0, len(text), 37):
    yield Corruption(f'index cut at {cut}', {INDEX: text[:cut]})
  for deep in DEEP:
    yield Corruption('deep index', {INDEX: deep})
  yield Corruption('honest index', {INDEX: text})


def tokenizer(
  good: Files, rng: np.random.Generator, count: int
) -> Iterator[Corruption]:
  """Yields corruptions of a folder's tokenizer, `count` of them drawn."""
  # What the library panics at.
  tree = json.loads(good['tokenizer.json'])
  tree['model']['continuing_subword_prefix'] = 'x' * 99
  yield _json('long prefix', 'tokenizer.json', tree)
  yield from _json_file(good, 'tokenizer.json', rng, count - count // 3)
  yield from _json_file(good, 'tokenizer_config.json', rng, count // 3)


def _json_file(
  good: Files, name: str, rng: np.random.Generator, count: int
) -> Iterator[Corruption]:
  """Yields corruptions anywhere in a JSON file, such as a tokenizer's."""
  content = good[name]
  for deep in (*DEEP, b'', b'[]', b'{}', b'null'):
    yield Corruption(f'{name} is {deep[:8]!r}', {name: deep})
  tree = json.loads(content)
  for i in range(count):
    if i % 3 == 0:
      label, bad = _noise(content, len(content), rng)
      yield Corruption(f'{name} {i}: {label}', {name: bad})
      continue
    changed = copy.deepcopy(tree)
    parent, key = _place(changed, rng)
    what = f'{name} {i}: {str(key)[:20]!a}'
    if rng.random() < 0.2:
      del parent[key]
      yield _json(f'{what} gone', name, changed)
    else:
      parent[key] = _junk(parent[key], rng)
      yield _json(f'{what} = {str(parent[key])[:40]!a}', name, changed)


def _cuts(
  content: bytes, borders: set[int], ends: set[int]
) -> Iterator[tuple[str, bytes]]:
  """Yields truncations, around tensors' ends by a byte more or less, too."""
  places = borders | {end + shift for end in ends for shift in (-1, 0, 1)}
  for place in sorted(places):
    if 0 <= place < len(content):
      yield f'cut at {place}', content[:place]
  for tail in (b'\0', b'\0' * 8, b'\xff' * 4096):
    yield f'{len(tail)} bytes more', content + tail


def _noise(
  content: bytes, header: int, rng: np.random.Generator
) -> tuple[str, bytes]:
  """Flips bits or changes bytes, in three of four cases in the header."""
  start, stop = 0, header
  if header < len(content) and rng.random() < 0.25:
    start, stop = header, len(content)
  bad = bytearray(content)
  place = int(rng.integers(start, stop))
  kind = rng.choice(['flip', 'byte', 'bytes', 'insert', 'delete', 'repeat'])
  size = int(rng.integers(1, 9))
  if kind == 'flip':
    bad[place] ^= 1 << int(rng.integers(8))
  elif kind == 'byte':
    bad[place] = int(rng.choice([0, 0xFF, 0x80, 0xC0, rng.integers(256)]))
  elif kind == 'bytes':
    for each in rng.integers(start, stop, 4):
      bad[each] = int(rng.integers(256))
  elif kind == 'insert':
    bad[place:place] = rng.bytes(size)
  elif kind == 'delete':
    del bad[place : place + size]
  else:
    bad[place:place] = bad[place : place + size]
  return f'{kind} at {place}', bytes(bad)


def _rewritten_header(
  header: dict[str, Any], data: bytes, rng: np.random.Generator
) -> tuple[str, bytes]:
  """Changes one thing that a safetensors header says."""
  header = copy.deepcopy(header)
  name, other = map(str, rng.choice(list(header), 2, replace=False))
  entry = header[name]
  kind = rng.choice(['dtype', 'shape', 'offsets', 'swap', 'same', 'name',
                     'twice', 'entry', 'more', 'metadata'])  # fmt: skip
  if kind == 'dtype':
    kinds = ['F16', 'BF16', 'F64', 'I32', 'U8', 'BOOL', 'F8_E4M3', 'F4', 'f32']
    entry['dtype'] = _pick([*kinds, *JUNK], rng)
  elif kind == 'shape':
    size = (entry['data_offsets'][1] - entry['data_offsets'][0]) // 4
    shapes = [entry['shape'][::-1], [size], [size, 1], [1, size], [], [0]]
    shapes += [[-1, -size], [size * 1.0], [2**32, 2**32], [2**63, 2], [[size]]]
    shapes += [[2**64 // 4, size], [1] * 40 + [size], [10**4299] * 2]
    entry['shape'] = _pick([*shapes, *JUNK], rng)
  elif kind == 'offsets':
    pair = entry['data_offsets']
    where = int(rng.integers(2))
    near = [pair[where] + d for d in (-4, -1, 1, 4)]
    pair[where] = _pick([*near, *NUMBERS, *JUNK, 10**4299], rng)
    if rng.random() < 0.2:
      entry['data_offsets'] = _pick([pair[::-1], [*pair, 0], *JUNK], rng)
  elif kind == 'swap':
    entry['data_offsets'], header[other]['data_offsets'] = (
      header[other]['data_offsets'],
      entry['data_offsets'],
    )
  elif kind == 'same':
    entry['data_offsets'] = header[other]['data_offsets']
  elif kind == 'name':
    names = [
      '',
      other,
      other + ' ',
      'lm_head.weight',
      '\0',
      '\ud800',
      'x' * 999,
    ]
    header[str(_pick(names, rng))] = header.pop(name)
  elif kind == 'entry':
    header[name] = _pick(JUNK, rng)
  elif kind == 'more':
    empty = {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]}
    header[str(_pick(['extra', 'lm_head.weight'], rng))] = empty
  elif kind == 'metadata':
    header['__metadata__'] = _pick([{'format': 'pt'}, {'a': 1}, *JUNK], rng)
  text = json.dumps(header).encode()
  if kind == 'twice':
    text = text.replace(json.dumps(other).encode(), json.dumps(name).encode())
  return f'{kind} of {name}', _with_header(text, data)


def _gguf_fields(content: bytes) -> tuple[list[tuple[int, int]], set[int]]:
  """Returns the header's (start, size) fields and the tensors' ends."""
  import tempfile

  from gguf import gguf_reader

  with tempfile.NamedTemporaryFile(suffix='.gguf') as file:
    file.write(content)
    file.flush()
    reader = gguf_reader.GGUFReader(file.name)
    found = [(0, 4), (4, 4), (8, 8), (16, 8)]
    read = [f for k, f in reader.fields.items() if not k.startswith('GGUF.')]
    for field in read + [tensor.field for tensor in reader.tensors]:
      start = field.offset
      for part in field.parts:
        found.append((start, part.nbytes))
        start += part.nbytes
    ends = {int(t.data_offset + t.n_bytes) for t in reader.tensors}
  return found, ends


def _overwritten_field(
  content: bytes, fields: list[tuple[int, int]], rng: np.random.Generator
) -> tuple[str, bytes]:
  """Writes a number where one stands, or bytes that are not UTF-8."""
  start, size = fields[int(rng.integers(len(fields)))]
  old = content[start : start + size]
  if size in (1, 2, 4, 8):
    value = int.from_bytes(old, 'little')
    near = (value - 1, value + 1, value * 2, value ^ (1 << (8 * size - 1)))
    chosen = int(_pick([*NUMBERS, *near, *range(14)], rng)) % (1 << 8 * size)
    new = chosen.to_bytes(size, 'little')
    label = f'{chosen} for {value}'
  else:
    bad = (b'\xff' * size, b'\xc3' * size, b'\0' * size, b'\x1b' * size)
    new = _pick([*bad, old[::-1], old.upper()], rng)
    label = f'{new[:8]!r}'
  return f'{label} at {start}', content[:start] + new + content[start + size :]


def _copied_field(
  content: bytes, fields: list[tuple[int, int]], rng: np.random.Generator
) -> tuple[str, bytes]:
  """Writes one field over another of its size: twice, swapped, overlapping."""
  while True:
    one, two = (fields[int(i)] for i in rng.integers(len(fields), size=2))
    if one[1] == two[1] and one != two:
      break
  bad = bytearray(content)
  bad[two[0] : sum(two)] = content[one[0] : sum(one)]
  if swap := rng.random() < 0.5:
    bad[one[0] : sum(one)] = content[two[0] : sum(two)]
  return f'{one[0]} {"swapped with" if swap else "over"} {two[0]}', bytes(bad)


def _junk(value: Any, rng: np.random.Generator) -> Any:
  """Returns something else, often of the same type."""
  if isinstance(value, bool) or rng.random() < 0.4:
    return _pick([not value, *JUNK], rng)
  if isinstance(value, int):
    near = (value - 1, value + 1, value * 2, -value, float(value), 10**4000)
    return _pick([*near, *NUMBERS, str(value)], rng)
  if isinstance(value, float):
    return _pick([0.0, -value, value * 2, 5e-324, 1e308, 1, 10**400], rng)
  return _pick([[value], {'a': value}, *JUNK, *NUMBERS], rng)


def _place(tree: Any, rng: np.random.Generator) -> tuple[Any, Any]:
  """Returns a container within `tree`, and a key of it."""
  places = []

  def walk(node: Any) -> None:
    keys = node if isinstance(node, dict) else range(len(node))
    for key in keys:
      places.append((node, key))
      if isinstance(node[key], (dict, list)):
        walk(node[key])

  walk(tree)
  # Half of them near the root: a vocabulary outnumbers everything else.
  top = [place for place in places if place[0] is tree]
  return _pick(top if rng.random() < 0.3 else places, rng)


def _pick(options: Any, rng: np.random.Generator) -> Any:
  return options[int(rng.integers(len(options)))]


def _json(label: str, name: str, value: Any) -> Corruption:
  return Corruption(label, {name: json.dumps(value).encode()})


def _with_header(header: bytes, data: bytes) -> bytes:
  return struct.pack('<Q', len(header)) + header + data


def _header(content: bytes) -> dict[str, Any]:
  length = struct.unpack('<Q', content[:8])[0]
  return json.loads(content[8 : 8 + length])
