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


_NUMBER = r'(?<![\w.,-])[+-]?\d[\d,]*(?:\.\d+)?(?![\w,-]*[A-Za-z])'


def _numbers(text):
  """Returns numbers by how they are written; a minus may be typeset."""
  text = re.sub(r'\]\(.*?\)', '', text.replace('−', '-'))
  return {n.strip('+,'): float(n.strip('+,').replace(',', ''))
          for n in re.findall(_NUMBER, text)}  # fmt: skip


def _quotes():
  """Returns what README quotes of the page: a row or sentence, and its claim."""
  text = (_ROOT / 'README.md').read_text()
  rows = [line for line in text.splitlines() if line.startswith('|')]
  prose = '\n'.join('' if n.startswith('|') else n for n in text.splitlines())
  sentences = re.split(r'(?<=[.:])\s+(?=[A-Z`\[])|\n\n', prose)
  return [
    (part, name)
    for part in (*rows, *sentences)
    for name in re.findall(r'docs/study\.md#([\w-]+)', part)
  ]


@_written
@pytest.mark.parametrize(('part', 'name'), _quotes())
def test_what_readme_quotes_is_on_the_page(part, name):
  page = _PAGE.read_text()
  section = page.split(f'<a id="{name}"></a>')[1].split('<a id=')[0]
  there = list(_numbers(section).values())
  there += [100 * x for x in there]  # README may say it in per cent
  quoted = _numbers(part)
  for written, value in quoted.items():
    digits = len(written.partition('.')[2])
    near = 0.5001 * 10.0**-digits
    assert any(abs(abs(x) - abs(value)) <= near for x in there), written
  assert quoted
  if part.startswith('|'):
    verdict = part.split('|')[2].strip()
    assert f'**{verdict}' in section.lower().replace('holds in part', 'in part')


@_written
def test_the_table_of_masks_in_readme_is_the_pages():
  readme = (_ROOT / 'README.md').read_text()
  table = readme.split('| change of loss, nats per token |')[1].split('\n\n')[0]
  rows = table.splitlines()[2:]
  section = _PAGE.read_text().split('<a id="mitigation"></a>')[1]
  assert len(rows) > 5
  for row in rows:
    assert row in section.split('<a id=')[0].splitlines()


@_written
def test_tasks_that_were_not_run_are_named_beside_the_verdict():
  (study,) = page_lib.read(_PAGE)
  study |= {'tasks_left_out': ['IFEval']}

  def section():
    page = page_lib.render([study], 'study')
    return page.split('<a id="ability"></a>')[1].split('<a id=')[0]

  assert 'Not run here: IFEval.' in section()
  study['tasks_left_out'] = []
  assert 'Not run here' not in section()
