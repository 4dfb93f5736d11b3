"""The documentation's pages as text: their blocks of code, links, headings."""

from __future__ import annotations

import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / 'docs'
_FENCE = re.compile(r'^( *)(`{3,})(\w*)[^\n]*\n(.*?)^\1\2 *$', re.M | re.S)
_CODE = re.compile(r'`[^`\n]*`')
_LINK = re.compile(r'\]\(<?([^)\s>]+)>?(?: "[^"]*")?\)')


class Block(NamedTuple):
  """A block of code.

  Attributes:
    line: of the page, where its code begins.
    code: what stands in it.
  """

  line: int
  code: str


def all_of_them() -> list[pathlib.Path]:
  """Returns every page, of the site and at the top."""
  top = ('README.md', 'CONTRIBUTING.md', 'BUILD_NOTES.md')
  pages = [ROOT / name for name in top if (ROOT / name).exists()]
  return pages + sorted(DOCS.rglob('*.md'))


def python_blocks(page: pathlib.Path) -> list[Block]:
  """Returns the page's blocks of Python, in order."""
  text = page.read_text()
  return [
    Block(text[: match.start(4)].count('\n'), match[4])
    for match in _FENCE.finditer(text)
    if match[3] == 'python'
  ]


def links(text: str) -> list[str]:
  """Returns where a page's links and pictures lead, code left out."""
  return _LINK.findall(_CODE.sub('', _FENCE.sub('', text)))
