"""What is written down of each step, and told to who watches?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import time
from typing import Any

from me_jax.training import feed as feed_lib
from me_jax.training import flops
from me_jax.training import metrics as metrics_lib
from me_jax.training import optimizer as optimizer_lib
from me_jax.training import prepare as prepare_lib
from me_jax.training import settings as settings_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """What is told of a step.

  Attributes:
    step: steps done.
    steps: in all.
    loss: of the step, nats.
    rate: tokens a second since the last line, padding left out.
    left: seconds to go, if steps take what they took.
    mfu: model FLOPs utilisation; None where the device's peak is not known.
  """

  step: int
  steps: int
  loss: float
  rate: float
  left: float
  mfu: float | None


class Journal:
  """Writes a line on training every so many steps."""

  def __init__(
    self,
    plan: prepare_lib.Plan,
    metrics: metrics_lib.Metrics,
    tell: Callable[[Line], Any],
    step: int,
  ):
    """Starts the clock.

    Args:
      plan: of the run.
      metrics: to write to.
      tell: called with each line.
      step: steps done.
    """
    self._plan, self._run = plan, plan.run
    self._metrics, self._tell = metrics, tell
    self._rate = optimizer_lib.schedule(plan.run.optim, plan.run.steps)
    self._peak = flops.peak(plan.mesh.devices.flat[0])
    # A pair is two rows.
    texts = 2 if plan.run.method.kind == 'pairs' else 1
    self._needed = flops.of_step(
      plan.config,
      texts * settings_lib.rows(plan.run) * plan.length,
      plan.length,
      full='full' in plan.run.train.parts,
    )
    self._from = step
    self._tokens = self._earlier = 0
    self._start = time.monotonic()
    self._paused = 0.0

  def state(self) -> dict[str, Any]:
    """Returns what `restore` needs, as JSON types."""
    return {'tokens': self._tokens}

  def restore(self, state: dict[str, Any]) -> None:
    """Goes on from `state`: its tokens count, but were not seen just now."""
    self._tokens = self._earlier = state['tokens']

  def pause(self) -> float:
    """Returns a time to give to `go_on`: what is between is no training."""
    return time.monotonic()

  def go_on(self, since: float) -> None:
    """Takes out the time since `pause`."""
    self._paused += time.monotonic() - since

  def step(
    self, step: int, means: Mapping[str, float], fed: feed_lib.Fed
  ) -> None:
    """Notes a step; writes a line where one is due.

    Args:
      step: steps done.
      means: what the step returned.
      fed: its batch.
    """
    self._tokens += fed.tokens
    if step % self._run.log_every and step != self._run.steps:
      return
    seconds = max(time.monotonic() - self._start - self._paused, 1e-9)
    steps = step - self._from
    rate = (self._tokens - self._earlier) / seconds
    mfu = None
    if self._peak is not None:
      mfu = self._needed * steps / (seconds * self._peak * self._plan.mesh.size)
    self._metrics.write(
      'train',
      step,
      **means,
      **fed.about,
      # Of the step before it was counted.
      lr=float(self._rate(step - 1)),
      tokens=self._tokens,
      seconds=seconds,
      tokens_per_s=rate,
      mfu=mfu,
    )
    self._tell(
      Line(
        step=step,
        steps=self._run.steps,
        loss=means['loss'],
        rate=rate,
        left=(self._run.steps - step) * seconds / steps,
        mfu=mfu,
      )
    )
    self._from, self._tokens, self._earlier = step, 0, 0
    self._start, self._paused = time.monotonic(), 0.0
