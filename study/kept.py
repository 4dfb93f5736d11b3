"""What stays of a page whose steps were run elsewhere, or before?

A page is in the repository, the folders of its steps are not. What is run takes
the place of what a page says of the same steps; the others stay, with their
cards and answers. Two steps that a claim compares, and two of which one reads
what the other writes, come from one side, unless what is read is the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from me_jax import errors
from study import claims as claims_lib
from study import runner
from study import steps as steps_lib

Card = Mapping[str, Any]
_PAIRS = [(one.step, one.against) for one in claims_lib.CLAIMS if one.against]


def done(page: Mapping[str, Any] | None) -> dict[str, Card]:
  """Returns the cards of the steps that a page has results of."""
  cards = page['steps'] if page else {}
  return {
    name: cards[name]
    for name in steps_lib.NAMES
    if name in cards and cards[name]['status'] == runner.DONE
  }


def check(steps: Collection[str], page: Mapping[str, Any] | None) -> None:
  """Sees before any work that the steps can be run without others.

  Args:
    steps: which are run.
    page: the extract whose other steps stay; None has none.

  Raises:
    MeJaxError: one is missing.
  """
  there = done(page)
  for name in steps:
    if (needed := steps_lib.NEEDS.get(name)) and needed not in steps:
      raise errors.MeJaxError(
        f'{name} reads what {needed} writes: give both to --steps; what is done'
        ' is not run again.'
      )
  for pair in _PAIRS:
    for one, other in (pair, pair[::-1]):
      if one in steps and other in there and other not in steps:
        raise errors.MeJaxError(
          f'{one} is compared with {other}, which the page has from elsewhere:'
          ' give both to --steps; what is done is not run again.'
        )


def sides(
  made: Mapping[str, Card], page: Mapping[str, Any] | None
) -> tuple[dict[str, Card], set[str]]:
  """Says of each step whether the run or the page has its result.

  Args:
    made: cards of the steps that were run, however they ended.
    page: the extract.

  Returns:
    A card for each step, and the names of those whose results are the page's.
  """
  there = done(page)
  stay = {
    name for name in there if made.get(name, {}).get('status') != runner.DONE
  }

  def card(name: str) -> Card:
    if name in stay:
      return there[name]
    return made.get(name) or runner.not_run(name)

  while True:
    torn = [pair for pair in _PAIRS if len(stay.intersection(pair)) == 1]
    torn += [
      (name, needed)
      for name, needed in steps_lib.NEEDS.items()
      if _read_another(card(name), card(needed))
    ]
    more = {n for pair in torn for n in pair if n in there} - stay
    if not more:
      break
    stay |= more
  cards = {name: card(name) for name in steps_lib.NAMES}
  for name, needed in steps_lib.NEEDS.items():
    if _read_another(cards[name], cards[needed]):
      why = f'it has read what another {needed} wrote'
      cards[name] = runner.not_run(name, why)
      stay.discard(name)
  return cards, stay


def other(card: Card, than: Card) -> bool:
  """Whether two cards are of different runs of a step."""
  return any(card.get(n) != than.get(n) for n in ('started', 'result'))


def _read_another(card: Card, needed: Card) -> bool:
  """Whether a step has read something else than a run of another wrote."""
  both = {card['status'], needed['status']} == {runner.DONE}
  return both and card.get('after') != needed.get('result')
