"""How is a report read? One HTML page that needs nothing but a browser.

Script, style, data and pictures are inside. A policy in the page's head forbids
every request, and every script but the two that are named by their hash, so
that text from a tokenizer could not act even if it were not escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
import hashlib
import importlib.util
import json
import os
import pathlib
import re
from typing import Any, NamedTuple

from me_jax import errors
from me_jax.plotting import interactive
from me_jax.plotting import spec
from me_jax.plotting.wording import in_html

_SIGNS = {
  'holds': '✓',
  'in part': '◐',
  'does not hold': '✗',
  'not tested': '–',
}
_NUMBER = re.compile(r'[+\-−]?[\d.,]+( ?[%×]|e[+-]?\d+)?$|-$|–$')
_HERE = pathlib.Path(__file__).parent


class Still(NamedTuple):
  """A figure as a picture, for paper and where nothing can be drawn.

  Attributes:
    png: the file's bytes.
    width: in CSS pixels.
    height: in CSS pixels.
  """

  png: bytes
  width: int
  height: int


def build(
  *,
  title: str,
  headline: str,
  sections: Sequence[spec.Section],
  stills: Mapping[str, Still],
  open_points: Sequence[str],
  provenance: Mapping[str, Any],
  command: str,
) -> str:
  """Returns the page.

  Args:
    title: of the page, such as the model's name.
    headline: the verdict in one sentence.
    sections: a claim each.
    stills: by figure name.
    open_points: what was looked for and not found, or not looked for.
    provenance: how the numbers were made; may be nested.
    command: that makes the page again.

  Raises:
    MeJaxError: plotly is not installed.
  """
  scripts = plotly_js(), (_HERE / 'page.js').read_text('utf-8')
  style = (_HERE / 'page.css').read_text('utf-8')
  hashes = ' '.join(
    f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
    for s in scripts
  )
  policy = (
    f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
  )
  parts = [
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
    f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    f'<title>{in_html(title)}</title>',
    f'<style>\n{style}</style>\n</head>\n<body>',
    f'<header><p>{in_html(title)}</p><h1>{in_html(headline)}</h1></header>',
    '<main>',
    _summary(sections),
    *(_section(section, stills) for section in sections),
    _open(sections, open_points),
    _provenance(provenance),
    _reproduce(command),
    '</main>',
    *(f'<script>{script}</script>' for script in scripts),
    '</body>\n</html>\n',
  ]
  return '\n'.join(parts)


def plotly_js() -> str:
  """Returns plotly.js from the plotly package, which is not imported.

  Raises:
    MeJaxError: it is not installed.
  """
  found = importlib.util.find_spec('plotly')
  for folder in found.submodule_search_locations or () if found else ():
    path = pathlib.Path(folder, 'package_data', 'plotly.min.js')
    if os.path.exists(path):
      return path.read_text('utf-8')
  raise errors.MeJaxError(
    'the page needs plotly.js, which is not installed: pip install plotly'
  )


def _badge(verdict: str) -> str:
  return (
    f'<span class="badge {verdict.replace(" ", "-")}">'
    f'<span aria-hidden="true">{_SIGNS[verdict]}</span> {verdict}</span>'
  )


def _summary(sections: Sequence[spec.Section]) -> str:
  rows = '\n'.join(
    f'<tr><td><a href="#{section.name}">{in_html(section.title)}</a>'
    f'<small>{in_html(section.claim)}</small></td>'
    f'<td>{_badge(section.verdict)}</td></tr>'
    for section in sections
  )
  return (
    '<section id="summary"><h2>The claims, and what this model shows</h2>\n'
    '<table class="summary"><thead><tr><th scope="col">claim</th>'
    '<th scope="col">here</th></tr></thead>\n'
    f'<tbody>{rows}</tbody></table></section>'
  )


def _section(section: spec.Section, stills: Mapping[str, Still]) -> str:
  said = (
    ('The claim', section.claim),
    ('What was measured', section.finding),
    ('Control', section.control),
  )
  parts = [
    f'<section id="{section.name}">',
    f'<h2>{in_html(section.title)} {_badge(section.verdict)}</h2>',
    '<dl class="claim">',
    *(f'<dt>{name}</dt><dd>{in_html(text)}</dd>' for name, text in said),
    '</dl>',
    *(_figure(figure, stills[figure.name]) for figure in section.figures),
    *(_table(table) for table in section.tables),
    '</section>',
  ]
  return '\n'.join(parts)


def _figure(figure: spec.Figure, still: Still) -> str:
  panels = interactive.draw(figure)
  last = len(figure.panels) - 1
  places = '\n'.join(
    f'<div class="panel{" wide" if figure.ends_wide and i == last else ""}">'
    f'<p>{in_html(panel.title)}</p>'
    f'<div class="plot{_height(panel)}"></div></div>'
    for i, panel in enumerate(figure.panels)
  )
  one = ' one' if len(panels) == 1 or figure.columns == 1 else ''
  alt, name = in_html(figure.alt), figure.name
  picture = base64.b64encode(still.png).decode()
  return f"""<figure id="figure-{name}">
