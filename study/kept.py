"""What stays of a page whose steps were run elsewhere?

A page is in the repository, the folders of its steps are not. Where some steps
are run again, the others stay on the page as they are, with their cards and
answers, as long as they still belong to what was run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from me_jax import errors
from study import claims as claims_lib
from study import runner
from study import steps as steps_lib

Extract = Mapping[str, Any]


def done(page: Extract) -> list[str]:
  """Returns the steps that a page has results of."""
  cards = page['steps'].items()
  return [name for name, card in cards if card['status'] == runner.DONE]


def torn(page: Extract, here: Collection[str]) -> list[str]:
  """Returns the steps of a page that cannot stay.

  They were compared with one that is here anew, and only what both have left in
  their folders could be.

  Args:
    page: the extract.
    here: the steps that are not taken from the page.
  """
  gone = set()
  for claim in claims_lib.CLAIMS:
    both = {claim.step, claim.against} - {None}
    if both & set(here):
      gone |= both - set(here)
  return [name for name in done(page) if name in gone]


def check_read(page: Extract, made: Extract, stay: Sequence[str]) -> None:
  """Sees that steps which stay have read what the steps here have written.

  Args:
    page: the extract that they stay from.
    made: the new one.
    stay: which.

  Raises:
    MeJaxError: a step answers otherwise than it did on the page.
  """
  for name in stay:
    needed = steps_lib.NEEDS.get(name)
    if needed is None or needed in stay:
      continue
    for claim in claims_lib.CLAIMS:
      before, now = (one['claims'][claim.name] for one in (page, made))
      if claim.step == needed and _numbers(before) != _numbers(now):
        raise errors.MeJaxError(
          f'{needed} now answers otherwise than on the page, whose {name} has'
          f' read what it had written: run {name}, too, or give another --page.'
        )


def _numbers(answer: Extract) -> Extract:
  """Returns an answer without its figures, which are copied later."""
  return {name: part for name, part in answer.items() if name != 'figures'}
