"""`me-jax evaluate`: what can the model do, mitigated and stock?"""

from __future__ import annotations

from collections.abc import Sequence
import os
import pathlib
from typing import Any

from absl import flags as absl_flags

from me_jax import errors
from me_jax.cli import compared
from me_jax.cli import evaluate_flags
from me_jax.cli import flags as flags_lib
from me_jax.cli import session

HELP = """\
Runs tasks on the stock model and on the mitigated one, item by item the same,
and says whether they differ. The paper's six (gsm8k, math500, aime24, ifeval,
mmlu, xstest) and the losses of right answers (loss) are put and graded as the
report says; any other name is a task of lm-evaluation-harness. Without --data a
few samples are used that come with me_jax, which give no scores: for those,
--data=DIR --full. A run that was stopped goes on where it was, with the same
flags."""

_REPORT = 'report'
_LOSS, _WEIGHTS = 'loss', 'weights'
_SMOKE_TOKENS = 96


def define(flags: absl_flags.FlagValues) -> None:
  """Declares the verb's flags."""
  evaluate_flags.define(flags)


def run(flags: absl_flags.FlagValues) -> None:
  """Runs the verb."""
  # lm-eval's own bars would tear ours.
  os.environ.setdefault('TQDM_DISABLE', '1')
  _check_installed()
  from me_jax.cli import evaluate_table
  from me_jax.evaluation import compare
  from me_jax.evaluation import run as run_lib
  from me_jax.evaluation import tasks as tasks_lib
  from me_jax.models import params as params_lib
  from me_jax.plotting import report as report_lib

  if os.path.isfile(flags.out):
    raise errors.MeJaxError(f'--out={flags.out} is a file: name a folder.')
  folder = _folder(flags)
  limit = flags.limit or (None if flags.full else 8)
  most = flags.max_new_tokens or (None if flags.full else _SMOKE_TOKENS)
  configurations, corpora = _tasks(flags, folder, most, limit)
  report_lib.check_target(os.path.join(flags.out, _REPORT))
  about = _about(flags, folder, configurations, corpora, limit, most)
  run_lib.check(flags.out, about, anew=flags.anew, unknown=[_WEIGHTS])
  with session.progress() as progress:
    models = compared.load(
      flags,
      progress,
      check=lambda _, config: _check_lengths(
        config, configurations, flags.max_new_tokens
      ),
    )
    about[_WEIGHTS] = {
      who: params_lib.fingerprint(params)
      for who, params in models.params.items()
    }
    names = [compared.STOCK, compared.MITIGATED]
    run_lib.claim(flags.out, about, names, anew=flags.anew)
    items = _run_all(flags, models, configurations, corpora, limit, progress)
  found = []
  for task, by_model in items.items():
    metrics = _metrics(task, by_model[compared.STOCK], flags.released_matcher)
    for metric in metrics:
      values = {
        who: {
          i: row['metrics'][metric.name]
          for i, row in rows.items()
          if metric.name in row['metrics']
        }
        for who, rows in by_model.items()
      }
      one = compare.compare(
        task,
        metric,
        values[compared.STOCK],
        values.get(compared.MITIGATED),
        seed=flags.seed,
      )
      if one is not None:
        found.append(one)
  labels = {name: task.label for name, task in tasks_lib.TASKS.items()}
  labels |= {
    task: f'loss{" of answers" if corpus.chat else ""}, {corpus.name}'
    for task, corpus in _losses(corpora).items()
  }
  notes = {name: task.note for name, task in tasks_lib.TASKS.items()}
  warning = _warning(folder, limit, _cut(flags.tasks, most))
  page = _report(flags, models, found, labels, notes, warning, about)
  evaluate_table.show(found, labels)
  if warning:
    print(f'\n{warning}')
  print(
    f'wrote {page}, beside it report.json and figures/, and every item in'
    f' {flags.out}'
  )


def _cut(tasks: Sequence[str], most: int | None) -> int | None:
  """Returns at how many tokens answers were cut, None if none was."""
  from me_jax.evaluation import tasks as tasks_lib

  known = [tasks_lib.TASKS[n] for n in tasks if n in tasks_lib.TASKS]
  longest = max((task.max_new_tokens for task in known), default=0)
  return most if most and most < longest else None


