"""The section on what the model can do says what was measured, and no more."""

from __future__ import annotations

import json

import pytest

pytest.importorskip('lm_eval', reason='needs the extra [eval]')

from me_jax.evaluation import compare  # noqa: E402
from me_jax.evaluation import losses  # noqa: E402
from me_jax.evaluation import tasks  # noqa: E402
from me_jax.plotting import static  # noqa: E402
from me_jax.plotting.sections import evaluation  # noqa: E402

SAME, MORE, LESS = (0.5, 0.5), (0.2, 0.6), (0.6, 0.2)


def one(task, shares, at=0, items=200):
  metric = tasks.TASKS[task].metrics[at]
  stock, other = (
    {i: float(i < share * items) for i in range(items)} for share in shares
  )
  return compare.compare(task, metric, stock, other)


def kept(safe=SAME):
  return [one('mmlu', SAME), one('xstest', safe), one('xstest', SAME, 1)]


@pytest.mark.parametrize(
  ('found', 'verdict'),
  [
    ([one('ifeval', MORE), one('gsm8k', SAME), *kept()], 'holds'),
    ([one('ifeval', SAME), one('gsm8k', MORE), *kept()], 'holds'),
    # Only a half of the gains was looked for.
    ([one('ifeval', MORE), *kept()], 'in part'),
    # It refuses more of what is safe.
    ([one('ifeval', MORE), one('gsm8k', SAME), *kept(safe=MORE)], 'in part'),
    ([one('ifeval', MORE), one('gsm8k', LESS), *kept()], 'in part'),
    # Whether it keeps the rest was not measured.
    ([one('ifeval', MORE)], 'in part'),
    ([one('ifeval', SAME), *kept()], 'does not hold'),
    ([one('ifeval', LESS), *kept()], 'does not hold'),
    # Nothing that the claim says more of.
    (kept(), 'not tested'),
  ],
)
def test_the_verdict_is_about_the_claim(found, verdict):
  section = evaluation.section(found, {}, {})
  assert section.verdict == verdict
  assert evaluation.section(found, {}, {}, 'few items').verdict == 'not tested'
  static.draw(section.figures[0])
  json.dumps(section.numbers)


def test_a_better_loss_alone_shows_nothing_of_the_claim():
  loss = compare.compare(
    'loss C4', losses.METRIC, dict.fromkeys(range(9), 2.0),
    dict.fromkeys(range(9), 1.9),
  )  # fmt: skip
  section = evaluation.section([loss], {'loss C4': 'loss, C4'}, {})
  assert loss.verdict == 'better' and section.verdict == 'not tested'
  assert 'Better: loss, C4 (-0.100 (-0.100 to -0.100)).' in section.finding
  row = section.tables[0].rows[0]
  assert row[2].startswith('2.000 (') and row[4].startswith('-0.100 (')


def test_a_warning_comes_first_and_shares_are_in_percent():
  section = evaluation.section(
    [one('gsm8k', MORE)], {'gsm8k': 'GSM8K'}, {}, 'These are no scores.'
  )
  assert section.finding.startswith(
    'These are no scores. Better: GSM8K (+40.0 points'
  )
  assert section.tables[0].rows[0][2].startswith('20.0 % (')
