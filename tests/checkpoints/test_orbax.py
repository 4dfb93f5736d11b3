"""Saved models come back exactly, and a folder is complete or absent."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import transformers

import me_jax
from me_jax import errors
from me_jax.checkpoints import atomic
from me_jax.checkpoints import finite
from me_jax.checkpoints import load
from me_jax.checkpoints import orbax_commit
from tests.support import folder as folder_lib
from tests.support import planted
from tests.support import processes
from tests.support import steps


def make(dtype='float32', seed=0, tokenizer=None):
  model, params = planted.build([], seed=seed)
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  return load.LoadedModel(model, params, tokenizer, model.config)


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(
      np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8)
    )


def refused(action, *words):
  with pytest.raises(errors.MeJaxError) as caught:
    action()
  message = str(caught.value)
  assert '\n' not in message and len(message) < 800
  for word in words:
    assert word in message, message


@pytest.fixture(name='saved')
def _saved(tmp_path):
  me_jax.save(make(), tmp_path / 'm')
  return tmp_path / 'm'


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('asynchronous', [False, True])
def test_a_model_comes_back_bit_for_bit(tmp_path, dtype, asynchronous):
  lm = make(dtype)
  me_jax.save(lm, tmp_path / 'm', asynchronous=asynchronous).wait()
  back = me_jax.load(tmp_path / 'm', dtype=dtype)
  assert_same(back.params, lm.params)
  assert back.config == lm.config and back.tokenizer is None
  assert os.listdir(tmp_path) == ['m']


@pytest.mark.parametrize('stored', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('wanted', ['float32', 'bfloat16', 'float16'])
def test_values_are_rounded_as_numpy_does(tmp_path, stored, wanted):
  lm = make(stored)
  me_jax.save(lm, tmp_path / 'm')
  expected = jax.tree.map(
    lambda leaf: np.asarray(leaf).astype(np.dtype(wanted)), lm.params
  )
  assert_same(me_jax.load(tmp_path / 'm', dtype=wanted).params, expected)


def test_every_field_of_a_configuration_comes_back(tmp_path):
  lm = make()
  rope = dataclasses.replace(
    lm.config.rope, theta=1 / 3, factor=8, short_factor=(1.0, 0.1)
  )
  config = dataclasses.replace(
    lm.config,
    rope=rope,
    rope_local=rope,
    layer_windowed=(True, False) * 4,
    sliding_window=7,
    embedding_scale=5**0.5,
    eos_token_ids=(2, 3),
    fused_projections=True,
  )
  me_jax.save(lm._replace(config=config), tmp_path / 'm')
  back = load.open_checkpoint(tmp_path / 'm').config
  assert repr(back) == repr(config)


def test_a_tokenizer_and_its_template_come_back(tmp_path):
  tokenizer = folder_lib.tokenizer()
  tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n"
  me_jax.save(make(tokenizer=tokenizer), tmp_path / 'm')
  back = me_jax.load(tmp_path / 'm').tokenizer
  assert back('a tEst, 12')['input_ids'] == tokenizer('a tEst, 12')['input_ids']
  assert back.bos_token_id == planted.BOS
  assert back.chat_template == tokenizer.chat_template


@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_orbax_itself_can_restore_the_tree(saved):
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    item = {'params': ocp.args.PyTreeRestore()}
    restored = checkpointer.restore(saved, args=ocp.args.Composite(**item))
  assert_same(restored['params'], make().params)


def test_each_layer_can_be_read_by_itself(saved):
  """Chunks are read whole: on a mesh, larger ones would be read in vain."""
  leaves = load.open_checkpoint(saved).leaves
  store = leaves['layers/mlp/up_proj/kernel'].store
  assert store.chunk_layout.read_chunk.shape == (1, 64, 24)


def test_progress_ends_at_all_bytes(saved):
  calls = []
  lm = me_jax.load(
    saved, dtype='bfloat16', progress=lambda *call: calls.append(call)
  )
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(lm.params))
  assert calls[-1] == (size, size) and calls == sorted(calls)


def test_what_is_saved_is_what_was_given(tmp_path):
  """Neither donating nor writing to the parameters changes a running save."""
  lm = make()
  host = jax.tree.map(np.array, lm.params)
  expected = jax.tree.map(np.array, lm.params)
  first = me_jax.save(lm, tmp_path / 'donated', asynchronous=True)
  jax.jit(lambda p: jax.tree.map(jnp.zeros_like, p), donate_argnums=0)(
    lm.params
  )
  second = me_jax.save(
    lm._replace(params=host), tmp_path / 'host', asynchronous=True
  )
  for leaf in jax.tree.leaves(host):
    leaf[...] = 7
  first.wait()
  second.wait()
  assert_same(me_jax.load(tmp_path / 'donated').params, expected)
  assert_same(me_jax.load(tmp_path / 'host').params, expected)


def test_no_thread_is_left(tmp_path):
  before = set(threading.enumerate())
  me_jax.save(make(), tmp_path / 'a')
  me_jax.save(make(), tmp_path / 'b', asynchronous=True).wait()
  me_jax.load(tmp_path / 'b')
  assert set(threading.enumerate()) <= before


# What stands there already.


def test_an_existing_folder_is_refused_and_untouched(saved):
  before = {p: p.stat().st_mtime_ns for p in saved.rglob('*')}
  refused(lambda: me_jax.save(make(seed=1), saved), 'exists', str(saved))
  assert {p: p.stat().st_mtime_ns for p in saved.rglob('*')} == before


def test_overwriting_replaces_it(saved):
  me_jax.save(make(seed=1), saved, overwrite=True)
  assert_same(me_jax.load(saved).params, make(seed=1).params)
  assert os.listdir(saved.parent) == [saved.name]


def test_overwriting_where_names_cannot_be_swapped(saved, monkeypatch):
  monkeypatch.setattr(atomic, '_exchange', lambda *names: False)
  me_jax.save(make(seed=1), saved, overwrite=True)
  assert_same(me_jax.load(saved).params, make(seed=1).params)
  assert os.listdir(saved.parent) == [saved.name]


def test_an_empty_folder_and_missing_parents_are_filled(tmp_path):
  (tmp_path / 'empty').mkdir()
  me_jax.save(make(), tmp_path / 'empty')
  me_jax.save(make(), tmp_path / 'a' / 'b' / 'c')
  me_jax.load(tmp_path / 'empty')
  me_jax.load(tmp_path / 'a' / 'b' / 'c')


def test_links_are_followed(tmp_path):
  (tmp_path / 'real').mkdir()
  (tmp_path / 'link').symlink_to('real')
  me_jax.save(make(), tmp_path / 'link')
  assert (tmp_path / 'link').is_symlink()
  me_jax.load(tmp_path / 'real')


def test_folders_of_another_kind_are_never_replaced(saved, tmp_path):
  def save(folder):
    return lambda: me_jax.save(make(), folder, overwrite=True)

  (saved / 'notes.txt').write_text('mine')
  refused(save(saved), 'notes.txt')
  (tmp_path / 'params').mkdir()
  (tmp_path / 'only' / 'params').mkdir(parents=True)
  refused(save(tmp_path / 'only'), 'me_jax.json')
  (tmp_path / 'file').write_text('')
  refused(save(tmp_path / 'file'), 'is a file')
  refused(save(tmp_path / 'file' / 'm'), 'cannot write')
  refused(save('/proc/nowhere/m'), 'cannot write')
  refused(save('/'), 'name a folder in it')
  refused(save('gs://bucket/m'), 'mount')
  refused(save(''), 'path')
  refused(save(3), 'path')
  refused(save(tmp_path / ('x' * 300)), 'too long')


def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  refused(lambda: me_jax.save(make(), '.'), 'current folder')


# Models that could not be loaded again.


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda p: p.pop('norm'), ('lack norm/weight',)),
    (lambda p: p.update(nrom={'weight': jnp.ones(64)}),
     ('nrom/weight', "did you mean 'norm/weight'")),
    (lambda p: p['norm'].update(weight=jnp.ones(63)),
     ('norm/weight', '[63]', '[64]')),
    (lambda p: p['norm'].update(weight=jnp.ones(64, jnp.int8)), ('int8',)),
    (lambda p: p['norm'].update(weight=[1.0] * 64), ('no array', 'list')),
    (lambda p: p['norm'].update(weight=jnp.full(64, jnp.nan)),
     ('norm/weight', 'NaN')),
  ],
)  # fmt: skip
def test_a_model_that_could_not_be_loaded_is_not_saved(tmp_path, change, words):
  lm = make()
  change(lm.params)
  refused(lambda: me_jax.save(lm, tmp_path / 'm'), *words)
  assert not os.listdir(tmp_path)


def test_a_tokenizer_that_cannot_be_saved(tmp_path):
  lm = make(tokenizer=object())
  refused(lambda: me_jax.save(lm, tmp_path / 'm'), 'tokenizer')
  assert not os.listdir(tmp_path)


# Failures on the way, and being killed.

STAGES = {
  'tokenizer': (transformers.PreTrainedTokenizerFast, 'save_pretrained'),
  'files': (orbax_commit.Commit, '_fill'),
  'arrays': (ocp.PyTreeCheckpointHandler, 'async_save'),
  'merging': (ocp.CompositeCheckpointHandler, 'finalize'),
  'renaming': (atomic, 'replace'),
}


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('asynchronous', [False, True])
@pytest.mark.parametrize('exists', [False, True])
def test_a_failure_at_any_stage_leaves_what_was_there(
  tmp_path, monkeypatch, stage, asynchronous, exists
):
  folder = tmp_path / 'm'
  if exists:
    me_jax.save(make(seed=1), folder)
  called = []

  def fail(*args, **kwargs):
    called.append(stage)
    raise OSError(28, 'No space left on device')

  def save():
    lm = make(tokenizer=folder_lib.tokenizer())
    me_jax.save(lm, folder, overwrite=True, asynchronous=asynchronous).wait()

  with monkeypatch.context() as patch:
    patch.setattr(*STAGES[stage], fail)
    refused(save, 'No space left')
  assert called
  assert os.listdir(tmp_path) == ['m'] * exists
  if exists:
    assert_same(me_jax.load(folder).params, make(seed=1).params)
  save()
  assert_same(me_jax.load(folder).params, make().params)


def test_a_failure_in_the_background_comes_at_wait_every_time(
  tmp_path, monkeypatch
):
  def fail(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(atomic, 'replace', fail)
  pending = me_jax.save(make(), tmp_path / 'm', asynchronous=True)
  refused(pending.wait, 'No space left')
  refused(pending.wait, 'No space left')


KILLED = """
    import os, signal, sys
    import orbax.checkpoint as ocp
    from me_jax.checkpoints import atomic, orbax, orbax_commit
    from tests.checkpoints import test_orbax

    folder, stage, asynchronous = sys.argv[1:]
    owner, name = test_orbax.STAGES[stage]
    plain = getattr(owner, name)

    def die(*args, **kwargs):
      if {after}:
        plain(*args, **kwargs)
      os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, die)
    lm = test_orbax.make(tokenizer=test_orbax.folder_lib.tokenizer())
    orbax.save(lm, folder, overwrite=True, asynchronous=bool(asynchronous)).wait()
