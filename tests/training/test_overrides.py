"""One field changes to what was written, or a line says why it cannot."""

from __future__ import annotations

import dataclasses
import math

import pytest

from me_jax import errors
from me_jax.training import data
from me_jax.training import overrides
from me_jax.training import settings

SOURCE = data.Source(data='a.jsonl')
RUN = settings.Run(
  data=settings.Data(mix=data.Mix(sources=(SOURCE, SOURCE))),
  method=settings.Grpo(),
  held_out=(
    settings.HeldOut(name='one', source=SOURCE),
    settings.HeldOut(name='two', source=SOURCE),
  ),
  epochs=1.0,
)


def at(run, path):
  """Returns what a path leads to."""
  for step in path.split('.'):
    run = run[int(step)] if step.isdecimal() else getattr(run, step)
  return run


def refusal(change, run=RUN):
  with pytest.raises(errors.MeJaxError) as caught:
    overrides.apply(run, [change])
  assert '\n' not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize(
  ('change', 'want'),
  [
    # Numbers.
    ('steps=30', 30),
    ('steps=1_000', 1000),
    ('optim.lr=1e-3', 1e-3),
    ('optim.lr=2', 2.0),
    ('held_out.0.limit=inf', math.inf),
    ('mesh.fsdp=-1', -1),
    # Booleans, as Python, JSON or a shell would have them.
    ('tensorboard=True', True),
    ('tensorboard=true', True),
    ('data.pack=FALSE', False),
    # Strings, with quotes or without, and such that look like numbers.
    ('model=some/model', 'some/model'),
    ("model='a b'", 'a b'),
    ("model=it's", "it's"),
    ('model=3', '3'),
    ('model=true', 'true'),
    ('model=None', 'None'),
    ('model=a=b', 'a=b'),
    ('model=', ''),
    # Tuples.
    ('train.parts=gates,lora', ('gates', 'lora')),
    ('train.parts= gates , lora ', ('gates', 'lora')),
    ("train.parts=('gates', 'full')", ('gates', 'full')),
    ("train.parts=['lora']", ('lora',)),
    ('train.parts=lora', ('lora',)),
    ('train.lora.targets=q_proj,o_proj', ('q_proj', 'o_proj')),
    ('held_out=()', ()),
    # One of several types.
    ('train.gates.layers=before', 'before'),
    ('train.gates.layers=3', (3,)),
    ('train.gates.layers=3,4', (3, 4)),
    ('train.gates.layers=(3, 4)', (3, 4)),
    ('mask.tokens=[0, 5]', (0, 5)),
    # Through tuples by place; None where it may be.
    ('held_out.1.name=three', 'three'),
    ('data.mix.sources.1.rows=0,100', (0, 100)),
    ('data.mix.sources.1.rows=(None, -24)', (None, -24)),
    ('data.mix.sources.0.rows=None', None),
    ('data.mix.sources.0.data=b.jsonl', 'b.jsonl'),
    ("data.mix.sources.0.data=('a', 'b')", ('a', 'b')),
    # In the settings of other packages.
    ('method.sampling.temperature=1', 1.0),
    (
      "method.sampling.rewards=(('maths', 1), ('format', 0.5))",
      (('maths', 1.0), ('format', 0.5)),
    ),
  ],
)
def test_a_field_becomes_what_is_written(change, want):
  path = change.partition('=')[0]
  changed = overrides.apply(RUN, [change])
  found = at(changed, path)
  assert found == want and type(found) is type(want)
  if isinstance(want, tuple):
    assert [*map(type, found)] == [*map(type, want)]
  # And nothing else: with the old value back it is the old run.
  parent, _, name = path.rpartition('.')
  owner, new = (at(run, parent) if parent else run for run in (RUN, changed))
  assert dataclasses.replace(new, **{name: getattr(owner, name)}) == owner


def test_later_changes_win_and_keep_earlier_ones():
  run = overrides.apply(RUN, ['optim.lr=1', 'optim.b1=0.5', 'optim.lr=3'])
  assert (run.optim.lr, run.optim.b1) == (3, 0.5)
  # A place that an earlier change has taken away is gone.
  with pytest.raises(errors.MeJaxError, match="'1' is none of the 0"):
    overrides.apply(RUN, ['held_out=()', 'held_out.1.name=a'])
  assert overrides.apply(RUN, []) is RUN
  assert RUN.optim == settings.Optimizer()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    # No change at all.
    ('optim.lr', 'is no change: write --set path=value'),
    ('=3', 'is no change'),
    # No such field; the nearest is named, and all that there are.
    ('optim.lrr=1', "no field 'lrr' (did you mean 'lr'?); it has lr, schedule"),
    ('otpim.lr=1', "Run has no field 'otpim' (did you mean 'optim'?)"),
    ('optim..lr=1', "no field ''"),
    ('steps.x=1', "'x' is below a value that has no fields"),
    ('held_out.2.name=a', "'2' is none of the 2"),
    ('held_out.-1.name=a', "'-1' is none of the 2"),
    ('held_out.name=a', "'name' is none of the 2"),
    # Fields that have fields.
    ('optim=3', 'name one of its fields, such as optim.lr'),
    ('held_out.0=3', 'name one of its fields, such as held_out.0.name'),
    # Other types.
    ('steps=1.5', "'1.5' does not fit, it must be a whole number"),
    ('steps=1e3', 'must be a whole number'),
    ('steps=true', 'must be a whole number'),
    ('steps=None', 'must be a whole number'),
    ('steps=', 'must be a whole number'),
    ('optim.lr=fast', 'must be a number'),
    ('optim.lr=True', 'must be a number'),
    ('optim.lr=nan', 'must be a number'),
    ('optim.lr=1,2', 'must be a number'),
    ('optim.lr={[]: 1}', 'must be a number'),
    ('optim.lr=' + '9' * 400, 'must be a number'),
    ('optim.lr=' + '(' * 9999, 'must be a number'),
    ('tensorboard=1', 'must be true or false'),
    ('tensorboard=yes', 'must be true or false'),
    ('train.parts=(1, 2)', 'must be a list of a string'),
    ("mask.layers=(3, 'a')", 'a string or a list of a whole number, such as'),
    ('model=(1, 2)', 'must be a string'),
    ('data.mix.sources.0.rows=5', 'or None'),
    ('data.mix.sources.0.rows=1,2,3', 'or None'),
    ('method.sampling.rewards=maths', 'must be a list'),
    # What the changed value itself refuses.
    ('method.sampling.answers=1', 'answers is 1, must be 2 or more'),
  ],
)
def test_what_cannot_be_is_refused_in_one_line(change, message):
  assert message in refusal(change)


def test_a_method_without_fields_says_so():
  run = dataclasses.replace(RUN, method=settings.Sft())
  assert 'Sft has no fields' in refusal('method=dpo', run)
  assert "Sft has no field 'beta'; it has none" in refusal('method.beta=1', run)


def test_paths_name_every_field_that_holds_no_others():
  found = overrides.paths(RUN)
  assert len(set(found)) == len(found)
  assert {
    'steps',
    'optim.lr',
    'train.gates.low',
    'method.sampling.rewards',
  } <= {*found}
  assert not any(dataclasses.is_dataclass(at(RUN, path)) for path in found)
  # Each takes what stands there, but for tuples of what has fields.
  for path in found:
    if path not in ('held_out', 'data.mix.sources'):
      assert overrides.apply(RUN, [f'{path}={at(RUN, path)!r}']) == RUN