<h3>{in_html(figure.title)}</h3>
<div class="panels{one}" role="img" aria-label="{alt}">
{places}
</div>
<img class="still" width="{still.width}" height="{still.height}" alt="{alt}"
 src="data:image/png;base64,{picture}">
<figcaption>{in_html(figure.caption)}
<span class="files">Files: <a href="figures/{name}.svg">SVG</a>,
<a href="figures/{name}.png">PNG</a>.</span></figcaption>
<script type="application/json">{_island(panels)}</script>
</figure>"""


def _height(panel: spec.Panel) -> str:
  """Returns the class of a panel that is not as high as most."""
  if isinstance(panel, spec.Ridges):
    return ' solid'
  return ' low' if isinstance(panel, spec.Chart) and panel.low else ''


def _island(value: Any) -> str:
  """Returns JSON that no HTML parser takes for anything else."""
  text = json.dumps(value, separators=(',', ':'), allow_nan=False)
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  return text


def _table(table: spec.Table) -> str:
  # A column of numbers is aligned as one, its head too.
  kinds = [
    ' class="number"' if all(map(_NUMBER.match, column)) else ''
    for column in zip(*table.rows)
  ] or [''] * len(table.header)
  head = ''.join(
    f'<th scope="col"{kind}>{in_html(name)}</th>'
    for name, kind in zip(table.header, kinds)
  )
  rows = '\n'.join(
    '<tr>'
    + ''.join(f'<td{k}>{in_html(c)}</td>' for c, k in zip(row, kinds))
    + '</tr>'
    for row in table.rows
  )
  caption = in_html(table.caption)
  return (
    # Apart from the table, which may be wider than the screen.
    f'<p class="caption">{caption}</p>\n'
    f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">'
    f'<table aria-label="{caption}"><thead><tr>{head}</tr></thead>\n'
    f'<tbody>{rows}</tbody></table></div>'
  )


def _open(sections: Sequence[spec.Section], open_points: Sequence[str]) -> str:
  lines = [
    f'<li><a href="#{section.name}">{in_html(section.title)}</a>: '
    f'{section.verdict}.</li>'
    for section in sections
    if section.verdict in ('does not hold', 'not tested')
  ]
  lines += [f'<li>{in_html(point)}</li>' for point in open_points]
  said = f'<ul>{"".join(lines)}</ul>' if lines else '<p>Nothing to report.</p>'
  return (
    '<section id="open"><h2>What was not found, or not tested</h2>\n'
    f'{said}</section>'
  )


def _provenance(provenance: Mapping[str, Any]) -> str:
  rows = ''.join(
    f'<dt>{in_html(name)}</dt><dd>{in_html(value)}</dd>'
    for name, value in _flat(provenance)
  )
  return (
    '<section id="provenance"><h2>How the numbers were made</h2>\n'
    f'<dl class="provenance">{rows}</dl></section>'
  )


def _flat(value: Mapping[str, Any], before: str = '') -> list[tuple[str, str]]:
  """Returns nested names joined, words apart, with their values."""
  result = []
  for name, item in value.items():
    name = before + str(name).replace('_', ' ')
    if isinstance(item, Mapping):
      result += _flat(item, f'{name}: ')
    else:
      result.append((name, str(item)))
  return result


def _reproduce(command: str) -> str:
  return (
    '<section id="reproduce"><h2>To make this page again</h2>\n'
    f'<pre><code>{in_html(command)}</code></pre>\n'
    '<p>Every number of this page is in <a href="report.json">report.json</a>; '
    'its figures are in the folder <code>figures</code> as SVG and '
    'PNG.</p></section>'
  )
