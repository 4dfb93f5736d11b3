"""Runs that go on, and what is kept of an item."""

from __future__ import annotations

import json

import pytest

pytest.importorskip('lm_eval', reason='needs the extra [eval]')

import me_jax  # noqa: E402
from me_jax.evaluation import run  # noqa: E402

ABOUT = {'model': 'm', 'weights': {'stock': 'a'}, 'rows': {'gsm8k': 'b'}}
WHO = ['stock', 'mitigated']


@pytest.mark.parametrize(
  ('change', 'named'),
  [
    ({'weights': {'stock': 'z'}}, 'weights'),
    ({'rows': {'gsm8k': 'z'}}, 'rows'),
    ({'limit': 3}, 'limit'),
  ],
)
def test_a_run_about_something_else_is_refused(tmp_path, change, named):
  run.claim(tmp_path, ABOUT, WHO, anew=False)
  run.claim(tmp_path, ABOUT, WHO, anew=False)
  with pytest.raises(me_jax.MeJaxError, match=f'another {named}:'):
    run.claim(tmp_path, ABOUT | change, WHO, anew=False)
  assert json.loads((tmp_path / 'run.json').read_text()) == ABOUT


def test_a_folder_is_looked_at_before_all_is_known(tmp_path):
  known = {name: ABOUT[name] for name in ('model', 'rows')}
  run.check(tmp_path, known, anew=False, unknown=['weights'])
  assert not list(tmp_path.iterdir())
  run.claim(tmp_path, ABOUT, WHO, anew=False)
  run.check(tmp_path, known, anew=False, unknown=['weights'])
  with pytest.raises(me_jax.MeJaxError, match='another model:'):
    run.check(tmp_path, known | {'model': 'n'}, anew=False, unknown=['weights'])
  run.check(tmp_path, known | {'model': 'n'}, anew=True, unknown=['weights'])
  assert json.loads((tmp_path / 'run.json').read_text()) == ABOUT


def test_only_what_a_run_wrote_is_forgotten(tmp_path):
  run.claim(tmp_path, ABOUT, WHO, anew=False)
  theirs = tmp_path / 'prompts.jsonl'
  ours = [tmp_path / name for name in ('t_stock.jsonl', 'answers_stock.db')]
  for path in (theirs, *ours):
    path.write_text('{}\n')
  run.claim(tmp_path, ABOUT | {'seed': 1}, WHO, anew=True)
  assert theirs.exists() and not any(path.exists() for path in ours)


@pytest.mark.parametrize('text', ['[]', 'no JSON', ''])
def test_a_note_that_is_none_of_ours_is_another_run(tmp_path, text):
  (tmp_path / 'run.json').write_text(text)
  with pytest.raises(me_jax.MeJaxError, match='holds a run with another'):
    run.claim(tmp_path, ABOUT, WHO, anew=False)
  run.claim(tmp_path, ABOUT, WHO, anew=True)
  assert json.loads((tmp_path / 'run.json').read_text()) == ABOUT


def test_answers_may_hold_any_character(tmp_path):
  rows = [
    {'item': i, 'answer': f'one{end}two'}
    for i, end in enumerate(('\u2028', '\u2029', '\x85', '\r', '\n', '\x0b'))
  ]
  path = tmp_path / 't_stock.jsonl'
  assert run.kept(path) is None
  assert run.keep(path, rows) == run.kept(path)
  assert list(run.kept(path).values()) == rows


def sample(item, kind, **values):
  return {
    'doc_id': item, 'target': '4', 'filter': kind,
    'arguments': [('asked', {})], 'resps': [['said']],
    'metrics': list(values), **values,
  }  # fmt: skip


def test_each_way_of_looking_at_an_answer_is_a_metric():
  found = run._items(
    [
      sample(0, 'strict', exact_match=0.0),
      sample(1, 'strict', exact_match=1.0),
      sample(0, 'flexible', exact_match=1.0),
      sample(1, 'flexible', exact_match=1.0),
    ],
    ['exact_match'],
  )
  assert [row['item'] for row in found] == [0, 1]
  assert found[0]['metrics'] == {
    'exact_match, strict': 0.0, 'exact_match, flexible': 1.0
  }  # fmt: skip


def test_only_means_over_items_are_kept():
  (row,) = run._items([sample(0, 'none', acc=1.0, perplexity=-534.0)], ['acc'])
  assert row['metrics'] == {'acc': 1.0}
  assert (row['prompt'], row['target'], row['answer']) == ('asked', '4', 'said')