"""


@pytest.mark.parametrize(
  ('stage', 'after', 'asynchronous', 'exists'),
  [
    ('files', False, '', False),
    ('files', True, 'yes', True),
    ('merging', False, '', True),
    ('merging', True, 'yes', False),
    ('renaming', False, 'yes', True),
    ('renaming', True, '', True),
  ],
)
def test_whoever_is_killed_leaves_a_whole_folder(
  tmp_path, stage, after, asynchronous, exists
):
  folder = tmp_path / 'm'
  if exists:
    me_jax.save(make(seed=1), folder)
  done = processes.run(
    KILLED.format(after=after), folder, stage, asynchronous, timeout=60
  )
  assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
  complete = stage == 'renaming' and after
  if complete or exists:
    expected = make() if complete else make(seed=1)
    assert_same(me_jax.load(folder).params, expected.params)
  else:
    assert not folder.exists()
  for rest in tmp_path.iterdir():
    if '.orbax-checkpoint-tmp' in rest.name:
      refused(lambda rest=rest: me_jax.load(rest), 'not complete')
  # The next save goes through and clears away what was left.
  me_jax.save(make(seed=2), folder, overwrite=True)
  assert_same(me_jax.load(folder).params, make(seed=2).params)
  assert os.listdir(tmp_path) == ['m']


# Broken folders.


def test_folders_that_are_not_complete_are_refused(saved, tmp_path):
  renamed = tmp_path / 'm.orbax-checkpoint-tmp'
  shutil.copytree(saved, renamed)
  refused(lambda: me_jax.load(renamed), 'not complete')
  mark = saved / '_CHECKPOINT_METADATA'
  content = json.loads(mark.read_text())
  mark.write_text(json.dumps(content | {'commit_timestamp_nsecs': None}))
  refused(lambda: me_jax.load(saved), 'not complete', 'interrupted')


def test_checkpoints_of_others_are_refused(saved):
  (saved / 'me_jax.json').unlink()
  refused(lambda: me_jax.load(saved), 'without me_jax.json')
  refused(lambda: me_jax.read_metadata(saved), 'without me_jax.json')
  refused(lambda: me_jax.read_metadata(saved / 'no'), 'no such folder')


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'format': 2}, ('format 2',)),
    ({'format': True}, ('format True',)),
    ({'format': None}, ('format',)),
    ({'metadata': []}, ('metadata',)),
    ({'config': []}, ('config',)),
    ({'config': {'hidden_size': 65}}, ('embed_tokens/embedding', '[50, 65]')),
    ({'config': {'hidden_size': 2**40}}, ('embed_tokens/embedding',)),
    ({'config': {'vocab_size': 2**62}}, ('embed_tokens/embedding',)),
    ({'config': {'num_hidden_layers': 4 * 10**9}}, ('q_proj',)),
    ({'config': {'intermediate_size': 2**40}}, ('up_proj',)),
    ({'config': {'head_dim': 0}}, ('head_dim', 'positive')),
    ({'config': {'num_key_value_heads': 3}}, ('multiple',)),
    ({'config': {'num_key_value_heads': 1}}, ('k_proj', '[8, 64, 16]')),
    ({'config': {'hidden_size': '64'}}, ('hidden_size',)),
    ({'config': {'hidden_size': True}}, ('hidden_size',)),
    ({'config': {'rms_norm_eps': None}}, ('rms_norm_eps',)),
    ({'config': {'qk_norm': 'some'}}, ('qk_norm',)),
    ({'config': {'qk_norm': 'head'}}, ('lack', 'k_norm')),
    ({'config': {'tie_word_embeddings': True}}, ('lm_head/kernel',)),
    ({'config': {'layer_windowed': [True]}}, ('layer_windowed',)),
    ({'config': {'layer_windowed': [1] * 8}}, ('layer_windowed',)),
    ({'config': {'rope': {'kind': 'new'}}}, ('new',)),
    ({'config': {'rope': {'kind': 'yarn'}}}, ('yarn',)),
    ({'config': {'rope': {'tehta': 1.0}}}, ('tehta', 'update me_jax')),
    ({'config': {'new_field': 1}}, ('new_field', 'update me_jax')),
  ],
)  # fmt: skip
def test_cards_that_lie_are_refused_by_name(saved, change, words):
  path = saved / 'me_jax.json'
  card = json.loads(path.read_text())
  if isinstance(change.get('config'), dict):
    change = {'config': card['config'] | change['config']}
  path.write_text(json.dumps(card | change))
  with steps.at_most(1_000_000):
    refused(lambda: me_jax.load(saved), *words)


def test_a_card_without_a_size_is_refused(saved):
  path = saved / 'me_jax.json'
  card = json.loads(path.read_text())
  del card['config']['hidden_size']
  path.write_text(json.dumps(card))
  refused(lambda: me_jax.load(saved), 'lacks hidden_size')


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_values_that_are_not_finite_are_refused(
  tmp_path, monkeypatch, value, dtype
):
  lm = make()
  kernel = lm.params['layers']['mlp']['up_proj']['kernel']
  kernel = kernel.at[7, 63, 23].set(value)
  lm.params['layers']['mlp']['up_proj']['kernel'] = kernel
  with monkeypatch.context() as patch:
    patch.setattr(finite, 'offenders', lambda leaves: [])
    me_jax.save(lm, tmp_path / 'm')
  refused(
    lambda: me_jax.load(tmp_path / 'm', dtype=dtype),
    'layers/mlp/up_proj/kernel', 'NaN or inf',
  )  # fmt: skip


def test_overflow_of_float16_is_refused(tmp_path):
  lm = make()
  lm.params['norm']['weight'] = jnp.full(64, 1e5)
  me_jax.save(lm, tmp_path / 'm')
  refused(
    lambda: me_jax.load(tmp_path / 'm', dtype='float16'),
    'norm/weight', 'too large',
  )  # fmt: skip
  me_jax.load(tmp_path / 'm', dtype='bfloat16')


def test_damaged_files_are_refused_or_do_no_harm(saved, tmp_path, capfd):
  """Every file missing, empty, cut, garbled or a folder; indexes flipped."""
  expected = make()
  rng = np.random.default_rng(3)
  bad = tmp_path / 'bad'
  refusals = 0
  for file in sorted(p for p in saved.rglob('*') if p.is_file()):
    data = file.read_bytes()
    flipped = bytearray(data)
    flipped[rng.integers(len(data))] ^= 1 << rng.integers(8)
    kinds = [None, b'', data[: rng.integers(len(data))]]
    # Values have no checksum: what stays finite in them can go unnoticed.
    if 'ocdbt.process_0' not in file.parts:
      kinds.append(rng.bytes(len(data)))
      if file.name != 'me_jax.json':
        kinds.append(bytes(flipped))
    for content in [*kinds, 'folder']:
      shutil.rmtree(bad, ignore_errors=True)
      shutil.copytree(saved, bad)
      target = bad / file.relative_to(saved)
      target.unlink()
      if content == 'folder':
        target.mkdir()
      elif content is not None:
        target.write_bytes(content)
      try:
        lm = me_jax.load(bad)
        assert_same(lm.params, expected.params)
        assert lm.config == expected.config
      except errors.MeJaxError as error:
        assert '\n' not in str(error)
        refusals += 1
  assert refusals > 25
  assert 'Traceback' not in capfd.readouterr().err


def test_a_folder_without_arrays(saved):
  shutil.rmtree(saved / 'params')
  refused(lambda: me_jax.load(saved), 'no parameters')
  assert not (saved / 'params').exists()


# Meshes and processes.

SHARDED = """
    import sys
    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    import me_jax
    from me_jax.models import params as params_lib
    from tests.checkpoints import test_orbax

    folder = sys.argv[1]
    lm = test_orbax.make()
    auto = (AxisType.Auto,) * 2
    shapes = params_lib.param_shapes(lm.config, 'float32')

    def place(sizes, rule):
      mesh = jax.make_mesh(sizes, ('a', 'b'), axis_types=auto)
      return jax.tree.map(
        lambda leaf: NamedSharding(mesh, rule[len(leaf.shape)]), shapes
      )

    # V = 50 divides by two only.
    first = place((4, 2), {1: P('a'), 2: P(None, 'b'), 3: P('b', None, 'a')})
    second = place((2, 4), {1: P(), 2: P('a'), 3: P('b', 'a')})
    placed = lm._replace(params=jax.tree.map(jax.device_put, lm.params, first))
    me_jax.save(placed, folder)
    alone = me_jax.load(folder)
    test_orbax.assert_same(alone.params, lm.params)
    assert len(alone.params['norm']['weight'].devices()) == 1
    for wanted in (first, second):
      back = me_jax.load(folder, dtype='bfloat16', shardings=wanted).params
      for a, b, s in zip(*map(jax.tree.leaves, (back, lm.params, wanted))):
        assert a.sharding == s
        np.testing.assert_array_equal(a, np.asarray(b).astype(a.dtype))
