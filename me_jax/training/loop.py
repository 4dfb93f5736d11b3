"""Runs a run: step after step, measured, saved, and stopped in time.

All that is written goes to one folder:

  run.json        the settings, compared when the run is resumed
  metrics.jsonl   what was measured, a line each
  checkpoints/    the newest ones and the best one
  held_out.json   what each held-out text lost at the start and lost at the end

Started again with the same settings it goes on after the newest checkpoint, and
every number is the one that an uninterrupted run would have had.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import dataclasses
import os
import pathlib
from typing import Any

import jax

from me_jax import errors
from me_jax import files
from me_jax.analysis import monitor as monitor_lib
from me_jax.checkpoints import load as load_lib
from me_jax.checkpoints import processes
from me_jax.mitigation import gates as gates_lib
from me_jax.training import checkpoints as checkpoints_lib
from me_jax.training import distributed
from me_jax.training import feed as feed_lib
from me_jax.training import held_out as held_out_lib
from me_jax.training import journal as journal_lib
from me_jax.training import judge as judge_lib
from me_jax.training import metrics as metrics_lib
from me_jax.training import prepare as prepare_lib
from me_jax.training import run_folder
from me_jax.training import runaway
from me_jax.training import settings as settings_lib
from me_jax.training import sharding as sharding_lib
from me_jax.training import step as step_lib
from me_jax.training import stopping

FINISHED, PATIENCE = 'finished', 'patience'
CHECKPOINTS, HELD_OUT = 'checkpoints', 'held_out.json'
_FINGERPRINT = 'fingerprint'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """What came out of a run.

  Attributes:
    step: steps done.
    resumed: steps that were done before; 0 where the run began anew.
    why: the run ended: `FINISHED`, `PATIENCE`, or what has stopped it, after
      which it can go on.
    chosen: the step whose parameters these are.
    tree: what was trained.
    before: what the held-out sets lost at the start.
    after: with these parameters; empty where the run can go on.
  """

  step: int
  resumed: int
  why: str
  chosen: int
  tree: Any
  before: judge_lib.Measured
  after: judge_lib.Measured

  @property
  def ended(self) -> bool:
    """Whether there is nothing left to do."""
    return self.why in (FINISHED, PATIENCE)


def train(
  plan: prepare_lib.Plan,
  placed: prepare_lib.Placed,
  folder: str | os.PathLike[str],
  *,
  tell: Callable[[journal_lib.Line], Any] | None = None,
  progress: Callable[[str, int, int], Any] | None = None,
  warn: Callable[[str], Any] | None = None,
) -> Result:
  """Trains.

  Args:
    plan: from `prepare.plan`.
    placed: from `prepare.place`; its state must not be used afterwards.
    folder: of the run; with several processes one that all of them share.
    tell: called with each line of the log.
    progress: called with what else is done, and how far it is.
    warn: called with what is odd and does not stop the run.

  Returns:
    What was trained, and what it does on the held-out sets.

  Raises:
    MeJaxError: the folder holds another run, a loss is not finite, or something
      cannot be written. Earlier checkpoints stay.
  """
  quiet = lambda *_: None  # noqa: E731
  tell, progress, warn = tell or quiet, progress or quiet, warn or quiet
  with contextlib.ExitStack() as stack:
    stack.enter_context(sharding_lib.use(plan.mesh, plan.rules))
    stack.enter_context(_opened(plan, placed, folder, warn))
    return _Loop(plan, placed, folder, stack, tell, progress, warn).run()


def check(plan: prepare_lib.Plan, folder: str | os.PathLike[str]) -> None:
  """Finds out whether a folder can be a run's before its weights are read.

  Args:
    plan: from `prepare.plan`.
    folder: of the run.

  Raises:
    MeJaxError: it holds another run, or something else.
  """

  def look() -> None:
    if distributed.is_writer() and run_folder.has_run(folder):
      config = settings_lib.to_json(plan.run)
      # Of the weights, which `train` compares.
      may_differ = (*settings_lib.FREE, _FINGERPRINT)
      run_folder.check(folder, config, may_differ=may_differ)

  processes.together(look)


@contextlib.contextmanager
def _opened(
  plan: prepare_lib.Plan,
  placed: prepare_lib.Placed,
  folder: str | os.PathLike[str],
  warn: Callable[[str], Any],
) -> Any:
  """Keeps others out of the folder, and finds out that it is this run's."""
  config = settings_lib.to_json(plan.run)
  config[_FINGERPRINT] = placed.fingerprint
  with contextlib.ExitStack() as stack:

    def open_it() -> list[str]:
      if not distributed.is_writer():
        return []
      # Nobody locks, or makes, what is no folder of a run.
      run_folder.has_run(folder)
      stack.enter_context(run_folder.lock(folder))
      if run_folder.has_run(folder):
        return run_folder.check(folder, config, may_differ=settings_lib.FREE)
      run_folder.write(folder, config)
      return []

    for difference in processes.together(open_it):
      warn(f'resumed with other settings: {difference}')
    yield


