"""The page and its folder: complete, self-contained, safe from its contents."""

from __future__ import annotations

import base64
import hashlib
from html import parser as parser_lib
import io
import json
import re

from PIL import Image
import pytest

from me_jax import errors
from me_jax.plotting import interactive
from me_jax.plotting import page
from me_jax.plotting import report
from me_jax.plotting import spec
from me_jax.plotting import static
from tests.support import figures as made

HEADLINE = f'Layer 4 is it: {made.TOKENS[0]}'
SECTIONS = made.sections()
ALL = [figure for section in SECTIONS for figure in section.figures]


def write(folder, sections=SECTIONS):
  return report.write(
    folder,
    sections,
    headline=HEADLINE,
    provenance={
      'model': '/a/</script><b>/model',
      'surrogate': '\ud800',
      'versions': {'jax': '0.10'},
    },
    command="me-jax explain --model='a b'",
    title='</title><b>x',
    open_points=['Nothing was trained & nothing was lost.'],
  )


class Page(parser_lib.HTMLParser):
  """What a browser would see: elements with their attributes, and text."""

  def __init__(self, text: str):
    super().__init__()
    self.elements, self.text, self.scripts, self._open = [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    self._open.append(tag)
    if tag == 'script':
      self.scripts.append('')

  def handle_endtag(self, tag):
    while self._open and self._open.pop() != tag:
      pass

  def handle_data(self, data):
    if self._open and self._open[-1] == 'script':
      self.scripts[-1] += data
    elif not self._open or self._open[-1] != 'style':
      self.text.append(data)

  def all(self, tag):
    return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope='module', name='folder')
def _folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('out') / 'report'
  assert write(folder) == folder / 'report.html'
  return folder


@pytest.fixture(scope='module', name='text')
def _text(folder):
  return (folder / 'report.html').read_text('utf-8')


@pytest.fixture(scope='module', name='parsed')
def _parsed(text):
  return Page(text)


def test_the_folder_holds_page_numbers_and_figures(folder):
  names = sorted(p.name for p in folder.iterdir())
  assert names == ['figures', 'report.html', 'report.json']
  drawn = sorted(p.name for p in (folder / 'figures').iterdir())
  assert drawn == sorted(
    f'{figure.name}.{kind}' for figure in ALL for kind in ('png', 'svg')
  )
  assert (folder / 'report.html').stat().st_size < 8_000_000


def test_the_page_says_everything(parsed):
  said = ' '.join(' '.join(parsed.text).split())
  assert HEADLINE in said and 'Nothing was trained & nothing was lost.' in said
  assert 'versions: jax' in said and "--model='a b'" in said
  for section in SECTIONS:
    for part in (
      section.title,
      section.claim,
      section.finding,
      section.control,
    ):
      assert part in said
    for figure in section.figures:
      assert figure.title in said and figure.caption in said
  for token in made.SEEN:
    assert ' '.join(token.split()) in said, 'each token as text'
  badges = [a for a in parsed.all('span') if 'badge' in a.get('class', '')]
  assert len(badges) == 2 * len(SECTIONS), 'in the summary and in the section'


def test_ids_are_unique_and_links_lead_somewhere(folder, parsed):
  ids = [a['id'] for _, a in parsed.elements if 'id' in a]
  assert len(ids) == len(set(ids))
  for link in parsed.all('a'):
    target = link['href']
    if target.startswith('#'):
      assert target[1:] in ids
    else:
      assert (folder / target).is_file()
  linked = {a['href'] for a in parsed.all('a')}
  assert {f'#{section.name}' for section in SECTIONS} <= linked


def test_every_figure_has_an_alternative_text_and_a_picture(parsed):
  plots = [a for a in parsed.all('div') if a.get('role') == 'img']
  pictures = parsed.all('img')
  assert len(plots) == len(pictures) == len(ALL)
  for figure, plot, picture in zip(ALL, plots, pictures):
    assert plot['aria-label'] == picture['alt'] == figure.alt
    kind, data = picture['src'].split(',', 1)
    assert kind == 'data:image/png;base64'
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
      assert image.width / int(picture['width']) == pytest.approx(1.5, rel=0.01)
      assert image.convert('RGB').getpixel((0, 0)) == (255, 255, 255)


def test_nothing_is_fetched_from_anywhere(text, parsed):
  for tag, attributes in parsed.elements:
    for name, value in attributes.items():
      if name in ('src', 'href', 'srcset', 'action', 'data', 'poster'):
        assert re.match(r'#|data:image/png|figures/|report\.json$', value), tag
  assert not parsed.all('link') and not parsed.all('iframe')
  style = text[text.index('<style>') : text.index('</style>')]
  assert 'url(' not in style and '@import' not in style
  ours = text.replace(page.plotly_js(), '')
  outside = re.findall(r'https?://[^\s"&<]*', ours)
  # One of the tokens; as text, and as text that plotly draws.
  assert set(outside) <= {'https://example.org', 'https://example.org\\'}


