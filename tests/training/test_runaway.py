"""Where a step is not finite, the rows that make it so are named."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from me_jax.training import examples
from me_jax.training import feed
from me_jax.training import packing
from me_jax.training import prepare
from me_jax.training import runaway
from tests.support import small_run


@pytest.fixture(scope='module', name='broken')
def _broken(small):
  """A model that knows no number for one letter."""
  plan = prepare.plan(small_run.run(small, held_out=()))
  placed = prepare.place(plan)
  (bad,) = plan.tokenizer.encode('z', add_special_tokens=False)
  frozen = placed.frozen
  table = frozen.params['embed_tokens']['embedding'].at[bad].set(np.nan)
  params = {**frozen.params, 'embed_tokens': {'embedding': table}}
  return plan, dataclasses.replace(placed, frozen=frozen.replace(params=params))


def message(broken, rows, **means):
  """Returns what is said of rows, each of some texts."""
  plan, placed = broken

  def example(text):
    ids = plan.tokenizer.encode(text, add_special_tokens=False)
    return examples.Example(np.array(ids, np.int32), np.ones(len(ids), bool))

  # As many rows always, for one program.
  packed = packing.lay_out([[*map(example, row)] for row in rows], plan.length)
  fed = feed.Fed(None, packed, 0, {})
  found = runaway.message(
    plan,
    placed,
    placed.state,
    fed,
    12,
    {'loss': float('nan'), 'grad_norm': 2.5} | means,
  )
  assert found.startswith('step 12 is not finite (loss nan, gradient 2.5)')
  assert found.endswith('nothing after the last checkpoint is kept.')
  return found


def test_a_row_is_named_by_its_place_and_how_it_begins(broken):
  rows = [['one'], ['ten two'], ['six'], ['four', 'fizz and more'], ['five']]
  found = message(broken, rows)
  assert "because of row 4 ('f o u r f i z z" in found
  assert 'row 1' not in found and 'more of its' not in found


def test_a_long_row_is_cut(broken):
  found = message(broken, [['one'], ['ab' * 20 + 'z'], ['a'], ['b'], ['c']])
  (shown,) = (part for part in found.split("'") if part.startswith('a b'))
  assert len(shown) == 60


def test_of_many_rows_three_are_named(broken):
  found = message(broken, [['za'], ['zb'], ['ab'], ['zc'], ['abz']])
  assert "row 1 ('z a'), row 2 ('z b'), row 4 ('z c') and 1 more of" in found
  assert 'row 5' not in found


@pytest.mark.parametrize('rows', [[['ab']] * 5, [['za']] * 5])
def test_where_none_or_all_are_to_blame_no_row_is(broken, rows):
  found = message(broken, rows)
  assert 'no single row is to blame: try a smaller optim.lr' in found
  assert 'because of' not in found


def test_padding_and_other_texts_are_no_fault(broken):
  """Of a row of two texts the sound one does not hide the other."""
  found = message(broken, [['ab', 'za'], ['a'], ['b'], ['c'], []])
  assert 'because of row 1 (' in found and 'row 5' not in found


def test_the_state_is_the_one_before(broken):
  """Gates that are no number make every row one that is not."""
  plan, placed = broken
  state = placed.state.replace(
    tree=jax.tree.map(lambda x: x * np.nan, placed.state.tree)
  )
  fine = dataclasses.replace(placed, state=state)
  assert 'no single row' in message((plan, fine), [['ab']] * 5)