"""


def test_a_mesh_can_be_changed(tmp_path):
  done = processes.run(SHARDED, tmp_path / 'm', devices=8, timeout=120)
  assert done.returncode == 0, done.stderr[-3000:]
  assert_same(me_jax.load(tmp_path / 'm').params, make().params)


PROCESSES = """
    import os, sys
    import jax
    number, address, folder = int(sys.argv[1]), *sys.argv[2:]
    jax.distributed.initialize(address, 2, number)
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    import me_jax
    from tests.checkpoints import test_orbax

    lm = test_orbax.make(tokenizer=test_orbax.folder_lib.tokenizer())
    mesh = jax.sharding.Mesh(np.array(jax.devices()), 'a')
    assert mesh.size == 4 and len(jax.local_devices()) == 2
    shardings = jax.tree.map(
      # V = 50 does not divide.
      lambda leaf: NamedSharding(mesh, P() if 50 in leaf.shape else P('a')),
      lm.params,
    )

    def spread(leaf, sharding):
      host = np.asarray(leaf)
      return jax.make_array_from_callback(
        host.shape, sharding, lambda index: host[index]
      )

    placed = lm._replace(params=jax.tree.map(spread, lm.params, shardings))
    me_jax.save(placed, folder, metadata={'by': 'two'})
    me_jax.save(placed, folder, overwrite=True, asynchronous=True).wait()
    test_orbax.refused(lambda: me_jax.save(placed, folder))
    broken = dict(placed.params) if number else placed.params
    broken.pop('norm') if number else None
    test_orbax.refused(
      lambda: me_jax.save(placed._replace(params=broken), folder + '2')
    )
    back = me_jax.load(folder, shardings=shardings).params
    for a, b in zip(*map(jax.tree.leaves, (back, placed.params))):
      for mine, theirs in zip(a.addressable_shards, b.addressable_shards):
        np.testing.assert_array_equal(mine.data, theirs.data)
    print('done', number)
"""


def test_two_processes_write_one_folder(tmp_path):
  folder = tmp_path / 'm'
  ends = processes.pair(PROCESSES, folder, timeout=120)
  assert ends == ['done 0', 'done 1']
  lm = me_jax.load(folder)
  assert_same(lm.params, make().params)
  assert lm.tokenizer is not None
  assert os.listdir(tmp_path) == ['m']


def test_the_end_of_a_process_waits(tmp_path):
  program = """
      import sys
      from me_jax.checkpoints import orbax
      from tests.checkpoints import test_orbax
      orbax.save(test_orbax.make(), sys.argv[1], asynchronous=True)
  """
  done = processes.run(program, tmp_path / 'm', timeout=60)
  assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
  assert_same(me_jax.load(tmp_path / 'm').params, make().params)


def test_loading_other_formats_does_not_import_orbax(tiny, tmp_path):
  folder = tiny.hf(tmp_path / 'm')
  code = (
    'import sys, me_jax; me_jax.load(sys.argv[1]);'
    'assert "orbax.checkpoint" not in sys.modules;'
    'assert "tensorstore" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code, folder], check=True)