def test_the_policy_names_the_two_scripts_and_nothing_else(parsed):
  (policy,) = [a['content'] for a in parsed.all('meta') if 'http-equiv' in a]
  rules = dict(rule.split(' ', 1) for rule in policy.split('; '))
  run = [
    script
    for script, a in zip(parsed.scripts, parsed.all('script'))
    if a.get('type') != 'application/json'
  ]
  assert len(run) == 2
  hashes = [
    f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
    for s in run
  ]
  assert rules['script-src'].split() == hashes
  assert rules['default-src'] == "'none'"
  assert not any(
    name.startswith('on') for _, a in parsed.elements for name in a
  )


def test_no_text_becomes_an_element(text, parsed):
  assert not parsed.all('b')
  assert len(parsed.all('title')) == 1
  islands = [
    script
    for script, a in zip(parsed.scripts, parsed.all('script'))
    if a.get('type') == 'application/json'
  ]
  assert [json.loads(island) for island in islands] == [
    interactive.draw(figure) for figure in ALL
  ]
  assert not any(c in island for island in islands for c in '<>&')
  assert text.count('</script>') == 2 + len(ALL)


def test_tables_align_columns_of_numbers(parsed):
  cells = parsed.all('td')
  kinds = [cell.get('class') for cell in cells[2 * len(SECTIONS) :]]
  assert kinds == [None, *['number'] * 12] * (len(made.TOKENS) * len(SECTIONS))


def test_every_number_is_in_the_json(folder):
  values = json.loads((folder / 'report.json').read_text('utf-8'))
  assert values['headline'] == HEADLINE
  assert values['command'] == "me-jax explain --model='a b'"
  for section in SECTIONS:
    found = values['sections'][section.name]
    assert found['verdict'] == section.verdict
    assert found['numbers'] == {
      'array': [0, 1, 2], 'missing': None, 'token': made.TOKENS[0]
    }  # fmt: skip
  line = values['sections']['holds']['figures']['lines'][0]['series'][0]
  assert line['y'] == [1.0, 2.0, 3.0] and line['high'] == [2.0, 3.0, 4.0]


def test_an_earlier_report_is_replaced_and_nothing_else(tmp_path):
  folder = tmp_path / 'r'
  some = SECTIONS[:1]
  write(folder, some)
  (folder / 'figures' / 'stale.png').write_text('old')
  write(folder, some)
  assert not (folder / 'figures' / 'stale.png').exists()
  (folder / 'notes.txt').write_text('mine')
  with pytest.raises(errors.MeJaxError, match=r'notes\.txt'):
    write(folder, some)
  assert (folder / 'notes.txt').read_text() == 'mine'
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.MeJaxError, match='is a file'):
    report.check_target(tmp_path / 'file')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['file', 'r']


def test_what_fails_half_way_leaves_the_old_report(tmp_path, monkeypatch):
  folder = tmp_path / 'r'
  write(folder, SECTIONS[:1])
  before = (folder / 'report.html').read_bytes()

  def fail(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(static, 'draw', fail)
  with pytest.raises(KeyboardInterrupt):
    write(folder, SECTIONS)
  assert (folder / 'report.html').read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ['r']


@pytest.mark.parametrize(
  'names', [('a', 'a'), ('summary',), ('a b',), ('"><b>',), ('figure-lines',)]
)
def test_names_are_unique_and_fit_into_links(tmp_path, names):
  sections = [
    spec.Section(
      name=name,
      title='',
      claim='',
      verdict='holds',
      finding='',
      control='',
      figures=(made.LINES,) if name == 'figure-lines' else (),
    )
    for name in names
  ]
  with pytest.raises(ValueError, match='name'):
    write(tmp_path / 'r', sections)
  assert not list(tmp_path.iterdir())


def test_without_plotly_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(page.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.MeJaxError, match='pip install plotly'):
    page.plotly_js()


def test_progress_counts_figures(tmp_path):
  seen = []
  report.write(
    tmp_path / 'r', SECTIONS[:1], headline='', provenance={}, command='',
    progress=lambda done, total: seen.append((done, total)),
  )  # fmt: skip
  assert seen == [(0, 2), (1, 2), (2, 2)]


def test_low_panels_are_low_on_the_page():
  chart = spec.Chart(
    title='low', series=made.LINES.panels[0].series, x_label='', y_label='',
    low=True,
  )  # fmt: skip
  figure = spec.Figure(
    name='f', title='', caption='', alt='', panels=(chart,) * 3
  )
  section = spec.Section(
    name='s', title='', claim='', verdict='holds', finding='', control='',
    figures=(figure,),
  )  # fmt: skip
  text = page.build(
    title='', headline='', sections=[section],
    stills={'f': page.Still(b'', 1, 1)}, open_points=(), provenance={},
    command='',
  )  # fmt: skip
  assert text.count('<div class="plot low"></div>') == 3
  assert text.count('<div class="panel wide">') == 1, 'the one left over'
