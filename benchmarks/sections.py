"""What is measured, section by section; docs/benchmarks.md quotes docstrings.

A section yields rows as it measures them. The order of processes within a round
is the same for all rounds, so that both sides meet the same neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
import json

import numpy as np

from benchmarks import processes
from benchmarks import rows
from benchmarks import workers


def starting(bench: processes.Bench) -> Iterator[rows.Row]:
  """How long does it take until anything happens?

  Whole processes: of the help, and of importing all that loading a model needs.
  """
  commands = [('me_jax', '--help')]
  commands += [('benchmarks.workers', f'{side}_imports') for side in _SIDES]
  for command in commands:
    bench.run(*command)
  found = [
    [bench.run(*command).wall for command in commands]
    for _ in range(bench.rounds)
  ]
  helps, *sides = zip(*found)
  yield rows.alone('`me-jax --help`', 's', helps, better='less')
  yield rows.compared(
    'imports for loading a model', 's', np.transpose(sides), better='less'
  )


def whole_process(bench: processes.Bench) -> Iterator[rows.Row]:
  """`me-jax find` beside a script for PyTorch, as whole processes.

  "Warm" has compiled the same shapes before, "cold" has not.
  """
  report = bench.scratch / 'report.json'
  theirs = bench.scratch / 'peer.json'
  ours = ('me_jax', 'find', f'--model={bench.folder}', f'--json={report}')
  peer = ('benchmarks.torch_peer', bench.folder, str(theirs))
  bench.run(*ours)
  bench.run(*peer)
  found = []
  for i in range(bench.rounds):
    cold = bench.run(*ours, cache=f'cold{i}')
    found.append((bench.run(*ours), cold, bench.run(*peer)))
  layers = [json.loads(path.read_text())['layer'] for path in (report, theirs)]
  if layers[0] != layers[1]:
    raise processes.Failed(f'the two sides disagree on the layer: {layers}')
  walls = np.array([[side.wall for side in one] for one in found])
  peaks = np.array([[side.peak for side in one] for one in found])
  yield rows.compared(
    '`find`, whole process, warm', 's', walls[:, [0, 2]], better='less', bar=0.7
  )
  yield rows.compared(
    '`find`, whole process, cold', 's', walls[:, [1, 2]], better='less', bar=1
  )
  yield rows.compared(
    '`find`, peak memory', 'MB', peaks[:, [0, 2]], better='less', bar=0.8
  )


def loading(bench: processes.Bench) -> Iterator[rows.Row]:
  """Weights from the disk's cache into memory, all pages of them.

  The default model's 0.5 GB of safetensors; in torch, into a model that exists.
  GGUF files are loaded with their tokenizer. The file in K-quants is about as
  large as the default model and has random blocks.
  """
  found = [
    (
      bench.work('jax_safetensors', bench.folder),
      bench.work('torch_safetensors', bench.folder, 'copy'),
      bench.work('torch_safetensors', bench.folder, 'copy', '1'),
      bench.work('torch_safetensors', bench.folder, 'assign'),
    )
    for _ in range(bench.rounds)
  ]
  seconds = np.array([[side['seconds'] for side in one] for one in found])
  for other, (what, bar) in enumerate(
    (
      ('loading safetensors, torch with all threads', 1),
      ('loading safetensors, torch with one thread', None),
      ('loading safetensors, torch pointing into the mapped file', None),
    ),
    1,
  ):
    yield rows.compared(
      what, 's', seconds[:, [0, other]], better='less', bar=bar
    )
  yield rows.ratios(
    'peak memory of loading, over the size of the parameters',
    [one[0]['peak'] for one in found], better='less', bar=1.3,
  )  # fmt: skip
  if bench.quick:
    return
  kquants = str(bench.scratch / 'kquants.gguf')
  bench.work('kquant_file', kquants)
  for what, source in (
    ('loading the default GGUF', 'smollm2'),
    ('loading a GGUF in K-quants', kquants),
  ):
    pairs = [
      (bench.work('jax_gguf', source), bench.work('torch_gguf', source))
      for _ in range(bench.rounds)
    ]
    # Six times as fast.
    yield rows.compared(what, 's', pairs, better='less', bar=1 / 6)


def forward(bench: processes.Bench) -> Iterator[rows.Row]:
  """Forward passes with `find`'s statistics; in PyTorch, forward hooks."""
  shapes = _shapes(bench)
  found = [
    [bench.work(f'{side}_forward', bench.folder, *shapes) for side in _SIDES]
    for _ in range(bench.rounds)
  ]
  for shape in shapes:
    rates = [[side[shape] for side in one] for one in found]
    yield rows.compared(
      f'forward with statistics, {_times(shape)}', 'tokens/s', rates,
      better='more', bar=1,
    )  # fmt: skip


