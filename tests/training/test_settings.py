"""Settings are kept as JSON, and impossible ones are refused in one line."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import pytest

from me_jax import errors
from me_jax.mitigation import gates
from me_jax.training import data
from me_jax.training import overrides
from me_jax.training import rollouts
from me_jax.training import settings
from me_jax.training import settings_check
from me_jax.training import trained

SOURCE = data.Source(data='a.jsonl')
DATA = settings.Data(mix=data.Mix(sources=(SOURCE,)), batch=12)


def run_of(**fields):
  return settings.Run(**{'data': DATA, 'steps': 5} | fields)


def held(**fields):
  return settings.HeldOut(**{'name': 'one', 'source': SOURCE} | fields)


def short(answer, row):
  del row
  return -len(answer)


RUNS = {
  'sft': run_of(),
  'dpo': run_of(method=settings.Dpo(reference='beside')),
  'grpo': run_of(
    method=settings.Grpo(
      sampling=rollouts.Settings(answers=3, rewards=((short, 1.0),))
    )
  ),
  'held out': run_of(held_out=(held(), held(name='two', limit=0.5))),
  'a path': run_of(model=pathlib.Path('some/model')),
  'lists': run_of(
    train=trained.Trained(gates=gates.Gates(layers=(1, 2), tokens=(0, 4)))
  ),
}


@pytest.mark.parametrize('name', RUNS)
def test_json_gives_back_what_was_written(name):
  content = settings.to_json(RUNS[name])
  assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_json_holds_every_field_by_its_path():
  run = RUNS['held out']
  content = settings.to_json(run)
  for path in overrides.paths(run):
    inner = content
    for step in path.split('.'):
      inner = inner[step]
  assert content['optim']['lr'] == run.optim.lr
  assert content['held_out'][0]['limit'] == 'inf'
  assert content['held_out'][1]['limit'] == 0.5
  assert content['data']['pack'] is True
  assert content['train']['parts'] == ['gates']


def test_runs_that_differ_have_other_json():
  texts = {json.dumps(settings.to_json(run)) for run in RUNS.values()}
  assert len(texts) == len(RUNS)
  # Methods of the same fields, functions of the same type.
  assert settings.to_json(RUNS['sft'])['method'] == {'name': 'Sft'}
  assert settings.to_json(RUNS['dpo'])['method']['name'] == 'Dpo'
  sampling = settings.to_json(RUNS['grpo'])['method']['sampling']
  assert sampling['rewards'] == [['short', 1.0]]
  assert settings.to_json(RUNS['a path'])['model'] == 'some/model'


def test_what_may_be_said_anew_are_fields():
  names = {field.name for field in dataclasses.fields(settings.Run)}
  assert names.issuperset(settings.FREE)
  # All else decides what comes out.
  assert not {'data', 'optim', 'seed', 'steps', 'compute'} & {*settings.FREE}


def test_rows_of_a_step():
  assert settings.rows(RUNS['sft']) == settings.rows(RUNS['dpo']) == 12
  assert settings.rows(RUNS['grpo']) == 12 * 3


@pytest.mark.parametrize('name', RUNS)
def test_sound_settings_pass(name):
  settings_check.check(RUNS[name])


def test_ends_of_ranges_pass():
  settings_check.check(
    run_of(
      steps=0,
      epochs=0.5,
      optim=settings.Optimizer(lr=0.0, warmup=0.0, end=1.0, b1=0.0, clip=0.0),
      compute=settings.Compute(parts=12, dtype='bfloat16', remat='dots'),
      held_out=(held(limit=0.0),),
      evaluation=settings.Evaluation(every=1, choose=True, patience=2),
      penalty=settings.Penalty(weight=0.1, form='squared'),
    )
  )
  settings_check.check(
    run_of(
      method=settings.Grpo(updates=2),
      held_out=(held(),),
      evaluation=settings.Evaluation(every=4, choose=True),
    )
  )


CHOOSE = settings.Evaluation(choose=True, every=2)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(steps=0), 'steps is 0 and epochs 0: one of them must be positive'),
    (dict(epochs=1.0), 'steps is 5 and epochs 1: one of them'),
    (dict(steps=-1), 'steps is -1 and epochs 0'),
    (dict(steps=-1, epochs=1.0), 'steps is -1 and epochs 1'),
    (dict(steps=0, epochs=math.inf), 'epochs is inf, must be from 0'),
    (dict(train=trained.Trained(parts=('gate',))), "no part 'gate' to train"),
    (dict(seed=-1), 'seed is -1, must be from 0 to below 2.14748e+09'),
    (dict(seed=2**31), 'seed is 2.14748e+09, must be from 0 to below'),
    (dict(monitor_every=-1), 'monitor_every is -1, must be from 0.'),
    (dict(log_every=0), 'log_every is 0, must be positive'),
    (
      dict(penalty=settings.Penalty(weight=-1.0)),
      'penalty.weight is -1, must be from 0.',
    ),
    (
      dict(
        penalty=settings.Penalty(weight=1.0),
        train=trained.Trained(parts=('lora',)),
      ),
      'penalty.weight is set, but no gates are trained',
    ),
    (dict(held_out=(held(), held())), "two held-out sets are called 'one'"),
    (
      dict(held_out=(held(kind='pair'),)),
      "kind of one is 'pair', must be one of texts, pairs (did you mean",
    ),
    (dict(held_out=(held(answers='first'),)), "answers of one is 'first'"),
    (
      dict(held_out=(held(limit=-0.1),)),
      'limit of one is -0.1, must be 0 or more',
    ),
    (dict(held_out=(held(limit=math.nan),)), 'limit of one is nan'),
    (dict(evaluation=CHOOSE), 'a held-out set is needed that is on task'),
    (
      dict(evaluation=CHOOSE, held_out=(held(on_task=False),)),
      'a held-out set is needed that is on task',
    ),
    (
      dict(evaluation=CHOOSE, held_out=(held(report=True),)),
      'not for the report alone',
    ),
    (
      dict(evaluation=settings.Evaluation(patience=1, every=1)),
      'or to stop, a held-out set is needed',
    ),
    (
      dict(evaluation=settings.Evaluation(choose=True), held_out=(held(),)),
      'or to stop, evaluation.every must be positive',
    ),
    (
      dict(method=settings.Dpo(reference='aside')),
      "method.reference is 'aside', must be one of stored, beside",
    ),
    (
      dict(method=settings.Grpo(updates=0)),
      'method.updates is 0, must be at least 1',
    ),
    (
      dict(
        method=settings.Grpo(updates=2),
        held_out=(held(),),
        evaluation=settings.Evaluation(every=3, choose=True),
      ),
      'evaluation.every is 3, must be a multiple of method.updates, 2',
    ),
  ],
)
def test_impossible_settings_are_refused(fields, message):
  with pytest.raises(errors.MeJaxError) as caught:
    settings_check.check(run_of(**fields))
  assert message in str(caught.value)


@pytest.mark.parametrize(
  ('part', 'field', 'values', 'message'),
  [
    ('optim', 'schedule', ['cosin'], "(did you mean 'cosine'?)"),
    ('compute', 'dtype', ['float16'], 'one of float32, bfloat16'),
    ('compute', 'remat', ['some'], 'one of none, full, dots'),
    ('data', 'answers', ['first'], 'one of last, all, whole'),
    ('optim', 'lr', [-1.0, math.inf, math.nan], 'must be from 0.'),
    ('optim', 'warmup', [-0.1, 1.0], 'must be from 0 to below 1.'),
    ('optim', 'end', [-0.1, 1.1], 'must be from 0'),
    ('optim', 'b1', [-0.1, 1.0], 'must be from 0 to below 1.'),
    ('optim', 'b2', [-0.1, 1.0], 'must be from 0 to below 1.'),
    ('optim', 'weight_decay', [-0.1, math.nan], 'must be from 0.'),
    ('optim', 'clip', [-1.0, math.nan], 'must be from 0.'),
    ('optim', 'eps', [0.0, -1.0, math.nan], 'must be positive'),
    ('data', 'batch', [0, -4], 'must be positive'),
    ('checkpoint', 'every', [-1], 'must be from 0.'),
    ('checkpoint', 'keep', [0], 'must be positive'),
    ('compute', 'parts', [0, -1], 'must be positive'),
    ('compute', 'parts', [5], 'a step of 12 rows cannot be divided into'),
    ('compute', 'attention_chunk', [0], 'must be positive'),
    ('compute', 'vocabulary_chunk', [0], 'must be positive'),
    ('evaluation', 'every', [-1], 'must be from 0.'),
    ('evaluation', 'patience', [-1], 'must be from 0.'),
    ('evaluation', 'batch', [0], 'must be positive'),
  ],
)
def test_impossible_values_of_parts_are_refused(part, field, values, message):
  for value in values:
    run = run_of()
    inner = dataclasses.replace(getattr(run, part), **{field: value})
    with pytest.raises(errors.MeJaxError) as caught:
      settings_check.check(dataclasses.replace(run, **{part: inner}))
    assert message in str(caught.value)
    assert f'{part}.{field}' in str(caught.value)
