"""What is an answer worth?

A reward is a pure function of an answer's text and of the row that its prompt was
read from. Some are here by name; any callable is one too. An answer is worth the
weighted sum of them.

Letter: B answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any, NamedTuple

import numpy as np

from me_jax import errors
from me_jax.evaluation import grader
from me_jax.evaluation import grading

Reward = Callable[[str, Any], float]
# Each a reward, or the name of one, and its weight.
Weighted = Sequence[tuple[str | Reward, float]]

# What may stand behind a box: the end of its formula, of its emphasis, or of
# its sentence.
_AFTER_A_BOX = re.compile(r'(?:[\s.$*%]|\\[\])%]|\\end\{\w+\*?\})*')
_MARKED = re.compile(r'####[ \t]*(-?\$?[ \t]*\d[\d,]*(?:\.\d+)?[%.]?)\s*\Z')


class Judged(NamedTuple):
  """What answers are worth.

  Attributes:
    rewards_B: float32, the weighted sums.
    parts: of each reward by name what it said, `[B]` float32, unweighted.
    failures: of each reward that raised (or returned no finite number), how
      often, and what it said first. Such an answer is worth 0 to it.
  """

  rewards_B: np.ndarray
  parts: dict[str, np.ndarray]
  failures: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rule:
  """A reward that has a name.

  Attributes:
    judge: the reward.
    check: raises MeJaxError for a row that cannot be judged, with its name.
  """

  judge: Reward
  check: Callable[[Any, str], None]


def maths(answer: str, row: Any) -> float:
  """Says 1 if the final answer is mathematically the row's, else 0.

  It is graded as in `me-jax evaluate` (math-verify), but that of an answer which
  ends in `#### n` only n counts; and in a process of its own that an answer may
  bring to hang or crash. Such an answer is wrong.

  Args:
    answer: all that the model said.
    row: see `gold`.
  """
  marked = _MARKED.search(answer)
  if marked:
    answer = marked[1]
  return float(grader.shared().is_right(answer, gold(row) or ''))


def answer_format(answer: str, row: Any) -> float:
  r"""Says 1 if the text ends in `\boxed{...}` or `#### n`, else 0."""
  del row
  if _MARKED.search(answer):
    return 1.0
  span = grading.last_box_span(answer)
  if span is None or not answer[slice(*span)].strip():
    return 0.0
  return float(bool(_AFTER_A_BOX.fullmatch(answer, span[1] + 1)))


def gold(row: Any) -> str | None:
  r"""Returns the right answer of a row, None if it has none.

  That is what stands after the last `####` of `answer` (GSM8K), else in its last
  box, else all of it if it is a number or one line (MATH-500, AIME); without an
  `answer` what stands in the last box of `solution` (MATH).
  """
  if not isinstance(row, Mapping):
    return None
  answer = row.get('answer')
  if isinstance(answer, int | float) and not isinstance(answer, bool):
    return str(answer) if math.isfinite(answer) else None
  found = None
  if isinstance(answer, str):
    _, mark, after = answer.rpartition('####')
    found = after if mark else grading.last_box(answer)
    # Several lines explain: no part of them is known to be the answer.
    if found is None and '\n' not in answer.strip():
      found = answer
  elif answer is None and isinstance(row.get('solution'), str):
    found = grading.last_box(row['solution'])
  return (found or '').strip() or None


def check(rewards: Weighted) -> None:
  """Raises MeJaxError for rewards that do not exist, or weights that are none."""
  if isinstance(rewards, str) or not rewards:
    raise errors.MeJaxError(
      f'rewards is {rewards!r}, must be pairs of a reward and its weight, such'
      " as (('maths', 1.0),)."
    )
  seen: set[str] = set()
  for entry in rewards:
    if isinstance(entry, str) or not _is_pair(entry):
      raise errors.MeJaxError(
        f'a reward is {entry!r}, must be a pair of a name (or a function) and a'
        ' weight.'
      )
    reward, weight = entry
    if isinstance(reward, str) and reward not in NAMED:
      raise errors.MeJaxError(
        f'there is no reward {reward!r}, only {", ".join(NAMED)}'
        f'{errors.nearest(reward, NAMED)}.'
      )
    if not isinstance(reward, str) and not callable(reward):
      raise errors.MeJaxError(
        f'the reward {reward!r} is neither a name nor a function.'
      )
    name = _name(reward)
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight):
      raise errors.MeJaxError(
        f'the weight of the reward {name} is {weight!r}, must be a number.'
      )
    if name in seen:
      raise errors.MeJaxError(
        f'two rewards are called {name}: one of them needs another name.'
      )
    seen.add(name)
  if not any(weight for _, weight in rewards):
    raise errors.MeJaxError('all rewards have the weight 0: nothing is learnt.')


def check_rows(
  rewards: Weighted, rows: Sequence[Any], names: Sequence[str] | None = None
) -> None:
  """Looks over rows before answers to them are sampled.

  Args:
    rewards: checked.
    rows: of prompts.
    names: of rows, for messages, such as `Record.where`.

  Raises:
    MeJaxError: a reward cannot judge a row (which one), or cannot work here.
  """
  rules = [NAMED[reward] for reward, _ in rewards if isinstance(reward, str)]
  if any(rule.judge is maths for rule in rules):
    grader.shared().start()
  for i, row in enumerate(rows):
    name = names[i] if names else f'prompt {i + 1} ({_shown(row)})'
    for rule in rules:
      rule.check(row, name)


def judge(
  rewards: Weighted, answers: Sequence[str], rows: Sequence[Any]
) -> Judged:
  """Says what answers are worth.

  A reward that raises costs the answer that reward, not the run; but one that
  raises for every answer is broken, and nothing would be learnt from it. A
  callable of yours that never returns is not ended: it must end by itself.

  Args:
    rewards: checked.
    answers: texts.
    rows: of their prompts, as many.

  Raises:
    MeJaxError: a reward raised for every answer.
  """
  total_B = np.zeros(len(answers), np.float64)
  parts: dict[str, np.ndarray] = {}
  failures: dict[str, str] = {}
  for reward, weight in rewards:
    name = _name(reward)
    function = NAMED[reward].judge if isinstance(reward, str) else reward
    part_B = np.zeros(len(answers), np.float32)
    failed = []
    for b, (answer, row) in enumerate(zip(answers, rows, strict=True)):
      try:
        value = float(function(answer, row))
        if not math.isfinite(value):
          raise ValueError(f'it returned {value}')
      except errors.MeJaxError:
        raise
      # It is anybody's code.
      except Exception as error:
        failed.append(f'{type(error).__name__}: {error}')
        continue
      part_B[b] = value
    if failed:
      failures[name] = f'{len(failed)} of {len(answers)} ({failed[0]})'
      if len(failed) == len(answers):
        raise errors.MeJaxError(
          f'the reward {name} fails for every answer ({failed[0]}).'
        )
    parts[name] = part_B
    total_B += weight * part_B
  return Judged(total_B.astype(np.float32), parts, failures)


def _is_pair(entry: Any) -> bool:
  return isinstance(entry, Sequence) and len(entry) == 2


def _name(reward: str | Reward) -> str:
  """Returns what a reward is called in metrics and messages."""
  if isinstance(reward, str):
    return reward
  return getattr(reward, '__name__', type(reward).__name__)


def _shown(row: Any) -> str:
  """Returns enough of a row to find it by."""
  text = row
  if isinstance(row, Mapping):
    text = next((v for v in row.values() if isinstance(v, str)), row)
  return f'{text!r:.60}'


def _needs_gold(row: Any, name: str) -> None:
  if gold(row) is None:
    raise errors.MeJaxError(
      f'{name}: the reward maths needs the right answer: an "answer" that is'
      ' short or ends in "#### ...", or a "solution" with a \\boxed{...}.'
    )


NAMED: dict[str, _Rule] = {
  'maths': _Rule(judge=maths, check=_needs_gold),
  'format': _Rule(judge=answer_format, check=lambda row, name: None),
}
