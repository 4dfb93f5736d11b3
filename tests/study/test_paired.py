"""Which run is better, and does a baked mask do what the mask does?"""

from __future__ import annotations

import json

import pytest

from study import paired
from tests.support import study_steps


def _run(folder, after, *, sets=('GSM8K',), texts=10, choosing=()):
  folder.mkdir()
  tokens = [10.0 + i for i in range(texts)]

  def lost(rates):
    rates = rates if isinstance(rates, list) else [rates] * texts
    loss = [rate * count for rate, count in zip(rates, tokens)]
    return {'loss_N': loss, 'tokens_N': tokens, 'rejected_N': None}

  values = {name: {'before': lost(2.0), 'after': lost(after)} for name in sets}
  (folder / 'held_out.json').write_text(json.dumps({'sets': values}))
  about = [
    {'name': name, 'on_task': name != 'C4', 'report': name not in choosing}
    for name in sets
  ]
  (folder / 'run.json').write_text(json.dumps({'config': {'held_out': about}}))
  return folder


@pytest.mark.parametrize(
  ('ours', 'verdict'),
  [
    (1.4, 'holds'),
    (1.6, 'does not hold'),
    ([1.3, 1.65] * 5, 'does not hold'),
  ],
)
def test_the_verdict_is_the_whole_interval_s(tmp_path, ours, verdict):
  run = _run(tmp_path / 'run', ours)
  control = _run(tmp_path / 'control', 1.5)
  found = paired.runs('gates', run, control)
  assert found['verdict'] == verdict
  assert found['runs'][0]['control'] == pytest.approx(1.5)
  assert found['control'] and found['claim']


@pytest.mark.parametrize(
  ('rate', 'verdict', 'said'),
  [
    (1.4, 'in part', 'is better on A.'),
    (1.3, 'does not hold', 'is better on A and worse on B.'),
  ],
)
def test_one_set_better_is_in_part_unless_another_is_worse(
  tmp_path, rate, verdict, said
):
  run = _run(tmp_path / 'run', 1.4, sets=('A', 'B'))
  control = _run(tmp_path / 'control', 1.5, sets=('A', 'B'))
  path = control / 'held_out.json'
  values = json.loads(path.read_text())
  lost = values['sets']['B']['after']
  lost['loss_N'] = [rate * count for count in lost['tokens_N']]
  path.write_text(json.dumps(values))
  found = paired.runs('gates', run, control)
  assert found['verdict'] == verdict
  assert found['finding'].endswith(said)
  # What an extract keeps says the same again, whatever it has said.
  kept = json.loads(json.dumps(found))
  assert paired.again('gates', kept | {'verdict': 'holds'}) == kept


def test_what_may_have_chosen_the_step_does_not_count(tmp_path):
  sets = {'sets': ('A', 'B'), 'choosing': ('A',)}
  found = paired.runs(
    'gates',
    _run(tmp_path / 'run', 1.4, **sets),
    _run(tmp_path / 'control', 1.5, **sets),
  )
  assert [row['set'] for row in found['runs']] == ['B']
  # Where there is nothing else it is better than nothing.
  sets['choosing'] = ('A', 'B')
  found = paired.runs(
    'gates',
    _run(tmp_path / 'run2', 1.4, **sets),
    _run(tmp_path / 'control2', 1.5, **sets),
  )
  assert [row['set'] for row in found['runs']] == ['A', 'B']


def test_texts_off_the_task_do_not_decide(tmp_path):
  run = _run(tmp_path / 'run', 1.4, sets=('C4',))
  control = _run(tmp_path / 'control', 1.5, sets=('C4',))
  assert paired.runs('gates', run, control)['verdict'] == 'not tested'


def test_other_texts_are_no_pairs(tmp_path):
  run = _run(tmp_path / 'run', 1.4)
  control = _run(tmp_path / 'control', 1.5, texts=9)
  assert paired.runs('gates', run, control) is None


def test_a_set_of_other_texts_is_named_and_left_out(tmp_path):
  sets = ('A', 'B')
  run = _run(tmp_path / 'run', 1.4, sets=sets)
  control = _run(tmp_path / 'control', 1.5, sets=sets)
  path = control / 'held_out.json'
  content = json.loads(path.read_text())
  for losses in content['sets']['B'].values():
    losses['tokens_N'][0] += 1
  path.write_text(json.dumps(content))
  found = paired.runs('gates', run, control)
  assert [row['set'] for row in found['runs']] == ['A']
  assert found['control'].endswith('and so not compared: B.')


def test_a_set_with_a_comma_in_its_name_is_one_in_a_list(tmp_path):
  sets = ('A', 'A, answers')
  run = _run(tmp_path / 'run', 1.4, sets=sets)
  control = _run(tmp_path / 'control', 1.5, sets=sets)
  found = paired.runs('gates', run, control)['finding']
  assert found.endswith('better on A and A (answers).')


def _baked(plain, apart=(0.001, 0.001)):
  change = {n: study_steps.estimate(-0.1) for n in ('loss', 'answer')}
  change['kl'] = study_steps.estimate(0.1)
  return paired.baked(
    {
      'changes': {'chosen': {'A': change, 'B': change}},
      'baked': {
        name: {'loss': study_steps.estimate(x)} for name, x in plain.items()
      },
      'baked_kl': dict(zip('AB', apart)),
    }
  )


@pytest.mark.parametrize(
  ('plain', 'verdict'),
  [
    ({'A': -0.1, 'B': -0.095}, 'holds'),
    ({'A': -0.1, 'B': 0.0}, 'in part'),
    ({'A': 0.1, 'B': 0.0}, 'does not hold'),
  ],
)
def test_a_baked_mask_is_held_to_the_masks_interval(plain, verdict):
  assert _baked(plain)['verdict'] == verdict


@pytest.mark.parametrize(
  ('apart', 'verdict'),
  [
    ((0.009, 0.009), 'holds'),
    ((0.009, 0.02), 'in part'),
    ((0.02, 0.02), 'does not hold'),
  ],
)
def test_a_baked_mask_that_is_far_from_the_mask_is_not_held_by_chance(
  apart, verdict
):
  found = _baked({'A': -0.1, 'B': -0.1}, apart)
  assert found['verdict'] == verdict
  kept = json.loads(json.dumps(found))
  assert paired.again('baked', kept | {'verdict': 'other'}) == kept


def test_without_a_baked_model_there_is_nothing_to_say():
  assert paired.baked({'changes': {}, 'baked': None}) is None
