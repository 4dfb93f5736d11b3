"""Whatever a file says, it is refused in one line or read for what it says.

Neither format has a checksum, so a changed number may be a valid one: then the
load must equal what the formats' own packages read from the same bytes.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import gguf
import numpy as np
import pytest
import tokenizers

from me_jax import errors
from me_jax.checkpoints import load
from tests.support import fuzz_worker

ROOT = pathlib.Path(__file__).parents[2]
ON_LINUX = pytest.mark.skipif(
  sys.platform != 'linux', reason='limits need /proc'
)


def attack(form, folder, draws):
  """Loads the folder's corruptions; returns (refused, right) and faults."""
  try:
    done = subprocess.run(
      [sys.executable, '-m', 'tests.support.fuzz_worker', form, str(folder),
       '20', str(draws)],
      cwd=ROOT,
      env=os.environ | {'MALLOC_ARENA_MAX': '2'},
      capture_output=True,
      text=True,
      timeout=300,
    )  # fmt: skip
    output, status, complaints = done.stdout, done.returncode, done.stderr
  except subprocess.TimeoutExpired as error:
    output, status, complaints = error.stdout.decode(), 'hangs', ''
  counts, faults, label = {'refused': 0, 'right': 0}, [], 'start'
  for line in output.splitlines():
    # The libraries print as well.
    if not line.startswith(fuzz_worker.MARK):
      continue
    found = json.loads(line.removeprefix(fuzz_worker.MARK))
    if isinstance(found, str):
      label = found
    elif found['outcome'] == 'fault':
      faults.append(f'{label}: {found["why"][:300]}')
    else:
      counts[found['outcome']] += 1
  if status:
    faults.append(f'{label}: exit status {status} {complaints[-2000:]}')
  return counts, faults


def tokenizer_metadata(kind):
  """Returns GGUF metadata of a tokenizer of 48 tokens."""
  space = {'gpt2': 'Ġ', 'llama': '\u2581'}[kind]
  tokens = ['<unk>', '<s>', '</s>', space, *'abcd', 'ab', 'ca', f'{space}ab']
  tokens += [f'<{i}>' for i in range(48 - len(tokens))]
  values = {
    'model': kind,
    'tokens': tokens,
    'token_type': [2, 3, 3] + [1] * 45,
    'unknown_token_id': 0,
  }
  if kind == 'gpt2':
    merges = ['a b', 'c a', f'{space} ab']
    values |= {'pre': 'smollm', 'merges': merges, 'add_bos_token': True}
  else:
    values['scores'] = [-float(i) for i in range(48)]
  template = {'tokenizer.chat_template': '{{ messages[0].content }}'}
  return {f'tokenizer.ggml.{k}': v for k, v in values.items()} | template


def write_tokenizer(folder):
  tokens = ['<unk>', '<s>', '</s>', 'Ġ', *'abcd', 'ab', 'ca', 'Ġab']
  model = tokenizers.models.BPE(
    {token: i for i, token in enumerate(tokens)},
    [('a', 'b'), ('c', 'a'), ('Ġ', 'ab')],
    unk_token='<unk>',
  )
  tokenizer = tokenizers.Tokenizer(model)
  byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.pre_tokenizer = byte_level
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens(tokens[:3])
  tokenizer.save(str(folder / 'tokenizer.json'))
  settings = {
    'bos_token': '<s>',
    'eos_token': '</s>',
    'unk_token': '<unk>',
    'model_max_length': 64,
    'add_bos_token': True,
    'added_tokens_decoder': {'1': {'content': '<s>', 'special': True}},
    'chat_template': '{{ messages[0].content }}',
  }
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))


@ON_LINUX
@pytest.mark.parametrize(
  ('form', 'draws', 'loads'),
  [('safetensors', 600, 30), ('config', 300, 30), ('index', 0, 1),
   ('tokenizer', 300, 50)],
)  # fmt: skip
def test_corrupt_folders(tiny, tmp_path, form, draws, loads):
  folder = tiny.hf(tmp_path / 'm')
  if form == 'tokenizer':
    write_tokenizer(folder)
  # Where an index must not lead.
  (tmp_path / 'model.safetensors').write_bytes(
    tiny.hf(tmp_path / 'other', {k: -v for k, v in tiny.weights.items()})
    .joinpath('model.safetensors')
    .read_bytes()
  )
  counts, faults = attack(form, folder, draws)
  assert not faults
  # Neither side of the promise is empty.
  assert counts['refused'] > draws / 3 + 50
  assert counts['right'] >= loads


@ON_LINUX
@pytest.mark.parametrize('kind', ['F32', 'Q8_0'])
def test_corrupt_gguf_files(tiny, tmp_path, kind):
  quantise = None if kind == 'F32' else gguf.GGMLQuantizationType[kind]
  tiny.gguf(tmp_path / 'm.gguf', quantise)
  counts, faults = attack('gguf', tmp_path, 400)
  assert not faults
  assert counts['refused'] > 300 and counts['right'] > 30


@ON_LINUX
@pytest.mark.parametrize('kind', ['gpt2', 'llama'])
def test_corrupt_gguf_tokenizers(tiny, tmp_path, kind):
  tiny.gguf(tmp_path / 'm.gguf', metadata=tokenizer_metadata(kind))
  counts, faults = attack('gguf_tokenizer', tmp_path, 200)
  assert not faults
  assert counts['refused'] > 200 and counts['right'] > 30


# What looks like an attack and is none.


@pytest.mark.parametrize('sharded', [False, True])
def test_the_hub_caches_links_load(tiny, flat, tmp_path, sharded):
  folder = tiny.hf(tmp_path / 'm')
  if sharded:
    places = dict.fromkeys(tiny.weights, 'model.safetensors')
    text = json.dumps({'weight_map': places})
    (folder / 'model.safetensors.index.json').write_text(text)
  blobs, snapshot = tmp_path / 'blobs', tmp_path / 'snapshots' / 'main'
  blobs.mkdir()
  snapshot.mkdir(parents=True)
  for number, file in enumerate(folder.iterdir()):
    file.rename(blobs / str(number))
    (snapshot / file.name).symlink_to(f'../../blobs/{number}')
  found = flat(load.open_checkpoint(snapshot).load_params())
  for path, value in tiny.leaves().items():
    np.testing.assert_array_equal(found[path], value)


@pytest.mark.parametrize('name', ['model.safetensors', 'config.json'])
@pytest.mark.parametrize('kind', ['pipe', 'folder', 'loop', 'nowhere'])
def test_what_is_no_file_is_refused(tiny, tmp_path, name, kind):
  folder = tiny.hf(tmp_path / 'm')
  path = folder / name
  path.unlink()
  if kind == 'pipe':
    os.mkfifo(path)
  elif kind == 'folder':
    path.mkdir()
  else:
    path.symlink_to({'loop': name, 'nowhere': 'gone'}[kind])
  with pytest.raises(errors.MeJaxError):
    load.open_checkpoint(folder)


def test_a_link_leads_to_nothing_but_weights(tiny, tmp_path):
  folder = tiny.hf(tmp_path / 'm')
  secret = tmp_path / 'secret'
  secret.write_text('root:x:0:0:the secret\n' * 9)
  for name in ('model.safetensors', 'config.json'):
    (folder / name).unlink()
    (folder / name).symlink_to(secret)
    with pytest.raises(errors.MeJaxError) as caught:
      load.open_checkpoint(folder)
    assert 'the secret' not in str(caught.value)
    tiny.hf(tmp_path / 'again')
    (folder / name).unlink()
    (tmp_path / 'again' / name).rename(folder / name)