def _warning(folder: str | None, limit: int | None, cut: int | None) -> str:
  """Says why the numbers are no scores; nothing if they are."""
  said = []
  if folder == 'samples':
    said.append('rows of our own, to try the command with')
  if limit:
    said.append(f'at most {limit} items a task')
  if cut:
    said.append(f'answers cut at {cut} tokens')
  if not said:
    return ''
  return (
    f'These are no scores: {", ".join(said)}. For scores: --data=DIR --full.'
  )


def _check_installed() -> None:
  import importlib.util

  for module in ('lm_eval', 'math_verify'):
    if importlib.util.find_spec(module) is None:
      raise errors.MeJaxError(
        f"{module} is not installed: pip install -e '.[eval]' in a checkout."
      )


def _folder(flags: Any) -> str | None:
  """Returns where data are: a folder, 'samples', or None for the hub."""
  if flags.data is None:
    return 'samples'
  if flags.data == 'hub':
    return None
  path = os.path.expanduser(flags.data)
  if not os.path.isdir(path):
    raise errors.MeJaxError(f'--data={flags.data} is no folder.')
  return path


def _tasks(
  flags: Any, folder: str | None, most: int | None, limit: int | None
) -> tuple[dict[str, Any], Sequence[Any]]:
  """Returns tasks by name, as we describe them and as lm-eval runs them.

  The second result are the corpora of losses.

  Raises:
    MeJaxError: there is no such task, or its data are not sound.
  """
  from me_jax.evaluation import data
  from me_jax.evaluation import losses
  from me_jax.evaluation import run as run_lib
  from me_jax.evaluation import tasks as tasks_lib

  known, others = [*tasks_lib.TASKS, _LOSS], None
  found: dict[str, Any] = {}
  for name in dict.fromkeys(flags.tasks or ()):
    if name in known:
      continue
    if others is None:
      others = run_lib.index().all_subtasks
    if name not in others:
      raise errors.MeJaxError(
        f'there is no task {name!r:.60}{errors.nearest(name, [*known, *others])};'
        f' {", ".join(known)}, or one of lm-evaluation-harness.'
      )
  if not flags.tasks:
    raise errors.MeJaxError('--tasks lacks a value: write --tasks=NAME,NAME.')
  where = data.samples() if folder == 'samples' else folder
  for name in dict.fromkeys(flags.tasks):
    if name in tasks_lib.TASKS:
      found[name] = tasks_lib.configuration(
        name,
        where,
        max_new_tokens=most,
        limit=limit,
        released_matcher=flags.released_matcher,
      )
    elif name != _LOSS:
      found[name] = None
  # lm-eval's own may not be reachable, which shows only now.
  found = {
    name: (configuration, run_lib.load(name, configuration, flags.seed))
    for name, configuration in found.items()
  }
  corpora: Sequence[Any] = ()
  if _LOSS in flags.tasks:
    corpora = losses.sources(None if folder in ('samples', None) else folder)
  return found, corpora


def _check_lengths(
  config: Any, configurations: dict[str, Any], asked: int | None
) -> None:
  """Raises MeJaxError where answers alone would fill the context."""
  if asked and asked >= config.context_length:
    raise errors.MeJaxError(
      f'--max_new_tokens={asked} leaves no room for a prompt: the context is'
      f' {config.context_length}.'
    )
  for name, (_, loaded) in configurations.items():
    kwargs = loaded['tasks'][name].get_config('generation_kwargs') or {}
    most = kwargs.get('max_gen_toks', 0)
    if most >= config.context_length:
      raise errors.MeJaxError(
        f'{name} allows answers of {most} tokens, and the context is'
        f' {config.context_length}: give --max_new_tokens.'
      )


