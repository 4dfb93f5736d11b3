"""How is a step run once, and not again while its result stands?

Beside a step's report lies step.json: which command made it, with which
versions, weights, data and code, on which machine, in how many seconds. A step
is run again if its command, versions, weights or data are others by now, or what
its forerunner wrote; of other code it is only said, because most changes of it
change no result.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

from benchmarks import machine
from me_jax import files
from study import options as options_lib
from study import steps as steps_lib

CARD, _LOG = 'step.json', 'log.txt'
DONE, FAILED, NOT_RUN, _RUNNING = 'done', 'failed', 'not run', 'running'
_PACKAGES = (
  'me-jax', 'jax', 'flax', 'optax', 'numpy', 'transformers', 'lm-eval',
)  # fmt: skip
# Settings that make an unchanged command another one.
_SAME = ('command', 'versions', 'model_sha256', 'data_sha256', 'after')

Launch = Callable[[list[str], Any], int]


def run(
  step: steps_lib.Step,
  options: options_lib.Options,
  digests: options_lib.Digests,
  *,
  launch: Launch | None = None,
) -> dict[str, Any]:
  """Runs a step, unless its result is there.

  Args:
    step: what to run.
    options: of the study.
    digests: of the weights and the sets.
    launch: starts a process with arguments and an open log, and returns its
      exit status; tests give their own.

  Returns:
    What step.json holds; `status` is `done` or, with the reason as `why`,
    `failed` or `not run`.
  """
  if why := step.lacks or _lacking(step, options):
    _tell(options, step, f'not run: {why}')
    return not_run(step.name, why)
  folder = options.folder / step.name
  wanted = _wanted(step, options, digests)
  before = card(folder)
  same = before is not None and all(
    before.get(name) == wanted[name] for name in _SAME
  )
  result = folder / steps_lib.REPORT
  if same and before['status'] == DONE and result.is_file():
    said = 'done before'
    if before.get('source') != wanted['source']:
      said += f', by other code: without {folder} it is run again'
    _tell(options, step, said)
    return before
  if not same and folder.exists():
    # What another command has left would be taken for this one's.
    shutil.rmtree(folder)
  folder.mkdir(parents=True, exist_ok=True)
  # Of a run that goes on, the seconds of all its parts.
  spent = before.get('seconds') or 0.0 if same else 0.0
  load = round(os.getloadavg()[0], 1)
  now = wanted | {'status': _RUNNING, 'seconds': spent, 'load': load}
  files.write_json(folder / CARD, now)
  _tell(options, step, f'running, log in {folder / _LOG}')
  start = time.perf_counter()
  try:
    with open(folder / _LOG, 'a', encoding='utf-8') as log:
      status = (launch or _launch)(list(step.argv), log)
  finally:
    seconds = round(spent + time.perf_counter() - start, 1)
    files.write_json(folder / CARD, now | {'seconds': seconds})
  now |= {'seconds': seconds, 'status': DONE}
  if status or not result.is_file():
    why = _last_line(folder / _LOG) or f'exit status {status}'
    now |= {'status': FAILED, 'why': options.shown(why)}
  elif step.name in steps_lib.NEEDS.values():
    now['result'] = steps_lib.mask(options)
  files.write_json(folder / CARD, now)
  _tell(options, step, f'{now["status"]} after {seconds:.0f} s')
  if now['status'] == FAILED:
    _tell(options, step, now['why'])
  return now


def not_run(name: str, why: str = '') -> dict[str, Any]:
  """Returns the card of a step that was not run."""
  return {'name': name, 'status': NOT_RUN} | ({'why': why} if why else {})


def card(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns a step's step.json; None if there is none that can be read."""
  try:
    found = json.loads((folder / CARD).read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return None
  return found if isinstance(found, dict) and 'status' in found else None


def _lacking(step: steps_lib.Step, options: options_lib.Options) -> str:
  """Says which forerunner is not done, '' if none lacks."""
  if step.needs is None:
    return ''
  found = card(options.folder / step.needs) or not_run(step.needs)
  return '' if found['status'] == DONE else f'{step.needs}: {found["status"]}'


def _wanted(
  step: steps_lib.Step,
  options: options_lib.Options,
  digests: options_lib.Digests,
) -> dict[str, Any]:
  """Returns what the step's result depends on."""
  after = None
  if step.needs:
    after = (card(options.folder / step.needs) or {}).get('result')
  return {
    'name': step.name,
    'command': options.shown(step.command),
    'versions': machine.versions(*_PACKAGES),
    'model_sha256': digests.model,
    'data_sha256': digests.data,
    'after': after,
    'source': _source(),
    'machine': machine.describe(),
    'started': time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime()),
  }


@functools.cache
def _source() -> str:
  """Returns a hash of the code and the configurations that steps run."""
  found = hashlib.sha256()
  root = pathlib.Path(__file__).parents[1]
  for folder in ('me_jax', 'configs', 'study'):
    for path in sorted((root / folder).rglob('*.py')):
      found.update(str(path.relative_to(root)).encode())
      found.update(path.read_bytes())
  return found.hexdigest()[:16]


def _launch(argv: list[str], log: Any) -> int:
  process = subprocess.Popen(
    [sys.executable, '-m', *argv], stdout=log, stderr=subprocess.STDOUT
  )
  try:
    return process.wait()
  except BaseException as error:
    # A terminal has told the step too; what it can save, it saves.
    if not isinstance(error, KeyboardInterrupt):
      process.terminate()
    process.wait()
    raise


def _last_line(log: pathlib.Path) -> str:
  lines = log.read_text(encoding='utf-8', errors='replace').splitlines()
  return next((line.strip() for line in reversed(lines) if line.strip()), '')


def _tell(
  options: options_lib.Options, step: steps_lib.Step, what: str
) -> None:
  print(f'study: {options.name}, {step.name}: {what}', flush=True)
