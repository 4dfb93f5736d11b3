"""Which commands is a study made of? The library's own verbs, in order."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import hashlib
import json
import os
import pathlib

from study import options as options_lib

_CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
# Of a step's folder, what its command writes into; step.json stands beside it.
RUN = 'run'
REPORT = f'{RUN}/report/report.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A command whose result is a report.

  Attributes:
    name: of its folder.
    argv: what follows `python -m`.
    needs: the step whose files it reads; None reads no other's.
    lacks: why it cannot be run, if it cannot.
  """

  name: str
  argv: tuple[str, ...]
  needs: str | None = None
  lacks: str = ''

  @property
  def command(self) -> str:
    """What a shell would be told."""
    tool, *rest = self.argv
    said = ['me-jax'] if tool == 'me_jax' else ['python', '-m', tool]
    return ' '.join([*said, *rest])


def make(name: str, options: options_lib.Options) -> Step:
  """Returns a step as it would be run now.

  Args:
    name: one of `NAMES`.
    options: of the study.
  """
  argv = _MAKERS[name](options, options.folder / name / RUN)
  lacks = ''
  if name == 'tuned-mask' and relaxed(options) is None:
    lacks = 'no mask was chosen'
  return Step(name=name, argv=tuple(argv), needs=NEEDS.get(name), lacks=lacks)


def relaxed(options: options_lib.Options) -> pathlib.Path | None:
  """Returns the model that `mitigate` has written, None if it wrote none."""
  folder = options.folder / 'mitigate' / RUN / 'orbax'
  return folder if folder.is_dir() else None


def mask(options: options_lib.Options) -> str:
  """Returns a hash of the mask that `mitigate` has chosen, '' if none.

  With the same weights it says what later steps read.
  """
  path = options.folder / 'mitigate' / REPORT
  report = json.loads(path.read_text(encoding='utf-8'))
  chosen = report['sections']['mitigation']['numbers']['chosen']
  if chosen is None:
    return ''
  recipe = json.dumps(chosen['recipe'], sort_keys=True)
  return hashlib.sha256(recipe.encode()).hexdigest()[:16]


_Maker = Callable[[options_lib.Options, pathlib.Path], list[str]]


def _explain(options: options_lib.Options, out: pathlib.Path) -> list[str]:
  argv = ['me_jax', 'explain', f'--model={options.model}']
  if options.quick:
    argv += ['--vocabulary=64', '--bos=auto']
  return [*argv, f'--out={out / "report"}']


def _mitigate(options: options_lib.Options, out: pathlib.Path) -> list[str]:
  argv = ['me_jax', 'mitigate', f'--model={options.model}', *_data(options)]
  if options.quick:
    argv += [
      '--texts=4', '--calibration=4', '--length=96', '--select=weight',
      '--layers=after', '--rate=0.5', '--strength=1',
    ]  # fmt: skip
  else:
    argv += ['--texts=12', '--calibration=12']
  return [*argv, f'--out={out}']


def _quantise(options: options_lib.Options, out: pathlib.Path) -> list[str]:
  argv = ['study.quantise', f'--model={options.model}', *_data(options)]
  if relaxed(options):
    argv.append(f'--relaxed={options.folder / "mitigate" / RUN}')
  if options.quick:
    argv += ['--texts=2', '--length=64']
  elif options.data:
    argv += ['--texts=6', '--length=160']
  return [*argv, f'--out={out / "report"}']


def _train(
  config: str, *extra: str, without_data: tuple[str, ...] = ()
) -> _Maker:
  """Returns what makes a run of fine-tuning.

  Args:
    config: file in `configs` that describes the run on the public sets.
    *extra: further flags of that run.
    without_data: flags of the built-in run that stands in for it.
  """

  def made(options: options_lib.Options, out: pathlib.Path) -> list[str]:
    argv = ['me_jax', 'train', f'--model={options.model}']
    if options.data is None:
      steps = 3 if options.quick else 20
      argv += [*without_data, f'--steps={steps}']
    else:
      path = os.path.relpath(_CONFIGS / config)
      argv += [f'--config={path}', *_data(options), *extra]
    if options.quick:
      argv += ['--set=data.length=256', '--set=evaluation.every=3']
    return [*argv, '--write=none', f'--out={out}']

  return made


def _tuned_mask(options: options_lib.Options, out: pathlib.Path) -> list[str]:
  """Measures the mask on the held-out rows of gates: before its one step."""
  tool, verb, _, *rest = _train('smollm2_sft_gates.py')(options, out)
  rest = [flag for flag in rest if not flag.startswith('--steps=')]
  model = f'--model={relaxed(options)}'
  return [tool, verb, model, *rest, '--steps=1']


def _evaluate(options: options_lib.Options, out: pathlib.Path) -> list[str]:
  other = relaxed(options) or 'wemask'
  argv = [
    'me_jax', 'evaluate', f'--model={options.model}',
    f'--mitigation={other}', *_data(options),
  ]  # fmt: skip
  if options.quick:
    argv += ['--tasks=loss,gsm8k', '--limit=2', '--max_new_tokens=16']
  elif options.data:
    # The long answers of IFEval and MATH-500 would take twice as long as these.
    argv += ['--tasks=loss,gsm8k,mmlu,xstest', '--full']
  else:
    argv += ['--tasks=loss,ifeval,gsm8k', '--limit=48', '--max_new_tokens=256']
  return [*argv, f'--out={out}']


def _data(options: options_lib.Options) -> list[str]:
  return [f'--data={options.data}'] if options.data else []


_MAKERS = {
  'explain': _explain,
  'mitigate': _mitigate,
  'quantise': _quantise,
  'train-gates': _train('smollm2_sft_gates.py'),
  'train-token5': _train(
    'smollm2_sft_gates_token5.py', without_data=('--set=train.gates.tokens=5',)
  ),
  'tuned-mask': _tuned_mask,
  'train-lora': _train(
    'smollm2_sft_lora.py',
    '--steps=20',
    without_data=('--set=train.parts=lora',),
  ),
  'train-lora-mask': _train(
    'smollm2_sft_lora.py',
    '--steps=20',
    '--set=mask.rate=0.5',
    without_data=('--set=train.parts=lora', '--set=mask.rate=0.5'),
  ),
  'evaluate': _evaluate,
}
NAMES = tuple(_MAKERS)
_LEARNT = (
  'gsm8k/train.jsonl', 'gsm8k/test.jsonl', 'math500/test.jsonl',
  'text/c4_demo.jsonl',
)  # fmt: skip
# What --data must hold for a step; others take what is there.
SETS = {
  **{name: _LEARNT for name in NAMES if name.startswith('train-')},
  'tuned-mask': _LEARNT,
  'evaluate': ('gsm8k/test.jsonl', 'mmlu/test.jsonl', 'xstest/prompts.csv'),
}
# Which step reads the files of which other.
NEEDS = {
  'quantise': 'mitigate',
  'tuned-mask': 'mitigate',
  'evaluate': 'mitigate',
}
# Enough to see that everything works.
QUICK = tuple(name for name in NAMES if not name.startswith('train-lora'))