class _Loop:
  """A run and where it stands."""

  def __init__(
    self,
    plan: prepare_lib.Plan,
    placed: prepare_lib.Placed,
    folder: str | os.PathLike[str],
    stack: contextlib.ExitStack,
    tell: Callable[[journal_lib.Line], Any],
    progress: Callable[[str, int, int], Any],
    warn: Callable[[str], Any],
  ):
    """Prepares everything, and goes back to the newest checkpoint."""
    self.plan, self.placed, self.settings = plan, placed, plan.run
    self.folder = pathlib.Path(folder)
    settings = self.settings
    self.checkpoints = stack.enter_context(
      checkpoints_lib.Checkpoints(
        self.folder / CHECKPOINTS,
        keep=settings.checkpoint.keep,
        warn=warn,
      )
    )
    # Another run may have read on in the same plan.
    plan.batches.restart()
    self.judge = judge_lib.Judge(plan, placed.model, progress)
    # A reference is the model as it was before anything is restored.
    self.feed = feed_lib.make(plan, placed, progress)
    self.state, self.step, self.saved = placed.state, 0, None
    self.warn, self.progress = warn, progress
    extra = self._restore()
    self.resumed = self.step
    self.metrics = stack.enter_context(
      processes.together(
        lambda: metrics_lib.Metrics(
          folder,
          step=self.saved,
          tensorboard=settings.tensorboard,
          writer=distributed.is_writer(),
        )
      )
    )
    if self.saved is not None:
      self.metrics.write('resumed', self.step)
    self.watch = stack.enter_context(stopping.Watch())
    self.probes = None
    if settings.monitor_every:
      self.probes = monitor_lib.probes(
        load_lib.LoadedModel(placed.model, {}, plan.tokenizer, plan.config)
      )
    self.update = step_lib.jitted(
      placed.model, settings, placed.optimizer, placed.places, plan.mesh
    )
    self.compiled: Any = None
    self.journal = journal_lib.Journal(plan, self.metrics, tell, self.step)
    if extra is not None:
      self.journal.restore(extra['journal'])

  def run(self) -> Result:
    """Goes through the steps that are left."""
    if self.saved is None:
      self._begin()
    why = FINISHED
    while self.step < self.settings.steps:
      if self.judge.hopeless():
        why = PATIENCE
        break
      stopped = self.watch.requested(self.step)
      if stopped and self._between_batches():
        why = stopped
        break
      self._take_step()
    since = self.journal.pause()
    self._save(wait=True)
    self.journal.go_on(since)
    return self._result(why)

  def _begin(self) -> None:
    """Measures the model before the first step."""
    self.judge.before = self.judge.measure(self._params(), report=True)
    self.judge.write(self.metrics, 0, self.judge.before)
    self._monitor()
    loss = self.judge.compare(0, self.judge.before)
    if loss is not None and self.settings.evaluation.choose:
      self._save(metric=loss)

  def _take_step(self) -> None:
    """Takes a step, and does what is due after it."""
    settings = self.settings
    fed = self.feed(self.state, self.step)
    self.state, means = self._updated(fed)
    self.step += 1
    means = {name: float(value) for name, value in means.items()}
    if not means.pop('finite'):
      raise errors.MeJaxError(
        runaway.message(
          self.plan, self.placed, self.state, fed, self.step, means
        )
      )
    self.journal.step(self.step, means, fed)
    since = self.journal.pause()
    if self._due(settings.monitor_every):
      self._monitor()
    if self.plan.held_out and self._due(settings.evaluation.every):
      measured = self.judge.measure(self._params(), report=False)
      self.judge.write(self.metrics, self.step, measured)
      loss = self.judge.compare(self.step, measured)
      if loss is not None and settings.evaluation.choose:
        self._save(metric=loss)
    if self._due(settings.checkpoint.every) and self._between_batches():
      self._save()
    self.journal.go_on(since)

  def _updated(self, fed: feed_lib.Fed) -> tuple[Any, dict[str, Any]]:
    """Takes a step with a batch, by a program that the first one compiles."""
    operands = (self.state, self.placed.frozen, fed.batch)
    if self.compiled is None:
      since = self.journal.pause()
      self.progress('compiling', 0, 1)
      self.compiled = self.update.lower(*operands).compile()
      self.progress('compiling', 1, 1)
      self.journal.go_on(since)
    return self.compiled(*operands)

  def _due(self, every: int) -> bool:
    return bool(every) and self.step % every == 0

  def _between_batches(self) -> bool:
    """Says whether the next step begins with rows that are new.

    Answers of GRPO serve several steps and are not kept.
    """
    return self.step % settings_lib.updates(self.settings) == 0

  def _params(self) -> Any:
    return prepare_lib.merged(self.placed, self.settings, self.state.tree)

  def _monitor(self) -> None:
    """Looks at the ME Layer, and at the gates."""
    if self.probes is None:
      return
    try:
      readings = monitor_lib.monitor(
        self.placed.model, self._params(), self.probes
      ).to_json()
    except errors.MeJaxError as error:
      # A step with such parameters ends the run, and says more about it.
      self.warn(f'after step {self.step} there is no ME Layer to see: {error}')
      return
    if 'gates' in self.settings.train.parts:
      found = gates_lib.statistics(
        self.state.tree['gates'], self.settings.train.gates
      )
      readings['gates'] = {
        'layers': self.placed.frozen.gate_layers, **found._asdict()
      }  # fmt: skip
    self.metrics.write('monitor', self.step, **readings)

  def _save(self, metric: float | None = None, wait: bool = False) -> None:
    """Saves the run, unless it is saved as it is."""
    # What only one process writes ends all of them here.
    processes.together(self.metrics.check)
    if self.saved == self.step:
      self.checkpoints.wait()
      return
    extra = {
      'data': self.plan.batches.state(),
      'judge': self.judge.state(),
      'journal': self.journal.state(),
    }
    self.checkpoints.save(
      self.step, self.state, extra, metric=metric, wait=wait
    )
    self.saved = self.step

  def _restore(self) -> dict[str, Any] | None:
    """Goes back to the newest checkpoint; returns what was beside the state."""
    found = self.checkpoints.restore(self.state, self.placed.places)
    if found is None:
      return None
    # As the first step would: there may be no room for two states.
    jax.tree.map(lambda leaf: leaf.delete(), self.state)
    self.state, self.step, self.saved = found.state, found.step, found.step
    self.plan.batches.restore(found.extra['data'])
    self.judge.restore(found.extra['judge'])
    return found.extra

  def _result(self, why: str) -> Result:
    """Returns the step that is chosen, measured on all sets."""
    chosen, after = self.step, {}
    if why in (FINISHED, PATIENCE):
      if self.settings.evaluation.choose:
        best = self.checkpoints.restore_best(self.state, self.placed.places)
        if best is not None:
          self.state, chosen = best.state, best.step
        if chosen != self.judge.best.step:
          self.warn(
            f'the best step was {self.judge.best.step}, and its checkpoint is'
            f' lost: the result is step {chosen}'
          )
      after = self.judge.measure(self._params(), report=True)
      processes.together(lambda: self._write_texts(chosen, after))
    return Result(
      step=self.step,
      resumed=self.resumed,
      why=why,
      chosen=chosen,
      tree=self.state.tree,
      before=self.judge.before,
      after=after,
    )

  def _write_texts(self, chosen: int, after: judge_lib.Measured) -> None:
    """Writes every text's loss, so that two runs can be compared in pairs."""
    if not after or not distributed.is_writer():
      return
    sets = {
      name: {
        'before': held_out_lib.to_json(self.judge.before[name]),
        'after': held_out_lib.to_json(texts),
      }
      for name, texts in after.items()
    }
    files.write_json(self.folder / HELD_OUT, {'step': chosen, 'sets': sets})
