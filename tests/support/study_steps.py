"""Steps of a study that take no time: reports as verbs write them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from PIL import Image

_SECTIONS = {
  'explain': (
    'emergence', 'cause', 'rigidity', 'sinks', 'screen', 'vocabulary',
    'interventions', 'diversity',
  ),
  'mitigate': ('mitigation',),
  'evaluate': ('evaluation',),
  'train': ('training',),
  'study.quantise': ('quantisation', 'quantisation-relief'),
}  # fmt: skip
_FIGURES = ('emergence-layers', 'mitigation-held-out')


def estimate(value: float, half: float = 0.01) -> dict[str, float]:
  return {'value': value, 'low': value - half, 'high': value + half}


class Launcher:
  """Stands in for processes: notes what it was asked for, writes reports."""

  def __init__(
    self,
    fails: tuple[str, ...] = (),
    verdict: str = 'holds',
    strength: float | None = 0.5,
  ):
    """Says what becomes of the steps.

    Args:
      fails: verbs that end with an error, or folders of steps.
      verdict: of all claims.
      strength: of the mask that is chosen; None chooses none.
    """
    self.fails = fails
    self.verdict = verdict
    self.strength = strength
    self.asked: list[list[str]] = []

  def __call__(self, argv: list[str], log: Any) -> int:
    self.asked.append(argv)
    verb = argv[1] if argv[0] == 'me_jax' else argv[0]
    log.write('begun\n')
    out = next(a for a in argv if a.startswith('--out='))
    folder = pathlib.Path(out.removeprefix('--out='))
    if verb in self.fails or folder.parent.name in self.fails:
      log.write(f'me-jax: {verb} lacks something\n')
      return 2
    if verb in ('mitigate', 'train', 'evaluate'):
      if verb == 'mitigate' and self.strength is not None:
        (folder / 'orbax').mkdir(parents=True, exist_ok=True)
      if verb == 'train':
        _held_out(folder, better='gates' in out or 'lora-mask' in out)
      folder /= 'report'
    _write(folder, verb, self.verdict, self.strength)
    return 0


def _write(
  folder: pathlib.Path, verb: str, verdict: str, strength: float | None
) -> None:
  (folder / 'figures').mkdir(parents=True, exist_ok=True)
  for name in _FIGURES:
    Image.new('RGB', (1500, 90), 'white').save(
      folder / 'figures' / f'{name}.png'
    )
  report = {
    'headline': 'Layer 4 (layer 5 of 8) is the ME Layer.',
    'provenance': {
      'dtype': 'float32', 'matmul_precision': 'highest', 'device': 'cpu',
      'attention': 'exact softmax', 'prompts': 'built-in', 'prompt_count': 24,
      'prompts_sha256': 'f' * 64, 'bos': 'both', 'seed': 0,
      'parameters': 134_515_008, 'model': '/somewhere/planted.Q4_1.gguf',
    },
    'sections': {
      name: {
        'title': name, 'claim': f'The claim of {name}.', 'verdict': verdict,
        'finding': f'What was found of {name}: 0.123456.',
        'control': f'The control of {name}.', 'numbers': _numbers(name, strength),
      }
      for name in _SECTIONS[verb]
    },
  }  # fmt: skip
  (folder / 'report.json').write_text(json.dumps(report))


def _numbers(section: str, strength: float | None) -> dict[str, Any]:
  if section == 'mitigation':
    change = {n: estimate(-0.1) for n in ('loss', 'answer')}
    change['kl'] = estimate(0.1)
    chosen = None if strength is None else {'recipe': {'strength': [strength]}}
    return {
      'chosen': chosen,
      'stock': {'GSM8K': {'texts': 3, 'tokens': 9, 'loss': 2.0, 'chat': True}},
      'changes': {
        'chosen': {'GSM8K': change},
        'token 5 instead': {'GSM8K': change},
      },
      'less': {'token 5 instead': {'GSM8K': estimate(-0.03)}},
      'baked': {'GSM8K': change},
      'baked_kl': {'GSM8K': 0.001},
    }
  if section == 'evaluation':
    one = {n: estimate(0.5) for n in ('stock', 'mitigated', 'difference')}
    one |= {'task': 'gsm8k', 'metric': 'accuracy', 'items': 7, 'p': 0.5}
    return {'metrics': [one | {'verdict': 'no difference'}]}
  if section == 'quantisation':
    costs = {
      'GSM8K': {n: {'stream': estimate(0.2)} for n in ('stock', 'masked')}
    }
    return {
      'variants': ['stock', 'masked'],
      'conditions': [{'name': 'exact'}, {'name': 'stream'}],
      'corpora': {'GSM8K': {'texts': 3, 'tokens': 9}},
      'loss': {'GSM8K': {n: {'exact': 2.0} for n in ('stock', 'masked')}},
      'cost': costs,
      'relief': {'GSM8K': {'masked': {'stream': estimate(-0.05)}}},
    }
  return {}


def _held_out(folder: pathlib.Path, *, better: bool) -> None:
  """Writes losses of ten texts, lower by a tenth of a nat in a better run."""
  folder.mkdir(parents=True, exist_ok=True)
  tokens = [10.0 + i for i in range(10)]

  def lost(rate: float) -> dict[str, Any]:
    loss = [rate * count for count in tokens]
    return {'loss_N': loss, 'tokens_N': tokens, 'rejected_N': None}

  sets = {
    name: {'before': lost(2.0), 'after': lost(1.4 if better else 1.5)}
    for name in ('GSM8K (choosing)', 'GSM8K', 'C4')
  }
  (folder / 'held_out.json').write_text(json.dumps({'step': 3, 'sets': sets}))
  about = [
    {'name': 'GSM8K (choosing)', 'on_task': True, 'report': False},
    {'name': 'GSM8K', 'on_task': True, 'report': True},
    {'name': 'C4', 'on_task': False, 'report': True},
  ]
  (folder / 'run.json').write_text(json.dumps({'config': {'held_out': about}}))
