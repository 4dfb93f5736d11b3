"""A search leaves out what cannot be, and finds what nothing beats."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from me_jax import errors
from me_jax.planning import cached
from me_jax.planning import guess
from me_jax.planning import search
from me_jax.planning import topology
from me_jax.training import settings
from me_jax.training import sharding
from tests.support import plans

EIGHT = topology.find('h100x8')


def of(peak, best, worst, **changes):
  planned = dataclasses.replace(
    cached_entry(), peak=peak, best=best, worst=worst, **changes
  )
  return search.Tried(
    run=plans.run_of(),
    guess=guess.Guess(state=0, activations=0, seconds=0),
    planned=planned,
  )


def cached_entry():
  return cached.planned_lib.Planned(
    name='step', topology='x', devices=1, hbm=100, parameters=0, optimizer=0,
    peak=0,
  )  # fmt: skip


def test_the_front_is_what_nothing_beats():
  tried = [
    of(50, 1, 3),  # 2 s
    of(60, 1, 2),  # 1.5 s
    of(55, 2, 4),  # beaten by the first in both
    of(50, 1, 4),  # beaten in time
    of(200, 0, 1),  # does not fit
    of(40, 4, 6),
    of(10, 0, 0, refused='no'),
    dataclasses.replace(of(1, 1, 1), planned=None, error='no mesh'),
  ]
  assert search.front(tried) == (1, 0, 5)


def test_ranked_settings_divide_the_devices_the_model_and_the_batch():
  found, left_out = search.ranked(plans.run_of(), plans.CONFIG, EIGHT)
  assert found
  assert left_out['does not divide the model or the batch']
  for one in found:
    mesh = dataclasses.asdict(one.run.mesh)
    assert math.prod(mesh.values()) == 8
    rows = 4 // one.run.compute.parts
    assert 4 % one.run.compute.parts == 0
    assert rows % (mesh['data'] * mesh['fsdp']) == 0
    # Four heads and 48 neurons.
    assert 4 % mesh['tensor'] == 0
  assert len({(one.run.mesh, one.run.compute) for one in found}) == len(found)


def test_the_runs_own_settings_are_tried_first():
  run = plans.run_of(
    mesh=settings.Mesh(data=2, tensor=2),
    compute=settings.Compute(remat='full', attention_chunk=7),
  )
  found, _ = search.ranked(run, plans.CONFIG, EIGHT)
  assert found[0].run.compute == run.compute
  assert found[0].run.mesh == settings.Mesh(data=2, fsdp=2, tensor=2)


def test_what_has_no_room_for_its_state_is_not_compiled():
  run = plans.run_of()
  everything = guess.totals(run, plans.CONFIG).tree * 4
  # Cut into four or eight parts it has room.
  place = plans.with_memory(EIGHT, everything // 4)
  found, left_out = search.ranked(run, plans.CONFIG, place)
  assert left_out['its state alone is too large']
  for one in found:
    mesh = one.run.mesh
    assert mesh.fsdp * mesh.tensor * mesh.sequence >= 4


def test_guesses_go_the_right_way():
  run = plans.run_of()
  totals = guess.totals(run, plans.CONFIG)

  def of_(mesh, **compute):
    sizes = dict.fromkeys(sharding.MESH_AXES, 1) | mesh
    settings_ = settings.Compute(**compute)
    return guess.of(totals, plans.CONFIG, settings_, sizes, EIGHT)

  whole, cut = of_({'data': 8}), of_({'fsdp': 8})
  assert whole.state == pytest.approx(8 * cut.state, rel=0.01)
  policies = [
    of_({'fsdp': 4, 'tensor': 2}, remat=remat).activations
    for remat in ('full', 'dots_no_batch', 'dots', 'none')
  ]
  assert policies == sorted(policies)
  assert len(set(policies)) == 4
  one, four = (of_({'fsdp': 2, 'data': 4}, parts=n) for n in (1, 4))
  assert four.activations < one.activations
  assert four.seconds > one.seconds


def test_no_more_are_compiled_than_was_asked_for(monkeypatch):
  asked = plans.compile_nothing(monkeypatch)
  found = search.search(plans.run_of(), plans.CONFIG, plans.ONE, most=3)
  assert asked == ['step'] * 3
  assert len(found.tried) == 3
  assert found.own
  # Each needs a little more memory than the one before it.
  assert found.front == (0,)
  assert found.left_out['ranked lower'] > 0
  content = json.loads(json.dumps(search.to_json(found)))
  assert content['tried'][0]['step']['fits']
  assert content['tried'][0]['mesh'] == {'fsdp': 1}


def test_what_fits_nowhere_is_said():
  place = plans.with_memory(plans.ONE, 10)
  run = plans.run_of(mesh=settings.Mesh(fsdp=3))
  with pytest.raises(errors.MeJaxError, match='no mesh of h100x1'):
    search.search(run, plans.CONFIG, place)
