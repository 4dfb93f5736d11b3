"""Whatever is said about a model comes back from either kind of folder."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax import errors
from me_jax.checkpoints import load
from me_jax.checkpoints import metadata as metadata_lib
from tests.support import planted

SAID = {
  'source': 'x',
  'wemask': {'rate': 0.1, 'layers': [3, None, True], 'ä': ''},
}
WRITERS = {'save': me_jax.save, 'export': me_jax.export}


def make():
  model, params = planted.build([])
  return load.LoadedModel(model, params, None, model.config)


def refused(action, *words):
  with pytest.raises(errors.MeJaxError) as caught:
    action()
  message = str(caught.value)
  assert '\n' not in message
  for word in words:
    assert word in message, message


@pytest.mark.parametrize('kind', WRITERS)
def test_metadata_come_back(tmp_path, kind):
  WRITERS[kind](make(), tmp_path / 'm', metadata=SAID)
  assert me_jax.read_metadata(tmp_path / 'm') == SAID
  assert load.open_checkpoint(tmp_path / 'm').metadata == SAID


@pytest.mark.parametrize('kind', WRITERS)
def test_nothing_said_is_an_empty_dict(tmp_path, kind):
  for number, silent in enumerate((None, {})):
    folder = tmp_path / str(number)
    WRITERS[kind](make(), folder, metadata=silent)
    assert me_jax.read_metadata(folder) == {}
    assert load.open_checkpoint(folder).metadata == {}
    assert not (folder / metadata_lib.FILE).exists()


def test_checkpoints_of_others_have_said_nothing(tiny, tmp_path):
  assert me_jax.read_metadata(tiny.hf(tmp_path / 'hf')) == {}
  (tmp_path / 'gguf').mkdir()
  tiny.gguf(tmp_path / 'gguf' / 'm.gguf')
  assert me_jax.read_metadata(tmp_path / 'gguf') == {}
  assert load.open_checkpoint(tmp_path / 'gguf').metadata == {}


@pytest.mark.parametrize('kind', WRITERS)
@pytest.mark.parametrize(
  'metadata', [{1: 2}, {'a': (1, 2)}, {'a': np.float32(1)}, {'a': np.nan},
               {'a': {1, 2}}, {'a': '\ud800'}, {'a': 10**25}, ['a']],
)  # fmt: skip
def test_what_would_come_back_changed_is_refused(tmp_path, kind, metadata):
  refused(
    lambda: WRITERS[kind](make(), tmp_path / 'm', metadata=metadata), 'metadata'
  )
  assert not list(tmp_path.iterdir())


def test_an_export_with_metadata_can_be_replaced(tmp_path):
  me_jax.export(make(), tmp_path / 'm', metadata=SAID)
  me_jax.export(make(), tmp_path / 'm', metadata={'a': 1}, overwrite=True)
  assert me_jax.read_metadata(tmp_path / 'm') == {'a': 1}
  me_jax.export(make(), tmp_path / 'm', overwrite=True)
  assert me_jax.read_metadata(tmp_path / 'm') == {}


def test_an_export_is_not_taken_for_a_save(tmp_path):
  me_jax.export(make(), tmp_path / 'm', metadata=SAID)
  refused(
    lambda: me_jax.save(make(), tmp_path / 'm', overwrite=True), 'no part'
  )
  found = me_jax.load(tmp_path / 'm').params['norm']['weight']
  assert bool((found == make().params['norm']['weight']).all())
  assert isinstance(found, jnp.ndarray)


@pytest.mark.parametrize('content', ['', '[]', '{"a": 1, "a": 2}', None])
def test_a_broken_file_is_named(tmp_path, content):
  me_jax.export(make(), tmp_path / 'm', metadata=SAID)
  path = tmp_path / 'm' / 'me_jax_metadata.json'
  assert json.loads(path.read_text()) == SAID
  path.unlink()
  path.mkdir() if content is None else path.write_text(content)
  for read in (me_jax.read_metadata, me_jax.load):
    refused(lambda read=read: read(tmp_path / 'm'), 'me_jax_metadata.json')


def test_folders_that_hold_no_model(tmp_path):
  refused(lambda: me_jax.read_metadata(tmp_path), 'no checkpoint')
  (tmp_path / 'me_jax_metadata.json').write_text('{}')
  refused(lambda: me_jax.read_metadata(tmp_path), 'no checkpoint')
  refused(lambda: me_jax.read_metadata(tmp_path / 'no'), 'no such folder')