def _about(
  flags: Any,
  folder: str | None,
  configurations: dict[str, Any],
  corpora: Sequence[Any],
  limit: int | None,
  most: int | None,
) -> dict[str, Any]:
  """Returns what results depend on, but for the weights."""
  from importlib import metadata

  from me_jax import __version__
  from me_jax.evaluation import data

  rows = {
    name: configuration['metadata']['rows']
    for name, (configuration, _) in configurations.items()
    if configuration
  }
  rows |= {
    task: data.digest(corpus.held_out)
    for task, corpus in _losses(corpora).items()
  }
  return {
    'model': str(flags.model),
    'mitigation': compared.mitigation(flags),
    # A path may hold other rows by now, and other weights.
    'rows': rows,
    'dtype': flags.dtype,
    'data': folder or 'hub',
    'limit': limit,
    'max_new_tokens': most,
    'seed': flags.seed,
    'released_matcher': flags.released_matcher,
    'me_jax': __version__,
    'lm_eval': metadata.version('lm_eval'),
  }


def _run_all(
  flags: Any,
  models: compared.Models,
  configurations: dict[str, Any],
  corpora: Sequence[Any],
  limit: int | None,
  progress: session.Progress,
) -> dict[str, dict[str, dict[int, Any]]]:
  """Returns each item's row, by task and model."""
  from me_jax.checkpoints import load as load_lib
  from me_jax.evaluation import harness
  from me_jax.evaluation import losses
  from me_jax.evaluation import run as run_lib

  items: dict[str, dict[str, dict[int, Any]]] = {}
  for who, params in models.params.items():
    lm = load_lib.LoadedModel(
      models.model, params, models.tokenizer, models.config
    )
    step = ['']

    def tell(done: int, total: int, step: list[str] = step) -> None:
      progress.step(step[0], done, total)

    adapter = harness.MeJaxLM.of(
      lm,
      name=str(flags.model),
      rows=flags.rows,
      # A few answers do not pay for compiling every layer.
      unrolled=None if flags.full else False,
      seed=flags.seed,
      progress=tell,
    )
    for task, (_, loaded) in configurations.items():
      step[0] = f'{task}, {who}'
      rows = run_lib.run(
        adapter,
        who,
        task,
        loaded,
        flags.out,
        limit=limit,
        seed=flags.seed,
      )
      items.setdefault(task, {})[who] = rows
    for task, corpus in _losses(corpora).items():
      step[0] = f'loss of {corpus.name}, {who}'
      rows = losses.run(lm, who, corpus, flags.out, limit=limit, progress=tell)
      items.setdefault(task, {})[who] = rows
  return items


def _losses(corpora: Sequence[Any]) -> dict[str, Any]:
  """Returns corpora by the task that scores each."""
  return {f'loss {corpus.name}': corpus for corpus in corpora}


def _metrics(task: str, rows: dict[int, Any], released: bool) -> list[Any]:
  """Returns a task's metrics; of a task of lm-eval, those that are means."""
  from me_jax.evaluation import losses
  from me_jax.evaluation import tasks as tasks_lib

  if task.startswith('loss '):
    return [losses.METRIC]
  if task in tasks_lib.TASKS:
    metrics = list(tasks_lib.TASKS[task].metrics)
    if released and metrics[0].name == 'accuracy':
      label = 'right by the released matcher'
      metrics.append(tasks_lib.Metric(name='released', label=label))
    return metrics
  seen: dict[str, list[Any]] = {}
  for row in rows.values():
    for name, value in row['metrics'].items():
      seen.setdefault(name, []).append(value)
  return [
    tasks_lib.Metric(
      name=name,
      label=name,
      better=0,
      unit='%' if all(0 <= value <= 1 for value in values) else '',
    )
    for name, values in seen.items()
    if all(isinstance(value, (int, float)) for value in values)
  ]


def _report(
  flags: Any,
  models: compared.Models,
  found: Sequence[Any],
  labels: dict[str, str],
  notes: dict[str, str],
  warning: str,
  about: dict[str, Any],
) -> pathlib.Path:
  """Writes the page."""
  from me_jax.plotting import report as report_lib
  from me_jax.plotting.sections import evaluation

  section = evaluation.section(found, labels, notes, warning)
  return report_lib.write(
    os.path.join(flags.out, _REPORT),
    [section],
    title=f'What {flags.model} can do',
    headline=section.finding.split('. ')[0].rstrip('.') + '.',
    provenance=about | {'source': models.source},
    command=flags_lib.command_line('evaluate', flags),
  )
