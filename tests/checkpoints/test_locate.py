"""What a name stands for."""

from __future__ import annotations

import pathlib

import huggingface_hub
from huggingface_hub import errors as hub_errors
import pytest

from me_jax import errors
from me_jax.checkpoints import locate


@pytest.fixture
def hub(monkeypatch):
  """A hub that records what is asked; set `.answer` to what it does."""

  class Hub:
    calls = []
    answer = staticmethod(lambda **options: '/nowhere')

    def download(self, repository, **options):
      self.calls.append((repository, options))
      return self.answer(**options)

  hub = Hub()
  hub.calls = []
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', hub.download)
  return hub


def refused(name, *words):
  with pytest.raises(errors.MeJaxError) as caught:
    locate.locate(name)
  assert '\n' not in str(caught.value)
  for word in words:
    assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    'name',
    ['/no/such', './nope', '../nope', 'a/b/c', '~/no such', 'm.gguf', 'x/m.gguf',
     'x/m.safetensors', 'pytorch_model.bin', 'sub/'],
)  # fmt: skip
def test_what_looks_like_a_path_never_asks_the_hub(hub, name):
  refused(name, 'no such file or folder')
  assert not hub.calls


def test_a_path_below_an_existing_folder_is_a_path(hub, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'models').mkdir()
  refused('models/missing', 'no such file or folder')
  assert not hub.calls


@pytest.mark.parametrize('name', ['', None, 3, b'x', 'a\0b'])
def test_what_is_not_a_name(name):
  refused(name)


def test_a_mistyped_alias_is_suggested(hub):
  refused('smolm2', "'smollm2'")


def test_paths_of_any_kind(tmp_path):
  assert locate.locate(tmp_path) == str(tmp_path)
  assert locate.locate(pathlib.Path(tmp_path)) == str(tmp_path)


def test_the_cache_comes_first(hub, tmp_path):
  (tmp_path / 'model.safetensors').write_bytes(b'')
  hub.answer = lambda **options: str(tmp_path)
  assert locate.locate('owner/name@v1.0') == str(tmp_path)
  [(repository, options)] = hub.calls
  assert repository == 'owner/name'
  assert options['revision'] == 'v1.0'
  assert options['local_files_only']


def test_code_and_pickles_are_never_fetched(hub, tmp_path):
  hub.answer = lambda **options: str(tmp_path)
  locate.locate('owner/name')
  for pattern in hub.calls[-1][1]['allow_patterns']:
    assert not pattern.endswith(('*', '.bin', '.py')) or pattern in (
      'tokenizer*',
      'chat_template*',
    )


def test_a_cached_snapshot_without_weights_is_completed(hub, tmp_path):
  hub.answer = lambda **options: str(tmp_path)
  assert locate.locate('owner/name') == str(tmp_path)
  assert [c[1].get('local_files_only', False) for c in hub.calls] == [
    True,
    False,
  ]


@pytest.mark.parametrize(
  ('kind', 'word'),
  [
    (OSError, 'cannot be reached'),
    (hub_errors.LocalEntryNotFoundError, 'cannot be reached'),
    (hub_errors.OfflineModeIsEnabled, 'cannot be reached'),
    (hub_errors.RepositoryNotFoundError, 'no such model'),
    (hub_errors.RevisionNotFoundError, 'no such revision'),
    (hub_errors.GatedRepoError, 'accept its terms'),
  ],
)
def test_what_the_hub_says_becomes_one_line(hub, kind, word):
  def answer(local_files_only=False, **options):
    if local_files_only:
      raise hub_errors.LocalEntryNotFoundError('not cached')
    raise kind.__new__(kind)

  hub.answer = answer
  refused('owner/name', 'owner/name', word)


def test_offline_and_not_cached(tmp_path, monkeypatch):
  monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path))
  refused('me-jax-tests/no-such-model', 'not in the hub cache')