def statistics(bench: processes.Bench) -> Iterator[rows.Row]:
  """What `find`'s statistics cost on top of a forward pass.

  FLOPs and bytes are XLA's counts, memory is its plan; neither varies.
  """
  found = bench.work('overhead', bench.folder, *_shapes(bench))
  for shape, costs in found.items():
    yield rows.ratios(
      f'statistics, time, {_times(shape)}', costs['time'], better='less',
      bar=1.05,
    )  # fmt: skip
    for name, key in (('FLOPs', 'flops'), ('bytes', 'bytes')):
      yield rows.counted(
        f'statistics, {name}, {_times(shape)}', '10⁹',
        *(count / 1e9 for count in costs[key]), bar=1.02,
      )  # fmt: skip
  shallow, deep = bench.work('depth', bench.folder).values()
  yield rows.counted(
    'temporary memory, 64 against 8 layers', 'MB', deep / 1e6, shallow / 1e6,
    bar=1.05,
  )  # fmt: skip


def diagnosing(bench: processes.Bench) -> Iterator[rows.Row]:
  """`diagnose` beside the same measurements in PyTorch, and `screen`."""
  shape = '1x64' if bench.quick else '8x512'
  found = [
    [bench.worker(f'{side}_diagnose', bench.folder, shape) for side in _SIDES]
    for _ in range(bench.rounds)
  ]
  rates = [[side.value['rate'] for side in one] for one in found]
  yield rows.compared(
    f'`diagnose`, {_times(shape)}', 'tokens/s', rates, better='more', bar=4
  )
  peaks = [[side.peak for side in one] for one in found]
  yield rows.compared(
    '`diagnose`, peak memory', 'MB', peaks, better='less', bar=0.35
  )
  shape = '1x64' if bench.quick else '1x1024'
  yield rows.ratios(
    f'`diagnose`, time over a plain forward pass, {_times(shape)}',
    bench.work('diagnose_overhead', bench.folder, shape), better='less',
    bar=1.5,
  )  # fmt: skip
  # The sample of inputs, 48 at most, is full from 64 on.
  few, many = ('1', '2') if bench.quick else ('64', '256')
  peaks = [
    bench.worker('diagnose_texts', bench.folder, count).peak
    for count in (many, few)
  ]
  yield rows.compared(
    f'`diagnose`, peak memory, {many} against {few} texts', 'MB', [peaks],
    better='less', bar=1.05, peer=False,
  )  # fmt: skip
  shallow, deep = bench.work('diagnose_depth', bench.folder).values()
  yield rows.counted(
    '`diagnose`, temporary memory, 64 against 8 layers', 'MB', deep / 1e6,
    shallow / 1e6, bar=1.05,
  )  # fmt: skip
  seconds = [bench.work('screen', bench.folder) for _ in range(bench.rounds)]
  yield rows.alone(
    '`screen`, compiling included', 's', seconds, better='less', bar=5
  )


