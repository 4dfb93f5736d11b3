"""Benchmarks: what is kept, what is shown, and what a failure does.

Nothing is measured here, and no bar is judged: that is for a quiet machine.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re

from PIL import Image
import pytest

from benchmarks import __main__ as bench_main
from benchmarks import figure
from benchmarks import page
from benchmarks import plan
from benchmarks import processes
from benchmarks import results
from benchmarks import rows
from benchmarks import sections
from benchmarks import workers
from me_jax import errors

SPEED = {'gflops': 100.0, 'gbytes': 10.0}


def timed(what='`find`', bar=0.7):
  pairs = [[1.0, 2.0], [3.0, 4.0], [1.0, 4.0]]
  return rows.compared(what, 's', pairs, better='less', bar=bar)


def record(*measured):
  return results.record(
    [row.to_json() for row in measured],
    command='python -m benchmarks',
    load_average=0.125,
    speed=SPEED,
    packages=('numpy', 'no-such-package'),
  )


def planned(what, met=True):
  row = {'what': what, 'measured': '7.1 of 16', 'met': met, 'bar': 'fits'}
  return record() | {'rows': [row]}


@pytest.fixture
def found():
  return {
    'sections': {'whole_process': record(timed())},
    'plans': {'grpo': planned('fits?')},
  }


@pytest.fixture
def fake(monkeypatch):
  """Makes sections that measure nothing: one works, one misses, one fails."""

  def works(bench):
    """Works."""
    yield timed(f'in {bench.rounds} rounds')

  def misses(bench):
    """Misses."""
    yield timed('slow', bar=0.1)

  def fails(bench):
    """Fails."""
    yield timed('half of it')
    bench.run('benchmarks.no_such_module')

  known = {one.__name__: one for one in (fails, works, misses)}
  monkeypatch.setattr(sections, 'SECTIONS', known)
  monkeypatch.setattr(processes.Bench, 'work', lambda *_: SPEED)


# What is in the repository.


def test_the_page_is_what_the_results_render_to():
  assert page.PAGE.read_text('utf-8') == page.render(results.load(results.DOCS))


def test_the_figure_draws_the_results():
  expected = figure.points(page.peers(results.load(results.DOCS)))
  if not expected:
    assert not page.FIGURE.exists()
    return
  with Image.open(page.FIGURE) as image:
    assert json.loads(image.text[figure.KEY]) == expected


def test_readme_has_the_table_that_the_results_render_to():
  text = page.README.read_text('utf-8')
  table = page.readme(results.load(results.DOCS))
  assert text == page.replaced(text, table)


def test_every_record_is_of_something_that_can_be_measured_again():
  kept = results.load(results.DOCS)
  assert set(kept['sections']) <= set(sections.SECTIONS)
  assert set(kept['plans']) <= set(plan.BARS)


def test_every_worker_that_a_section_names_is_there():
  tree = ast.parse(inspect.getsource(sections))
  named = set()
  for call in [n for n in ast.walk(tree) if isinstance(n, ast.Call)]:
    called = call.func.attr if isinstance(call.func, ast.Attribute) else ''
    if called in ('work', 'worker') and isinstance(call.args[0], ast.Constant):
      named.add(call.args[0].value)
    if isinstance(call.func, ast.Name) and call.func.id == '_rates':
      named |= {f'{side}_{call.args[1].value}' for side in ('jax', 'torch')}
  for text in [n for n in ast.walk(tree) if isinstance(n, ast.JoinedStr)]:
    before, *after = text.values
    if isinstance(before, ast.FormattedValue) and after:
      # Others are words of a table, and the pattern of `_rates`.
      if re.fullmatch('_[a-z]+', after[0].value):
        named |= {side + after[0].value for side in ('jax', 'torch')}
  for names in [n for n in ast.walk(tree) if isinstance(n, ast.Tuple)]:
    first = names.elts[0]
    if isinstance(first, ast.Constant) and str(first.value).endswith('_train'):
      named.add(first.value)
  known = workers.every()
  assert len(named) > 20 and named <= set(known), named - set(known)
  # And none is there that no section names.
  assert set(known) - named <= {'model_folder', 'speed'}


# Rows.


def test_a_row_has_the_median_of_the_rounds_ratios():
  row = timed()
  assert (row.ours, row.other) == (1.0, 4.0)
  # The median of 0.5, 0.75 and 0.25, and not the ratio of the medians.
  assert row.ratio == 0.5
  assert row.spread == (0.25, 0.75) and row.rounds == 3


@pytest.mark.parametrize(
  ('better', 'bar', 'met'),
  [('less', 0.5, True), ('less', 0.49, False), ('more', 0.5, True),
   ('more', 0.51, False), ('less', None, None)],
)  # fmt: skip
def test_a_bar_is_met_up_to_its_own_value(better, bar, met):
  assert rows.ratios('x', [0.5], better=better, bar=bar).met is met


def test_a_bar_of_a_row_without_another_side_is_for_ours():
  row = rows.alone('screen', 's', [4.0, 6.0, 5.0], better='less', bar=4.5)
  assert row.ours == 5.0 and row.ratio is None and row.met is False


def test_rows_survive_json():
  assert rows.Row.from_json(
    json.loads(json.dumps(timed().to_json()))
  ) == dataclasses.replace(timed(), spread=[0.25, 0.75])


# Results.


def test_a_record_says_where_and_with_what(found):
  one = found['sections']['whole_process']
  assert one['machine']['cores'] >= 1 and one['machine']['memory'] > 0
  assert set(one['versions']) == {'python', 'numpy'}
  assert one['rows'][0]['met'] is True


def test_a_section_replaces_its_own_rows_only(tmp_path):
  path = tmp_path / 'b.json'
  for name in ('forward', 'loading'):
    results.put(path, 'sections', name, record(timed('old')))
  results.put(path, 'plans', 'grpo', planned('old'))
  results.put(path, 'sections', 'loading', record(timed('new')))
  kept = results.load(path)
  names = {n: r['rows'][0]['what'] for n, r in kept['sections'].items()}
  assert names == {'forward': 'old', 'loading': 'new'}
  assert kept['plans']['grpo']['rows'][0]['what'] == 'old'


@pytest.mark.parametrize('text', ['{', '[]', '{"other": 1}'])
def test_another_file_is_refused(tmp_path, text):
  (tmp_path / 'b.json').write_text(text)
  with pytest.raises(errors.MeJaxError, match=r'b\.json'):
    results.load(tmp_path / 'b.json')


# The page.


def test_the_page_shows_rows_and_their_origin(found):
  text = page.render(found)
  line = '| `find` | 1 s | 4 s | 0.5 | 3 | 0.25 to 0.75 | ≤ 0.7 | met |'
  assert line in text
  assert '100 GFLOP/s' in text and 'load average before 0.12' in text
  assert '| fits? | 7.1 of 16 | fits | met |' in text
  assert '**2 of 2 bars are met.**' in text
  assert 'benchmarks.png' in text


def test_the_page_names_missed_bars(found):
  found['sections']['whole_process'] = record(timed(bar=0.4))
  found['plans']['8b'] = planned('8B', met=False)
  text = page.render(found)
  assert '**1 of 3 bars are met.** Missed:\n\n- `find`\n- 8B\n' in text
  assert text.count('**missed**') == 2


def test_a_row_without_a_bar_is_neither_met_nor_missed(found):
  found['sections']['whole_process'] = record(timed(bar=None))
  assert '**1 of 1 bars' in page.render(found)


def test_readme_shows_rows_with_pytorch_beside_them(found):
  itself = rows.counted('64 against 8 layers', 'MB', 1.0, 1.0)
  found['sections']['whole_process'] = record(timed(), itself)
  table = page.readme(found)
  assert '| `find` | 1 s | 4 s | 0.5 |' in table and 'layers' not in table


def test_a_table_goes_between_the_marks_of_readme():
  text = f'before\n{page.BEGIN}\nold\n{page.END}\nafter\n'
  new = page.replaced(text, '| new |\n')
  assert new == f'before\n{page.BEGIN}\n| new |\n{page.END}\nafter\n'
  for broken in ('', page.BEGIN, f'{page.END}{page.BEGIN}', text + text):
    with pytest.raises(errors.MeJaxError, match='benchmarks'):
      page.replaced(broken, '')


def test_the_figure_turns_ratios_so_that_more_is_better():
  fast = rows.compared('x', '/s', [[4, 1]], better='more', bar=2)
  one, other = figure.points([timed(bar=0.8), fast])
  assert one == {
    'what': '`find`', 'factor': 2.0, 'spread': [1.333, 4.0], 'bar': 1.25,
  }  # fmt: skip
  assert other['factor'] == 4.0 and other['bar'] == 2.0


def test_the_figure_is_written_and_goes_with_its_rows(tmp_path):
  path = tmp_path / 'f.png'
  figure.write([timed()], path)
  with Image.open(path) as image:
    assert json.loads(image.text[figure.KEY]) == figure.points([timed()])
  figure.write([], path)
  assert not path.exists()


# The commands.


def test_a_section_that_fails_tells_why_and_the_others_go_on(
  fake, tmp_path, capfd
):
  path = tmp_path / 'b.json'
  results.put(path, 'sections', 'fails', record(timed('former')))
  assert bench_main.main([f'--json={path}', 'fails', 'works']) == 1
  out, err = capfd.readouterr()
  assert 'No module named benchmarks.no_such_module' in err
  assert 'fails' in out and 'in 3 rounds' in out and 'half' not in out
  kept = results.load(path)['sections']
  assert kept['fails']['rows'][0]['what'] == 'former'
  assert kept['works']['rows'][0]['what'] == 'in 3 rounds'


def test_a_missed_bar_is_in_the_exit_status(fake, tmp_path):
  flag = f'--json={tmp_path / "b.json"}'
  assert bench_main.main([flag, '--rounds=2', 'works']) == 0
  assert bench_main.main([flag, 'misses']) == 1


def test_quick_runs_are_one_round_without_bars(fake, tmp_path, monkeypatch):
  monkeypatch.setattr(results, 'DOCS', tmp_path / 'docs.json')
  path = tmp_path / 'b.json'
  flags = ['--quick', 'works', 'misses']
  assert bench_main.main(flags) == 0
  assert not results.DOCS.exists()
  assert bench_main.main([*flags, f'--json={path}']) == 0
  kept = results.load(path)['sections']
  assert kept['misses']['rows'][0]['met'] is None
  assert kept['works']['rows'][0]['what'] == 'in 1 rounds'


@pytest.mark.parametrize(
  'wrong', ['nonsense', '--rounds=0', '--json=/no/such/folder/f']
)
def test_mistakes_are_told_before_any_work(fake, monkeypatch, capsys, wrong):
  monkeypatch.setattr(results, 'load_average', lambda: 1 / 0)
  if wrong.startswith('--json'):
    monkeypatch.setattr('os.access', lambda *_: False)
  assert bench_main.main([wrong]) == 2
  _, err = capsys.readouterr()
  assert err.startswith('benchmarks: ') and err.count('\n') == 1


def test_the_end_of_what_a_worker_printed_is_its_result():
  done = processes.Done(wall=0, peak=0, output='noise\n{"rate": 2}\n')
  assert done.value == {'rate': 2}
  with pytest.raises(processes.Failed):
    _ = processes.Done(wall=0, peak=0, output='').value


# Plans.


@pytest.fixture
def compiler(monkeypatch):
  """Makes a compiler that fails for one bar and misses another."""

  def run(arguments, **env):
    if arguments[-1] == 'speed':
      assert env == {'JAX_PLATFORMS': 'cpu'}
      value = SPEED
    elif arguments[-1] == 'rows':
      raise processes.Failed('no memory')
    else:
      row = planned('step', met=arguments[-1] != '8b')['rows'][0]
      value = {'rows': [row], 'memory': 3 * 2**30}
    return processes.Done(wall=60, peak=1, output=json.dumps(value))

  monkeypatch.setattr(processes, 'run', run)
  monkeypatch.setattr(plan.importlib.util, 'find_spec', lambda name: name)


def test_bars_of_plans_replace_their_own_rows(compiler, tmp_path, capsys):
  path = tmp_path / 'b.json'
  results.put(path, 'plans', 'rows', planned('former'))
  assert plan.main([f'--json={path}', 'grpo', 'layers']) == 0
  assert plan.main([f'--json={path}', '8b']) == 1
  assert plan.main([f'--json={path}', 'rows']) == 1
  assert 'rows failed: no memory' in capsys.readouterr().err
  kept = results.load(path)['plans']
  assert set(kept) == {'rows', 'grpo', 'layers', '8b'}
  assert kept['rows']['rows'][0]['what'] == 'former'
  memory = kept['8b']['rows'][-1]
  assert memory['measured'] == '3.0 GiB' and memory['met'] is True
  assert kept['8b']['command'].endswith('8b')


def test_mistakes_about_plans_are_told_in_a_line(compiler, monkeypatch, capsys):
  assert plan.main(['nonsense']) == 2
  assert 'no bar' in capsys.readouterr().err
  monkeypatch.setattr(plan.importlib.util, 'find_spec', lambda name: None)
  assert plan.main(['grpo']) == 2
  assert capsys.readouterr().err.count('\n') == 1
