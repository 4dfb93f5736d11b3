"""What the documentation says is true: code runs, links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
from urllib import parse

import pytest

import me_jax
from me_jax import cli
from me_jax.checkpoints import load as load_lib
from me_jax.checkpoints import locate
from me_jax.cli import flags as flags_lib
from me_jax.mitigation import gates
from me_jax.models import sites
from tests.support import page_model
from tests.support import pages

# Besides the public names.
ALSO = {'gates.start': gates.start, 'sites.read': sites.read}
EXAMPLES = {name: getattr(me_jax, name) for name in me_jax.__all__} | ALSO
WRITERS = {'export', 'read_metadata', 'save'}
WITH_CODE = [page for page in pages.all_of_them() if pages.python_blocks(page)]


def _name(page):
  return str(page.relative_to(pages.ROOT))


@pytest.fixture(scope='module')
def smollm2():
  return load_lib.load('smollm2')


@pytest.fixture(scope='module')
def small_model(tmp_path_factory):
  return page_model.write(tmp_path_factory.mktemp('small') / 'model')


@pytest.fixture
def examined(smollm2, monkeypatch, tmp_path):
  """The default model, loaded once; in an empty folder."""
  really = load_lib.load

  def load(source='smollm2', **settings):
    is_shared = source == 'smollm2' and not settings
    return smollm2 if is_shared else really(source, **settings)

  monkeypatch.setattr(load_lib, 'load', load)
  monkeypatch.chdir(tmp_path)


@pytest.fixture
def replaced(small_model, monkeypatch, tmp_path):
  """A small model in place of the default one; in an empty folder."""
  really = locate.locate
  monkeypatch.setattr(
    locate,
    'locate',
    lambda name: small_model if name == 'smollm2' else really(name),
  )
  monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize('name', sorted(EXAMPLES.keys() - WRITERS))
def test_an_example_says_what_happens(name, examined):
  _run(name)


@pytest.mark.parametrize('name', sorted(WRITERS))
def test_an_example_of_writing_says_what_happens(name, replaced):
  """Of any model: the default one is half a gigabyte."""
  _run(name)


@pytest.mark.parametrize('page', WITH_CODE, ids=_name)
def test_the_code_of_a_page_runs(page, replaced, tmp_path):
  """In order, in one namespace."""
  page_model.write_rows(tmp_path / 'rows.jsonl')
  names = {'__name__': '__main__'}
  for line, code in pages.python_blocks(page):
    # Errors then point at the page.
    code = compile('\n' * line + code, str(page), 'exec', dont_inherit=True)
    exec(code, names)


@pytest.mark.parametrize('page', pages.all_of_them(), ids=_name)
def test_links_lead_somewhere(page):
  for link in pages.links(page.read_text()):
    url = parse.urlsplit(link)
    if url.scheme:
      assert url.scheme in ('http', 'https', 'mailto'), link
      assert url.scheme == 'mailto' or '.' in url.netloc, link
    elif url.path:
      assert (page.parent / parse.unquote(url.path)).exists(), link


def test_links_in_code_are_none():
  text = '[a](b.md) `[c](d.md)`\n```\n[e](f.md)\n```\n![g](h.png "i")\n'
  assert pages.links(text) == ['b.md', 'h.png']


@pytest.mark.parametrize('verb', cli.VERBS)
def test_a_page_holds_what_help_prints(verb):
  hooks = _hooks()
  page = (pages.DOCS / f'{verb}.md').read_text()
  module = importlib.import_module(f'me_jax.cli.{verb}')
  text = flags_lib.help_text(verb, module)
  assert f'```text\n{text}\n```' in hooks.on_page_markdown(page)


def test_an_unknown_verb_is_an_error():
  with pytest.raises(KeyError, match='nonsense'):
    _hooks().on_page_markdown('<!-- help: nonsense -->')


def test_every_public_name_is_on_the_page_of_the_interface():
  shown = re.findall(r'^::: me_jax\.(\w+)$', _text('api.md'), re.M)
  assert sorted(shown) == sorted(me_jax.__all__)


def test_every_page_is_reachable(tmp_path):
  """Builds the site: mkdocs checks pages, links and their anchors."""
  commands = pytest.importorskip('mkdocs.commands.build')
  config = pytest.importorskip('mkdocs.config')
  settings = config.load_config(
    str(pages.ROOT / 'mkdocs.yml'), strict=True, site_dir=str(tmp_path)
  )
  commands.build(settings)
  html = (tmp_path / 'api.html').read_text()
  assert 'id="me_jax.wemask"' in html
  # Nothing is fetched when a page is opened without a network.
  loaded = re.compile(r'<(?:script|link|img)[^>]* (?:src|href)="(https?:[^"]*)')
  for page in tmp_path.rglob('*.html'):
    found = [url for url in loaded.findall(page.read_text()) if url]
    assert not found, page


def _run(name):
  # What a class inherits, and its methods, have no example of ours.
  test = doctest.DocTestParser().get_doctest(
    EXAMPLES[name].__doc__, {'me_jax': me_jax}, name, None, 0
  )
  assert test.examples, f'{name} has no example'
  said = []
  runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
  runner.run(test, out=said.append)
  assert not runner.failures, ''.join(said)


def _text(name):
  return (pages.DOCS / name).read_text()


def _hooks():
  spec = importlib.util.spec_from_file_location(
    'hooks', pages.DOCS / 'hooks.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
