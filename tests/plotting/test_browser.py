"""The page in a real browser: drawn, silent, readable on a phone and on paper."""

from __future__ import annotations

import html
import http.server
import json
import pathlib
import queue
import re
import shutil
import subprocess
import threading

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
# beside the frame can look into it, and turn what is in it. It looks in real
# time, which skipped time would run away from, and sends what it sees.
FRAME = """<body><iframe style="width:320px;height:640px;border:0"
srcdoc="{page}"></iframe><script>
const until = async (holds) => {{
  for (let i = 0; i < 1000 && !holds(); i++)
    await new Promise((resolve) => setTimeout(resolve, 100));
}};
const look = async () => {{
  const frame = document.querySelector('iframe');
  const root = () => frame.contentDocument.documentElement;
  await until(() => root().dataset.drawn === 'all');
  const [one, other] = root().querySelectorAll('#figure-wide .plot');
  const eye = {{x: 2, y: 0.5, z: 0.25}};
  await frame.contentWindow.Plotly.relayout(one, {{'scene.camera': {{eye}}}});
  await until(() => other.layout.scene.camera.eye.x === eye.x);
  const panels = root().querySelector('#figure-bars .panels');
  return {{
    width: root().scrollWidth,
    columns: getComputedStyle(panels).gridTemplateColumns.split(' ').length,
    eye: other.layout.scene.camera.eye,
    problem: root().dataset.problem || 'none',
  }};
}};
look().catch((error) => ({{problem: String(error)}})).then((seen) =>
  fetch('seen', {{method: 'POST', body: JSON.stringify(seen)}}));
</script></body>"""


def look(page: str, profile: pathlib.Path) -> dict:
  """Opens a page, and returns what it sends as soon as it does."""
  seen = queue.Queue()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.answer(page.encode() if self.path == '/' else b'')

    def do_POST(self):
      length = int(self.headers['Content-Length'])
      seen.put(json.loads(self.rfile.read(length)))
      self.answer(b'')

    def answer(self, body: bytes) -> None:
      self.send_response(200)
      self.send_header('Content-Type', 'text/html; charset=utf-8')
      self.send_header('Content-Length', str(len(body)))
      self.end_headers()
      self.wfile.write(body)

    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  flags = [flag for flag in FLAGS if 'virtual-time' not in flag]
  browser = subprocess.Popen(
    [
      BROWSER, *flags, *SOLID, f'--user-data-dir={profile}',
      # Without it the browser opens the page and ends.
      '--remote-debugging-port=0', f'http://127.0.0.1:{server.server_port}/',
    ],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )  # fmt: skip
  try:
    return seen.get(timeout=300)
  finally:
    browser.terminate()
    browser.wait()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='module', name='phone')
def _phone(page, tmp_path_factory):
  return look(
    FRAME.format(page=html.escape(page.read_text('utf-8'))),
    tmp_path_factory.mktemp('phone'),
  )


def test_nothing_is_wider_than_a_phone(phone):
  assert phone['width'] == 320, phone
  assert phone['columns'] == 1, 'panels stand below each other'


def test_what_is_compared_turns_together(phone):
  assert phone['eye'] == {'x': 2, 'y': 0.5, 'z': 0.25}, phone
  assert phone['problem'] == 'none'


def test_paper_gets_the_pictures(page, tmp_path):
  pdf = tmp_path / 'page.pdf'
  browse(page, tmp_path / 'p', *SOLID, f'--print-to-pdf={pdf}')
  data = pdf.read_bytes()
  assert data.startswith(b'%PDF')
  # A picture a figure; plots would be paths instead.
  assert data.count(b'/Subtype /Image') >= len(ALL)
