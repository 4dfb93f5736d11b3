"""The page in a real browser: drawn, silent, readable on a phone and on paper."""

from __future__ import annotations

import html
import pathlib
import re
import shutil
import subprocess

import pytest

from me_jax.plotting import report
from me_jax.plotting import spec
from tests.support import figures as made

BROWSER = next(
  filter(
    None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))
  ),
  None,
)
pytestmark = pytest.mark.skipif(
  BROWSER is None,
  reason='there is no browser to open the page in: apt-get install chromium',
)
FLAGS = [
  '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars',
  '--disable-background-networking', '--disable-component-update',
  '--no-first-run', '--enable-logging=stderr', '--v=0',
  # Time that the page waits is skipped, so this is no time of ours.
  '--virtual-time-budget=60000',
]  # fmt: skip
SOLID = ['--use-angle=swiftshader', '--enable-unsafe-swiftshader']
# What the browser says of its own speed.
HINTS = 'GL Driver Message', 'Canvas2D: Multiple readback'
# Headless browsers have no mouse, and without one there are no buttons.
MOUSE = (
  '--blink-settings=primaryHoverType=2,availableHoverTypes=2,'
  'primaryPointerType=4,availablePointerTypes=4'
)
FLAT = ['--disable-3d-apis']
SECTIONS = made.sections()
ALL = [figure for section in SECTIONS for figure in section.figures]


def browse(page: pathlib.Path, profile: pathlib.Path, *flags: str) -> tuple:
  """Opens a page and returns what the browser prints: the DOM, and its log."""
  done = subprocess.run(
    [BROWSER, *FLAGS, f'--user-data-dir={profile}', *flags, page.as_uri()],
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  console = [
    line
    for line in done.stderr.splitlines()
    if 'CONSOLE' in line and not any(hint in line for hint in HINTS)
  ]
  # What scripts say of themselves is no part of the page.
  return re.sub(
    r'<script>.*?</script>', '', done.stdout, flags=re.DOTALL
  ), console


@pytest.fixture(scope='module', name='page')
def _page(tmp_path_factory):
  return report.write(
    tmp_path_factory.mktemp('page') / 'r',
    SECTIONS,
    headline=f'Layer 4 is it: {made.TOKENS[0]}',
    provenance={'model': '/a/rather/long/path' * 8, 'bytes': '\ud800'},
    command='me-jax explain ' + '--prompts=' + 'x' * 200,
    title='a model',
  )


@pytest.fixture(scope='module', name='solid')
def _solid(page, tmp_path_factory):
  return browse(page, tmp_path_factory.mktemp('s'), *SOLID, MOUSE, '--dump-dom')


@pytest.fixture(scope='module', name='flat')
def _flat(page, tmp_path_factory):
  return browse(page, tmp_path_factory.mktemp('f'), *FLAT, '--dump-dom')


def figures_of(dom: str) -> dict[str, str]:
  """Returns each figure's markup by its name."""
  parts = re.split(r'(?=<figure id=)', dom)[1:]
  return {re.search('id="figure-([^"]+)"', part)[1]: part for part in parts}


def state_of(dom: str) -> str:
  return re.search('<html[^>]*>', dom)[0]


def test_every_figure_is_drawn_and_nothing_is_complained_of(solid):
  dom, console = solid
  assert console == []
  assert 'data-drawn="all"' in state_of(dom)
  assert 'data-problem' not in state_of(dom), state_of(dom)
  drawn = figures_of(dom)
  assert list(drawn) == [figure.name for figure in ALL]
  for figure in ALL:
    markup = drawn[figure.name]
    assert 'data-drawn="live"' in markup
    # plotly gives each plot three layers of SVG, and 3-D ones a canvas.
    plots = re.split('class="plot(?: solid)? js-plotly-plot', markup)[1:]
    assert len(plots) == len(figure.panels)
    for panel, plot in zip(figure.panels, plots):
      assert 'class="main-svg"' in plot
      assert ('<canvas' in plot) == isinstance(panel, spec.Ridges)


def test_without_webgl_the_picture_stays(flat):
  dom, console = flat
  assert console == [] and 'data-problem' not in state_of(dom)
  drawn = figures_of(dom)
  for figure in ALL:
    solid = any(isinstance(panel, spec.Ridges) for panel in figure.panels)
    expected = 'still' if solid else 'live'
    assert f'data-drawn="{expected}"' in drawn[figure.name]
    assert ('class="live"' in drawn[figure.name]) == (not solid)


def test_no_button_sends_the_data_away(solid):
  titles = set(re.findall('data-title="([^"]*)"', solid[0]))
  assert len(titles) == 5 and 'Zoom' in titles
  assert not {title for title in titles if re.search('(?i)share|cloud', title)}


def test_text_from_tokenizers_shows_as_text(solid):
  dom, _ = solid
  strange = figures_of(dom)['strange']
  labels = [
    html.unescape(label)
    for label in re.findall(r'class="legendtext[^>]*>([^<]*)<', strange)
  ]
  # Inside SVG, no-break spaces hold spaces' places.
  assert [label.replace('\u00a0', ' ') for label in labels] == list(made.SEEN)
  assert '<b>' not in dom and '<a href="https' not in dom


# Chromium's window is never as narrow as a phone; a frame is. What stands
# beside the frame can look into it, and turn what is in it.
FRAME = """<body><iframe style="width:320px;height:640px;border:0"
srcdoc="{page}"></iframe><script>
const look = async () => {{
  const frame = document.querySelector('iframe');
  const root = frame.contentDocument.documentElement;
  if (root.dataset.drawn !== 'all') return setTimeout(look, 100);
  const seen = document.body.dataset;
  seen.width = root.scrollWidth;
  seen.columns = getComputedStyle(root.querySelector('#figure-bars .panels'))
    .gridTemplateColumns.split(' ').length;
  const [one, other] = root.querySelectorAll('#figure-wide .plot');
  const camera = {{eye: {{x: 2, y: 0.5, z: 0.25}}}};
  await frame.contentWindow.Plotly.relayout(one, {{'scene.camera': camera}});
  setTimeout(() => {{
    seen.eye = JSON.stringify(other.layout.scene.camera.eye);
    seen.problem = root.dataset.problem || 'none';
  }}, 1000);
}};
look();
</script></body>"""


@pytest.fixture(scope='module', name='phone')
def _phone(page, tmp_path_factory):
  folder = tmp_path_factory.mktemp('phone')
  frame = folder / 'frame.html'
  frame.write_text(
    FRAME.format(page=html.escape(page.read_text('utf-8'))), 'utf-8'
  )
  dom, _ = browse(frame, folder / 'profile', *SOLID, '--dump-dom')
  return html.unescape(re.search('<body[^>]*>', dom)[0])


def test_nothing_is_wider_than_a_phone(phone):
  assert 'data-width="320"' in phone, phone
  assert 'data-columns="1"' in phone, 'panels stand below each other'


def test_what_is_compared_turns_together(phone):
  assert 'data-eye="{"x":2,"y":0.5,"z":0.25}"' in phone, phone
  assert 'data-problem="none"' in phone


def test_paper_gets_the_pictures(page, tmp_path):
  pdf = tmp_path / 'page.pdf'
  browse(page, tmp_path / 'p', *SOLID, f'--print-to-pdf={pdf}')
  data = pdf.read_bytes()
  assert data.startswith(b'%PDF')
  # A picture a figure; plots would be paths instead.
  assert data.count(b'/Subtype /Image') >= len(ALL)
