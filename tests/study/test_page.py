"""Does the committed page say what its extracts say, and nothing else?"""

from __future__ import annotations

import ast
import inspect
import pathlib
import re

import pytest

from study import claims
from study import page as page_lib
from study import words

_ROOT = pathlib.Path(page_lib.__file__).parents[1]
_PAGE = _ROOT / page_lib.PAGE
# Names that hold digits: of the paper, intervals, sets, hashes and steps.
_NAMES = r'arXiv 2605\.08504|95 %|GSM8K|MATH-500|C4|WikiText-2|SHA-256|token5'
_written = pytest.mark.skipif(not _PAGE.is_file(), reason='no page yet')


@_written
def test_the_page_is_what_its_extracts_say():
  folder = page_lib.folder_of(_PAGE).name
  assert _PAGE.read_text() == page_lib.render(page_lib.read(_PAGE), folder)


@_written
def test_figures_of_the_page_are_there_and_small():
  figures = re.findall(r'\]\((study/.*?\.png)\)', _PAGE.read_text())
  assert figures
  for name in figures:
    assert (_PAGE.parent / name).stat().st_size <= 200_000


@_written
def test_the_page_and_its_extracts_hold_no_path_of_a_machine():
  for path in (_PAGE, *page_lib.folder_of(_PAGE).glob('*.json')):
    # A slash that nothing precedes begins an absolute path.
    found = re.findall(r'(?<![\w.\\)/<])/[a-z]\w*/\S*', path.read_text())
    assert not found


@pytest.mark.parametrize('module', [words, claims], ids=['words', 'claims'])
def test_templates_hold_no_numbers(module):
  for node in ast.walk(ast.parse(inspect.getsource(module))):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      assert not re.search(r'\d', re.sub(_NAMES, '', node.value)), node.value
