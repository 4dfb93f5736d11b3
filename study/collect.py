"""What of a model's steps goes on the page? A compact extract, and figures.

The extract holds everything that the page says of a model, so that the page can
be written again from it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
import io
import json
import pathlib
from typing import Any

from PIL import Image

from me_jax import files
from study import claims as claims_lib
from study import kept
from study import options as options_lib
from study import paired
from study import runner
from study import steps as steps_lib

NOT_TESTED = 'not tested'
# Bytes of a figure, its width in dots, and colours.
_LARGEST, _WIDTH, _COLORS = 200_000, 1200, 128
_ABOUT = (
  'parameters', 'dtype', 'matmul_precision', 'attention', 'device', 'prompts',
  'prompt_count', 'prompts_sha256', 'bos', 'seed',
)  # fmt: skip


def collect(
  options: options_lib.Options,
  digests: options_lib.Digests,
  made: Mapping[str, Any],
  page: Mapping[str, Any] | None,
  figures: pathlib.Path,
) -> dict[str, Any]:
  """Reads what a model's steps have left.

  Args:
    options: of the study.
    digests: of the weights and the sets.
    made: cards of the steps that were run, or were there.
    page: an extract of the same weights and sets, whose other steps stay.
    figures: the folder that figures are copied to.

  Returns:
    The extract.
  """
  cards, stay = kept.sides(made, page)
  reports = {
    name: _report(options, name)
    for name, card in cards.items()
    if card['status'] == runner.DONE and name not in stay
  }
  explained = reports.get('explain', {})
  provenance = explained.get('provenance', {})
  found = {
    'name': options.name,
    'headline': explained.get('headline', ''),
    'quick': options.quick,
    'model_sha256': digests.model,
    'data': options_lib.DATA if options.data else None,
    'data_sha256': digests.data,
    'about': _about(provenance),
    'tasks_left_out': _tasks_left_out(reports.get('evaluate')),
    'steps': cards,
    'claims': {
      claim.name: _answer(claim, options, cards, reports, figures)
      for claim in claims_lib.CLAIMS
    },
  }
  found = _shown(found, options)
  return _with(found, page, stay) if page else found


def _about(provenance: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what the analyses were made with."""
  found = {n: provenance[n] for n in _ABOUT if n in provenance}
  file = pathlib.PurePath(provenance.get('model', ''))
  return found | ({'weights': file.name} if file.suffix == '.gguf' else {})


def _with(
  found: dict[str, Any], page: Mapping[str, Any], stay: set[str]
) -> dict[str, Any]:
  """Returns an extract with what stays of an earlier one."""
  for claim in claims_lib.CLAIMS:
    if {claim.step, claim.against} - {None} <= stay:
      found['claims'][claim.name] = page['claims'][claim.name]
  if 'explain' in stay:
    found |= {name: page[name] for name in ('headline', 'about')}
  if 'evaluate' in stay:
    found['tasks_left_out'] = page['tasks_left_out']
  return found


def _answer(
  claim: claims_lib.Claim,
  options: options_lib.Options,
  cards: Mapping[str, Any],
  reports: Mapping[str, Any],
  figures: pathlib.Path,
) -> dict[str, Any]:
  """Returns what a claim's step says of it."""
  steps = list(filter(None, (claim.step, claim.against)))
  for step in steps:
    if cards[step]['status'] != runner.DONE:
      why = cards[step].get('why') or f'{step}: {cards[step]["status"]}'
      return {'verdict': NOT_TESTED, 'why': why}
  if not reports.keys() >= set(steps):
    why = f'{" and ".join(steps)} were not run together'
    return {'verdict': NOT_TESTED, 'why': why}
  if claim.section is None:
    found = _compared(claim, options, reports)
    if found is None:
      return {'verdict': NOT_TESTED, 'why': 'there is nothing to compare'}
  else:
    section = reports[claim.step]['sections'][claim.section]
    found = {n: section[n] for n in ('claim', 'verdict', 'finding', 'control')}
    found |= _table(claim, section['numbers'])
  found['figures'] = _figures(claim, options, figures)
  return found


