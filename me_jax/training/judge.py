"""Is a step better than those before, on rows that nothing was learnt from?"""

from __future__ import annotations

from collections.abc import Callable
import hashlib
from typing import Any

from me_jax import errors
from me_jax.models import decoder
from me_jax.training import choosing
from me_jax.training import held_out as held_out_lib
from me_jax.training import metrics as metrics_lib
from me_jax.training import prepare as prepare_lib

Measured = dict[str, held_out_lib.Texts]


class Judge:
  """Measures the held-out sets of a run and keeps the best step.

  Attributes:
    before: what the sets lost before the first step.
    best: the best step so far.
  """

  def __init__(
    self,
    plan: prepare_lib.Plan,
    model: decoder.Decoder,
    progress: Callable[[str, int, int], Any],
  ):
    """Compiles nothing yet.

    Args:
      plan: of the run.
      model: the decoder.
      progress: called with what is done, and how far it is.
    """
    self._plan, self._progress = plan, progress
    self._sets = [one.settings for one in plan.held_out]
    self._score: Any = None
    if plan.held_out:
      most = max(one.most for one in plan.held_out)
      self._score = held_out_lib.scorer(model, plan.run, plan.mesh, most)
    self.before: Measured = {}
    self.best = choosing.Best()

  def measure(self, params: decoder.Params, *, report: bool) -> Measured:
    """Scores the sets.

    Args:
      params: of the model.
      report: also those that are for the report alone.
    """
    sets = [s for s in self._plan.held_out if report or not s.settings.report]
    measured = {}
    for done, one in enumerate(sets):
      self._progress('measuring held-out rows', done, len(sets))
      measured[one.name] = held_out_lib.measure(
        one,
        self._score,
        params,
        self._plan.mesh,
        self._plan.rules,
        self._plan.run.evaluation.batch,
      )
    if sets:
      self._progress('measuring held-out rows', len(sets), len(sets))
    return measured

  def write(
    self, metrics: metrics_lib.Metrics, step: int, measured: Measured
  ) -> None:
    """Writes down what the sets lose after `step` steps."""
    sets = {}
    for name, texts in measured.items():
      found = held_out_lib.estimate(texts)
      sets[name] = {
        'loss': found.value, 'low': found.low, 'high': found.high,
        'tokens': int(texts.tokens_N.sum()), 'texts': len(texts.tokens_N),
      }  # fmt: skip
      if step:
        change = held_out_lib.change(self.before[name], texts)
        sets[name] |= {
          'change': change.value,
          'change_low': change.low,
          'change_high': change.high,
        }
      if texts.rejected_N is not None:
        sets[name]['correct'] = held_out_lib.correct(self.before[name], texts)
    if sets:
      metrics.write('held_out', step, sets=sets)

  def compare(self, step: int, measured: Measured) -> float | None:
    """Compares a step with the best one so far.

    Args:
      step: steps done.
      measured: what the sets lose.

    Returns:
      The loss on task where the step is the best one now; else None.
    """
    if not any(s.on_task and not s.report for s in self._sets):
      return None
    losses, start = (
      {name: held_out_lib.loss(texts) for name, texts in some.items()}
      for some in (measured, self.before)
    )
    loss = choosing.loss(self._sets, losses)
    kept = not choosing.exceeded(self._sets, start, losses)
    self.best = choosing.updated(self.best, step, loss, kept)
    return loss if self.best.step == step and kept else None

  def hopeless(self) -> bool:
    """Says whether so many evaluations were no better that the run may end."""
    patience = self._plan.run.evaluation.patience
    return bool(patience) and self.best.waited >= patience

  def state(self) -> dict[str, Any]:
    """Returns what `restore` needs, as JSON types."""
    return {
      'sets': self._digests(),
      'best': self.best.to_json(),
      'before': {
        name: held_out_lib.to_json(texts) for name, texts in self.before.items()
      },
    }

  def restore(self, state: dict[str, Any]) -> None:
    """Goes on from `state`.

    Raises:
      MeJaxError: a set holds other rows now.
    """
    other = [k for k, v in self._digests().items() if state['sets'].get(k) != v]
    if other:
      raise errors.MeJaxError(
        f'the run was saved with other rows of {" and ".join(other)}: they'
        ' cannot be compared with those of now. Bring them back, or name another'
        ' folder.'
      )
    self.best = choosing.Best(**state['best'])
    self.before = {
      name: held_out_lib.from_json(content)
      for name, content in state['before'].items()
    }

  def _digests(self) -> dict[str, str]:
    """Returns a name for the rows of each set."""
    found = {}
    for one in self._plan.held_out:
      digest = hashlib.blake2b(digest_size=8)
      for packed in one.packed:
        for values in packed:
          digest.update(values.tobytes())
      found[one.name] = digest.hexdigest()
    return found