def mitigating(bench: processes.Bench) -> Iterator[rows.Row]:
  """What a mask costs, and how often a choice among many compiles."""
  found = bench.work('mask_overhead', bench.folder)
  yield rows.ratios(
    'a mask, time of a forward pass', found['time'], better='less', bar=1.01
  )
  yield rows.counted(
    'a mask, FLOPs', '10⁹', *(count / 1e9 for count in found['flops']), bar=1.01
  )
  if bench.quick:
    return
  compiles = bench.work('sweep_compiles', bench.folder)
  yield rows.Row(
    what='a sweep of 40 masks over 64 texts, compiled programs',
    better='less', ours=compiles, bar=3,
  )  # fmt: skip


def generating(bench: processes.Bench) -> Iterator[rows.Row]:
  """Greedy generation, 64 tokens in and 64 out; answers of many lengths.

  What memory and products allow: a step reads every parameter once and
  multiplies it with every row, as fast as this machine read and multiplied
  just before.
  """
  numbers = bench.work('parameters', bench.folder)
  speed = bench.work('speed')
  for count, bar in ((1, 1.25), (16, 1.5), (64, 1.5))[
    : 1 if bench.quick else 3
  ]:
    rates = np.array(_rates(bench, 'generate', str(count), bench.rounds))
    yield rows.compared(
      f'generation, batch {count}', 'tokens/s', rates, better='more', bar=bar
    )
    seconds = max(
      4e-9 * numbers / speed['gbytes'], 2e-9 * count * numbers / speed['gflops']
    )
    bounds = np.full(len(rates), count / seconds)
    yield rows.compared(
      f'generation, batch {count}, of what memory and products allow',
      'tokens/s', np.stack([rates[:, 0], bounds], 1), better='more', peer=False,
    )  # fmt: skip
  count = 2 if bench.quick else 200
  # One round, which is as long as all others together.
  yield rows.compared(
    f'{count} answers of differing lengths', 'answers/s',
    _rates(bench, 'answers', str(count), 1), better='more', bar=3,
  )  # fmt: skip


def training(bench: processes.Bench) -> Iterator[rows.Row]:
  """A step of supervised fine-tuning with AdamW.

  Ours are packed rows of several texts; the peer takes each row for one text.
  """
  count = '1' if bench.quick else '4'
  sides = (
    ('jax_train', bench.folder, count, 'full'),
    ('torch_train', bench.folder, count),
    ('jax_train', bench.folder, count, 'gates'),
  )
  # As `me-jax train` sets it for itself, for both sides.
  pages = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
  found = [
    [bench.work(*side, **pages) for side in sides] for _ in range(bench.rounds)
  ]
  rates, peaks = (
    np.array([[side[name] for side in one] for one in found])
    for name in ('rate', 'peak')
  )
  yield rows.compared(
    f'a step of fine-tuning all parameters, {count} × 512', 'tokens/s',
    rates[:, :2], better='more', bar=1.1,
  )  # fmt: skip
  yield rows.compared(
    'fine-tuning all parameters, peak memory', 'MB', peaks[:, :2],
    better='less', bar=0.8,
  )  # fmt: skip
  seconds = int(count) * 512 / rates
  yield rows.compared(
    'a step of gates, against one of all parameters', 's', seconds[:, [2, 0]],
    better='less', bar=0.75, peer=False,
  )  # fmt: skip
  few, many = bench.work('loss_memory', bench.folder).values()
  yield rows.counted(
    'loss and gradient, temporary memory, 131,072 against 8,192 words', 'MB',
    many / 1e6, few / 1e6, bar=1.01,
  )  # fmt: skip


_SIDES = ('jax', 'torch')


def _rates(
  bench: processes.Bench, name: str, count: str, times: int
) -> list[list[float]]:
  return [
    [bench.work(f'{side}_{name}', bench.folder, count)['rate']
     for side in _SIDES]
    for _ in range(times)
  ]  # fmt: skip


def _shapes(bench: processes.Bench) -> tuple[str, ...]:
  return workers.SHAPES[-1:] if bench.quick else workers.SHAPES


def _times(shape: str) -> str:
  return shape.replace('x', ' × ')


SECTIONS = {
  section.__name__: section
  for section in (
    starting, whole_process, loading, forward, statistics, diagnosing,
    mitigating, generating, training,
  )
}  # fmt: skip