def _compared(
  claim: claims_lib.Claim,
  options: options_lib.Options,
  reports: Mapping[str, Any],
) -> dict[str, Any] | None:
  if claim.against is None:
    numbers = reports[claim.step]['sections']['mitigation']['numbers']
    return paired.baked(numbers)
  folders = (_run(options, step) for step in (claim.step, claim.against))
  return paired.runs(claim.name, *folders)


def _table(claim: claims_lib.Claim, numbers: Mapping[str, Any]) -> Any:
  """Returns the numbers that a claim's table shows, under the table's name."""
  if claim.name == 'mitigation':
    stock = {
      corpus: {n: found[n] for n in ('texts', 'tokens', 'loss', 'chat')}
      for corpus, found in numbers['stock'].items()
    }
    changes = {
      mask: {c: {n: found[n] for n in ('loss', 'answer')} for c, found in by.items()}
      for mask, by in numbers['changes'].items()
    }  # fmt: skip
    masks = {'stock': stock, 'changes': changes}
    return {'masks': masks, 'less': numbers['less']}
  if claim.name == 'ability':
    names = ('task', 'metric', 'items', 'stock', 'mitigated', 'difference',
             'p', 'verdict')  # fmt: skip
    rows = [{n: one[n] for n in names} for one in numbers['metrics']]
    return {'tasks': rows}
  if claim.name == 'eight-bits':
    return {
      'rounding': {
        'variants': numbers['variants'],
        'conditions': [one['name'] for one in numbers['conditions']],
        **{n: numbers[n] for n in ('corpora', 'loss', 'cost', 'relief')},
      }
    }
  return {}


def _tasks_left_out(report: Mapping[str, Any] | None) -> list[str]:
  """Returns the paper's tasks that were not run."""
  from me_jax.evaluation import tasks

  run = set()
  if report:
    metrics = report['sections']['evaluation']['numbers']['metrics']
    run = {one['task'] for one in metrics}
  return [task.label for name, task in tasks.TASKS.items() if name not in run]


def _figures(
  claim: claims_lib.Claim, options: options_lib.Options, target: pathlib.Path
) -> dict[str, str]:
  """Copies a claim's figures; returns their files."""
  folder = _run(options, claim.step) / 'report' / 'figures'
  return {
    name: saved
    for name in claim.figures
    if (saved := _figure(folder / f'{name}.png', target, options.name))
  }


def _figure(source: pathlib.Path, target: pathlib.Path, model: str) -> str:
  """Copies a figure, small enough for a page; returns its name, '' if none."""
  if not source.is_file():
    return ''
  with Image.open(source) as image:
    small = image.convert('RGB')
  width = min(_WIDTH, small.width)
  data = io.BytesIO()
  while True:
    data = io.BytesIO()
    height = round(small.height * width / small.width)
    resized = small.resize((width, height), Image.Resampling.LANCZOS)
    # The median cut would blend colours that few dots have.
    octree = resized.quantize(_COLORS, Image.Quantize.FASTOCTREE)
    octree.save(data, 'png', optimize=True)
    if data.tell() <= _LARGEST:
      break
    width = int(width * 0.85)
  path = target / f'{model}-{source.name}'
  files.make_parent(path)
  with files.whole(path) as partial:
    partial.write_bytes(data.getvalue())
  return path.name


def _report(options: options_lib.Options, name: str) -> dict[str, Any]:
  path = options.folder / name / steps_lib.REPORT
  return json.loads(path.read_text(encoding='utf-8'))


def _run(options: options_lib.Options, step: str) -> pathlib.Path:
  return options.folder / step / steps_lib.RUN


def _shown(value: Any, options: options_lib.Options) -> Any:
  """Takes paths of this machine, and digits that say nothing, away."""
  if isinstance(value, str):
    return options.shown(value)
  if isinstance(value, float):
    return float(f'{value:.6g}')
  if isinstance(value, Mapping):
    return {k: _shown(part, options) for k, part in value.items()}
  if isinstance(value, list | tuple):
    return [_shown(part, options) for part in value]
  return value
